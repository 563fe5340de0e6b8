"""minimoe: mixture of experts, FP8 matmul and distillation, short enough to read and exact enough to
test against. See the README for the picture of the house."""

from minimoe.data.corpus import load_corpus
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train
from minimoe.version import __version__

__all__ = ["GPT", "ModelConfig", "TrainConfig", "__version__", "load_corpus", "train"]
