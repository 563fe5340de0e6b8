"""What travels between processes that share a layer's experts (``moe.parallel``)."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from minimoe.cost.architecture import Architecture
from minimoe.models.config import ModelConfig

IB, NVLINK = 50e9, 160e9  # bytes a second and GPU (DeepSeek-V3, arXiv 2412.19437, section 3.2.2)


def processes_visited(config: ModelConfig | Architecture, n_processes: int) -> float:
    """Processes that hold any of a token's K experts, on average, where each of P holds E / P of them and
    every choice is equally likely.

    One is missed with probability C(E - E/P, K) / C(E, K): all K are among the others' experts. A limit of
    groups, which must then be the processes, leaves the same choice among M of them. There this is a lower
    bound: ``route`` prefers groups that hold several of a token's best experts, so that of V3's 4 nodes it
    meets 3.96 where this says 3.63 (independent scores; 9 % more to send to other nodes).

    Raises:
        ValueError: no experts, they do not divide, or limited groups are not the processes.
    """
    if not config.n_experts:
        raise ValueError("n_experts (0) must be above 0 for tokens to travel to them")
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


def traffic(
    config: ModelConfig | Architecture, dispatch_dtype: Literal["full", "bf16", "fp8"] = "full"
) -> Traffic:
    """What travels between processes that share a layer's experts (``moe.dispatch_dtype``), in a float32 model.

    There: the token, and K weights (float32) and numbers of experts (int16). Back: one row of results. Their
    gradients the other way. In fp8 a row has a byte of scale for every 128 numbers, and results are bf16.
    """
    d, k = config.dim, config.top_k
    high = 4 * d if dispatch_dtype == "full" else 2 * d
    low = d + -(-d // 128) if dispatch_dtype == "fp8" else high
    return Traffic(low + 6 * k, high, low, high + 4 * k)


@dataclass(frozen=True)
class AllToAllCost:
    """A layer's tokens on their way to its experts and back, in training, a token."""

    over: Literal["InfiniBand", "NVLink"]
    pairs: float
    """other nodes (over NVLink: other GPUs of the node) that a token goes to"""
    row: int
    """bytes of each, there and back, forward and backward"""

    @property
    def bytes(self) -> float:
        return self.pairs * self.row

    @property
    def microseconds(self) -> float:
        return 1e6 * self.pairs * self.row / (NVLINK if self.over == "NVLink" else IB)


def all_to_all(
    config: ModelConfig | Architecture, dispatch_dtype: Literal["full", "bf16", "fp8"], *, n_nodes: int = 8
) -> AllToAllCost:
    """On GPUs of ``n_nodes`` nodes, each of which gets a token once over InfiniBand and passes it on inside,
    as V3 does (our dispatch does not); on one node, of 8 GPUs that share the experts, over NVLink.

    A token's own node is as likely as any other, and needs no row. A limit of groups is one of nodes (within
    a single node there is none).

    Raises:
        ValueError: as in ``processes_visited``.
    """
    single = n_nodes == 1
    limited = replace(config, top_groups=None) if single else config
    among = 8 if single else n_nodes
    pairs = processes_visited(limited, among) * (among - 1) / among
    return AllToAllCost("NVLink" if single else "InfiniBand", pairs, traffic(config, dispatch_dtype).training)


def passed_on(a: Architecture, *, n_nodes: int = 8, node: int = 8) -> float:
    """Other GPUs of its nodes that a token is passed on to over NVLink, on average, in all nodes that it
    visits; it arrives in each at the GPU of the same number, which may hold one of its experts itself.

    Raises:
        ValueError: as in ``processes_visited``, or the experts do not divide by all GPUs.
    """
    gpus = n_nodes * node
    if a.n_experts % gpus:
        raise ValueError(f"n_experts ({a.n_experts}) must be divisible by the GPUs ({gpus})")
    limited = a.top_groups is not None and a.top_groups < a.n_groups
    if limited and a.n_groups != n_nodes:
        raise ValueError(f"n_groups ({a.n_groups}) must be the number of nodes ({n_nodes})")
    share = a.top_groups / a.n_groups if limited and a.top_groups else 1
    among = replace(a, n_experts=int(a.n_experts * share), n_groups=1, top_groups=None)
    return processes_visited(among, int(gpus * share)) * (node - 1) / node
