"""What a configuration costs: parameters and floating-point operations, counted from the configuration
alone, never from a module.

A multiply and an add are two operations. Matrix products count; norms, activations, softmax and the
optimizer do not. Training is three times forward: one product for the output, one for the input's
gradient, one for the weight's.
"""

import math
from dataclasses import dataclass
from typing import Literal

from minimoe.model import ModelConfig


def parameters(config: ModelConfig, *, active: bool = False) -> int:
    """Parameters of the model; with ``active``, those that work on one token: the K picked experts of
    each layer in place of all E, everything else in full (the embedding counts once, it is tied)."""
    d = config.dim
    experts = (config.top_k if active else config.n_experts) + config.n_shared
    mixture = 3 * d * config.expert_dim * experts + d * config.n_experts
    dense = 3 * d * config.hidden_dim
    feed_forward = sum(mixture if config.is_mixture(layer) else dense for layer in range(config.n_layers))
    block = 4 * d * d + 2 * d  # attention, two norms
    return config.vocab_size * d + config.n_layers * block + feed_forward + d


def flops_per_token(config: ModelConfig, *, training: bool = True) -> float:
    """Operations a token, averaged over a full context.

    A token attends to the (context + 1) / 2 tokens up to itself on average: two products (scores,
    values) of that length and width D a layer.
    """
    norms = (2 * config.n_layers + 1) * config.dim
    weights = parameters(config, active=True) - norms
    attention = config.n_layers * 2 * config.dim * (config.context + 1) / 2
    forward = 2 * (weights + attention)
    return 3 * forward if training else forward


def dense_width(config: ModelConfig, *, active: bool) -> int:
    """The SwiGLU width that gives a dense model this mixture's active (or total) parameters.

    Rounded up to a multiple of 16, in the dense model's favour: matmuls like such widths.
    """
    experts = (config.top_k if active else config.n_experts) + config.n_shared
    width = experts * config.expert_dim + config.n_experts / 3  # the gate's E * D over 3 * D a column
    return 16 * math.ceil(width / 16)


def processes_visited(config: ModelConfig, n_processes: int) -> float:
    """Processes that hold any of a token's K experts, on average, where each of P holds E / P of them and
    every choice is equally likely.

    One is missed with probability C(E - E/P, K) / C(E, K): all K are among the others' experts. A limit of
    groups, which must then be the processes, leaves the same choice among M of them.

    Raises:
        ValueError: the experts do not divide, or limited groups are not the processes.
    """
    experts, k = config.n_experts, config.top_k
    if experts % n_processes:
        raise ValueError(f"n_experts ({experts}) must be divisible by the processes ({n_processes})")
    among = n_processes
    if config.top_groups is not None and config.top_groups < config.n_groups:
        if config.n_groups != n_processes:
            raise ValueError(
                f"n_groups ({config.n_groups}) must be the number of processes ({n_processes}), so that a "
                "limit of groups is one of processes"
            )
        among = config.top_groups
    each = experts // n_processes
    missed = math.comb((among - 1) * each, k) / math.comb(among * each, k)
    return among * (1 - missed)


@dataclass(frozen=True)
class Traffic:
    """Bytes of a row (one token on its way to one other process) by leg of a layer's step; and of the counts
    that go to each other process before."""

    dispatch: int
    combine: int
    combine_backward: int
    dispatch_backward: int
    counts: int = 8

    @property
    def forward(self) -> int:
        return self.dispatch + self.combine

    @property
    def training(self) -> int:
        return self.forward + self.combine_backward + self.dispatch_backward

    def total(self, rows: float, n_processes: int, *, training: bool = True) -> float:
        """Bytes that all processes together send in a layer's step, by the (token, other process) pairs."""
        counts = self.counts * n_processes * (n_processes - 1)
        return rows * (self.training if training else self.forward) + counts


def traffic(config: ModelConfig, wire: Literal["full", "bf16", "fp8"] = "full") -> Traffic:
    """What travels between processes that share a layer's experts (``moe.wire``), in a float32 model.

    There: the token, and K weights (float32) and numbers of experts (int16). Back: one row of results. Their
    gradients the other way. In fp8 a row has a byte of scale for every 128 numbers, and results are bf16.
    """
    d, k = config.dim, config.top_k
    high = 4 * d if wire == "full" else 2 * d
    low = d + -(-d // 128) if wire == "fp8" else high
    return Traffic(low + 6 * k, high, low, high + 4 * k)
