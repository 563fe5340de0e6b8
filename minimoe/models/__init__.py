"""The language models: a small GPT, dense or with mixture layers, and single layers of published checkpoints."""

from minimoe.models.checkpoints import load_layer_, read_layer, save_layer
from minimoe.models.config import ModelConfig
from minimoe.models.generation import generate
from minimoe.models.gpt import GPT

__all__ = ["GPT", "ModelConfig", "generate", "load_layer_", "read_layer", "save_layer"]
