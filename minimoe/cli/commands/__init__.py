"""The commands of ``minimoe``: a module each, with a dataclass of the same name whose fields are flags."""

from importlib import import_module
from typing import Any

COMMANDS = {  # name: what it does, in the overview
    "compare": "train an MoE model and two dense ones on the same text, and compare them",
    "distill": "distill a large model into a small one by every method, and compare",
    "claims": "test the articles' claims on this machine, with bounds and verdicts",
    "bench": "is MoE, FP8 or distillation worth it on this machine, at your size?",
    "cost": "parameters, FLOPs, bytes, time and dollars of a model",
    "experiment": "run a single experiment",
    "precision": "errors of 8-bit formats and of accumulation",
    "digits": "distillation on handwritten digits",
    "train": "train one model, dense or MoE, in one process or under torchrun",
    "sample": "generate text with a trained model",
}


def load_command(name: str) -> Any:
    """The dataclass of a command. Its module is imported here, so that a command loads only its own needs."""
    return getattr(import_module(f"minimoe.cli.commands.{name}"), name.capitalize())
