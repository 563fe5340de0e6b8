"""minimoe: mixture of experts, FP8 matmul and distillation, short enough to read and exact enough to
test against. The documentation has a map of the rooms."""

from typing import TYPE_CHECKING, Any

from minimoe.version import __version__

if TYPE_CHECKING:
    from minimoe.data.corpus import load_corpus
    from minimoe.models.config import ModelConfig
    from minimoe.models.gpt import GPT
    from minimoe.training.config import TrainConfig
    from minimoe.training.loop import train

__all__ = ["GPT", "ModelConfig", "TrainConfig", "__version__", "load_corpus", "train"]

# Loaded on first use, so that ``import minimoe.moe`` loads neither the trainer nor the terminal.
_HOMES = {
    "GPT": "minimoe.models.gpt",
    "ModelConfig": "minimoe.models.config",
    "TrainConfig": "minimoe.training.config",
    "load_corpus": "minimoe.data.corpus",
    "train": "minimoe.training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minimoe' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
