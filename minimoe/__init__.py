"""minimoe: mixture of experts, FP8 matmul and distillation, short enough to read and exact enough to
test against. See the README for the picture of the house."""

from minimoe.data import load_corpus
from minimoe.model import GPT, ModelConfig
from minimoe.train_config import TrainConfig
from minimoe.training import train
from minimoe.version import __version__

__all__ = ["GPT", "ModelConfig", "TrainConfig", "__version__", "load_corpus", "train"]
