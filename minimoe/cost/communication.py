"""Communication cost of expert parallelism: bytes that dispatch and combine send, and the time that takes."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from minimoe.cost.architecture import Architecture
from minimoe.models.config import ModelConfig

IB, NVLINK = 50e9, 160e9  # bytes per second per GPU (DeepSeek-V3, arXiv 2412.19437, section 3.2.2)

GPUS_PER_NODE = 8


def processes_visited(config: ModelConfig | Architecture, n_processes: int) -> float:
    """Expected number of processes that hold any of a token's K experts, if each of P processes holds E / P
    experts and all choices are equally likely.

    A process is missed with probability C(E - E/P, K) / C(E, K): all K experts are on the others.
    Group-limited routing, whose groups must be the processes, leaves the same choice among M of them. There
    this is a lower bound: ``route`` prefers groups that hold several of a token's best experts, so that it
    visits 3.96 of V3's 4 nodes where this formula gives 3.63 (independent scores; 9 % more to send to other
    nodes).

    Raises:
        ValueError: no experts, experts not divisible by the processes, or groups that are not the processes.
    """
    candidates = _candidates(config, n_processes, "processes")
    if config.n_experts % n_processes:
        raise ValueError(f"n_experts ({config.n_experts}) must be divisible by the processes ({n_processes})")
    return _visited(candidates, config.n_experts // n_processes, config.top_k)


def _candidates(config: ModelConfig | Architecture, places: int, what: str) -> int:
    """How many of the ``places`` may hold experts of one token: fewer than all if groups are limited."""
    if not config.n_experts:
        raise ValueError("n_experts (0) must be at least 1 for expert parallelism")
    if config.top_groups is None or config.top_groups == config.n_groups:
        return places
    if config.n_groups != places:
        raise ValueError(
            f"n_groups ({config.n_groups}) must be the number of {what} ({places}), so that limiting groups "
            f"limits {what}"
        )
    return config.top_groups


def _visited(candidates: int, each: int, top_k: int) -> float:
    """Expected number of candidates with any of ``top_k`` experts, if each holds ``each`` experts."""
    missed = math.comb((candidates - 1) * each, top_k) / math.comb(candidates * each, top_k)
    return candidates * (1 - missed)


@dataclass(frozen=True)
class Traffic:
    """Bytes per row (one token sent to one other process) in each all-to-all of a layer's training step, and
    bytes of the row counts that precede it, per pair of processes."""

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
        """Bytes that all processes together send in a layer's step, for ``rows`` (token, other process)
        pairs."""
        counts = self.counts * n_processes * (n_processes - 1)
        return rows * (self.training if training else self.forward) + counts


def traffic(
    config: ModelConfig | Architecture, dispatch_dtype: Literal["full", "bf16", "fp8"] = "full"
) -> Traffic:
    """Bytes per row in a float32 model (``moe.expert_parallel.row_format``).

    Dispatch sends the token with K weights (float32) and K expert ids (int16), combine one row of results;
    the backward pass sends the gradients of both. In fp8 a dispatched row has a scale byte per 128 numbers,
    and results are bf16.
    """
    d, k = config.dim, config.top_k
    high = 4 * d if dispatch_dtype == "full" else 2 * d
    low = d + -(-d // 128) if dispatch_dtype == "fp8" else high
    return Traffic(low + 6 * k, high, low, high + 4 * k)


@dataclass(frozen=True)
class AllToAllCost:
    """Communication of one layer's training step, per token."""

    link: Literal["InfiniBand", "NVLink"]
    destinations: float
    """expected number of other nodes (over NVLink: other GPUs of the node) that a token is sent to"""
    row: int
    """bytes per destination, over dispatch, combine and their backward passes"""

    @property
    def bytes(self) -> float:
        return self.destinations * self.row

    @property
    def microseconds(self) -> float:
        return 1e6 * self.destinations * self.row / (NVLINK if self.link == "NVLink" else IB)


def all_to_all(
    config: ModelConfig | Architecture, dispatch_dtype: Literal["full", "bf16", "fp8"], *, n_nodes: int = 8
) -> AllToAllCost:
    """Communication on GPUs of ``n_nodes`` nodes: as in V3 (but not in ``moe.expert_parallel``), each node
    receives a token once over InfiniBand and forwards it inside. On one node, of 8 GPUs over NVLink.

    A token's own node is as likely as any other and needs no row. Limited groups are nodes; within a single
    node there is no limit.

    Raises:
        ValueError: as in ``processes_visited``.
    """
    single = n_nodes == 1
    limited = replace(config, top_groups=None) if single else config
    places = GPUS_PER_NODE if single else n_nodes
    others = processes_visited(limited, places) * (places - 1) / places
    row = traffic(config, dispatch_dtype).training
    return AllToAllCost("NVLink" if single else "InfiniBand", others, row)


def nvlink_forwards(a: Architecture, *, n_nodes: int = 8) -> float:
    """Expected number of GPUs to which a token is forwarded over NVLink, in all nodes that it visits.

    It arrives in each node at the GPU with its own GPU's index, which may hold one of its experts itself.

    Raises:
        ValueError: as in ``processes_visited``, or experts not divisible by all GPUs.
    """
    candidates, gpus = _candidates(a, n_nodes, "nodes"), n_nodes * GPUS_PER_NODE
    if a.n_experts % gpus:
        raise ValueError(f"n_experts ({a.n_experts}) must be divisible by the GPUs ({gpus})")
    visited = _visited(candidates * GPUS_PER_NODE, a.n_experts // gpus, a.top_k)
    return visited * (GPUS_PER_NODE - 1) / GPUS_PER_NODE
