"""Parameters and operations of this project's own models: ``counting`` for a ``ModelConfig``."""

import math

from minimoe.cost.architecture import of
from minimoe.cost.counting import count, forward_flops
from minimoe.model import ModelConfig


def parameters(config: ModelConfig, *, active: bool = False) -> int:
    """Parameters of the model; with ``active``, those that work on one token: the K picked experts of
    each layer in place of all E, everything else in full (the embedding counts once, it is tied)."""
    found = count(of(config))
    return found.active if active else found.total


def flops_per_token(config: ModelConfig, *, training: bool = True) -> float:
    """Operations a token, averaged over a full context."""
    return (3 if training else 1) * forward_flops(of(config))


def dense_width(config: ModelConfig, *, active: bool) -> int:
    """The SwiGLU width that gives a dense model this mixture's active (or total) parameters.

    Rounded up to a multiple of 16, in the dense model's favour: matmuls like such widths.
    """
    experts = (config.top_k if active else config.n_experts) + config.n_shared
    width = experts * config.expert_dim + config.n_experts / 3  # the gate's E * D over 3 * D a column
    return 16 * math.ceil(width / 16)
