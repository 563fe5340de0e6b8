"""What travels between processes that share a layer's experts (``moe.parallel``)."""

import math
from dataclasses import dataclass
from typing import Literal

from minimoe.model import ModelConfig


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
