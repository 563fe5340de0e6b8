"""Language models: a small GPT, dense or mixture-of-experts, and single layers of published models.

In reading order: ``config``, ``gpt``, ``generation``; ``checkpoints`` reads and writes published layers.
"""

from minimoe.models.checkpoints import load_layer_, read_layer, save_layer
from minimoe.models.config import ModelConfig
from minimoe.models.generation import generate
from minimoe.models.gpt import GPT

__all__ = ["GPT", "ModelConfig", "generate", "load_layer_", "read_layer", "save_layer"]
