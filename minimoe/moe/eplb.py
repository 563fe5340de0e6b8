"""[portability] EPLB, the expert-parallel load balancer: places experts and replicas of busy ones on ranks.

Under expert parallelism a step takes as long as its busiest rank. The gate determines how many tokens an
expert gets, but the expert may be on any rank. DeepSeek-V3 (arXiv 2412.19437, section 3.4.1) measures loads
while serving, replicates the busiest experts on spare slots, and redistributes all experts so that ranks have
even loads. This is its published balancer (github.com/deepseek-ai/EPLB), which is greedy throughout:

    1. groups of experts are packed onto the nodes, so that the tokens of one group stay on one node;
    2. each node replicates its own experts until all its slots are used;
    3. each node packs its replicas onto its ranks.

A slot holds one expert's weights. This module computes a placement and moves no weights. It runs every few
minutes and not at every step, so it is plain Python on the CPU.

Dimensions: M mixture layers, E routed experts, S slots (of all ranks), R ranks, P replicas of an expert.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # eq=False: == on tensors has no truth value
class Placement:
    """The expert in each slot; made by ``rebalance_experts`` or ``contiguous``. Rank r has the S / R slots
    from r S / R on, so that a placement can be used with any R that divides S, though it is balanced for
    one."""

    expert_MS: Tensor  # int64, on the CPU: the expert in each slot
    replicas_ME: Tensor  # int64, on the CPU: the number of slots of each expert, at least 1; rows sum to S

    def slots(self, layer: int, expert: int) -> Tensor:
        """(P,) int64, ascending: the expert's slots. ValueError for a layer or an expert out of range."""
        n_layers, n_experts = self.replicas_ME.shape
        for name, index, size in (("layer", layer, n_layers), ("expert", expert, n_experts)):
            if not 0 <= index < size:
                raise ValueError(f"{name} ({index}) must be between 0 and {size - 1}")
        return (self.expert_MS[layer] == expert).nonzero().squeeze(1)

    def loads(self, loads_ME: Tensor, n_ranks: int) -> Tensor:
        """(M, R) float64, on the CPU: every rank's load, in the unit of loads_ME (M, E).

        loads_ME may be other than those the placement was made from, to see how well it fits later loads. An
        expert's load is shared evenly by its replicas, including several on the same rank. ValueError for
        loads that are invalid or of another shape, and ranks that do not divide S.
        """
        loads_ME = _validated(loads_ME)
        if loads_ME.shape != self.replicas_ME.shape:
            raise ValueError(
                f"loads {tuple(loads_ME.shape)} must be {tuple(self.replicas_ME.shape)}, the layers and "
                "experts of the placement; contiguous(..., layers=) sets the number of layers"
            )
        n_layers, n_slots = self.expert_MS.shape
        _at_least_one(n_ranks=n_ranks)
        _divisible("n_slots", n_slots, "n_ranks", n_ranks, "every rank has the same number")
        share_MS = (loads_ME / self.replicas_ME).gather(1, self.expert_MS)
        return share_MS.view(n_layers, n_ranks, n_slots // n_ranks).sum(-1)

    def imbalance(self, loads_ME: Tensor, n_ranks: int) -> Tensor:
        """(M,) float64: the busiest rank's load over the mean load, the factor by which imbalance slows a
        step. 1 is even (or a layer without load), R is all on one rank. Arguments as in ``loads``."""
        loads_MR = self.loads(loads_ME, n_ranks)
        mean_M = loads_MR.mean(1)
        return torch.where(mean_M > 0, loads_MR.amax(1) / mean_M, 1.0)


def contiguous(n_experts: int, n_ranks: int, layers: int = 1) -> Placement:
    """The placement of plain expert parallelism: no replicas, expert e on rank e // (E / R), in all M layers.

    ValueError for a size below 1, or E not divisible by R.
    """
    _at_least_one(n_experts=n_experts, n_ranks=n_ranks, layers=layers)
    _divisible("n_experts", n_experts, "n_ranks", n_ranks, "every rank has the same number")
    expert_ME = torch.arange(n_experts).repeat(layers, 1)
    return Placement(expert_ME, torch.ones_like(expert_ME))


def rebalance_experts(
    loads_ME: Tensor, n_slots: int, *, n_ranks: int, n_nodes: int = 1, n_groups: int = 1
) -> Placement:
    """Assign each layer's experts and their replicas to slots, for even loads.

    Hierarchical where n_nodes divides n_groups: the experts of a group stay on one node, so that
    group-limited routing sends a token to few nodes. Otherwise global: nodes and groups are ignored. Each
    step is greedy and so near the optimum but rarely optimal: where loads are already even by rank,
    ``contiguous`` can be better. Two replicas of an expert may be placed on the same rank, although one would
    do. DeepSeek-V3 prefills on 32 ranks with its 256 experts on 288 slots.

    Args:
        loads_ME: (M, E) any real dtype, the expected load of each expert, such as its tokens over some time.
        n_slots: S, of all ranks; S - E are for replicas.
        n_ranks: R. Rank r has slots S r / R … S (r + 1) / R - 1, in the order in which they were filled.
        n_nodes: machines, with R / n_nodes consecutive ranks each.
        n_groups: groups of E / n_groups consecutive experts, as in ``Router``.

    Raises:
        ValueError: loads that are not (M, E), or are empty, negative, NaN or infinite; a size below 1; fewer
            slots than experts; n_slots not divisible by n_ranks, n_ranks by n_nodes or n_experts by n_groups.
    """
    loads_ME = _validated(loads_ME)
    n_experts = loads_ME.shape[1]
    _at_least_one(n_slots=n_slots, n_ranks=n_ranks, n_nodes=n_nodes, n_groups=n_groups)
    if n_slots < n_experts:
        raise ValueError(
            f"n_slots ({n_slots}) must be at least n_experts ({n_experts}), one per expert; "
            f"{-(-n_experts // n_ranks) * n_ranks} is the minimum for {n_ranks} ranks"
        )
    _divisible("n_slots", n_slots, "n_ranks", n_ranks, "every rank has the same number")
    _divisible("n_ranks", n_ranks, "n_nodes", n_nodes, "every node has the same number")
    _divisible("n_experts", n_experts, "n_groups", n_groups, "every group has the same number")
    if n_groups % n_nodes:
        n_nodes, n_groups = 1, 1
    rows = [_assign_slots(load_E, n_slots, n_ranks, n_nodes, n_groups) for load_E in loads_ME.tolist()]
    expert_MS = torch.tensor(rows)
    replicas_ME = torch.zeros(loads_ME.shape, dtype=torch.int64)
    return Placement(expert_MS, replicas_ME.scatter_add(1, expert_MS, torch.ones_like(expert_MS)))


def _assign_slots(load_E: list[float], n_slots: int, n_ranks: int, n_nodes: int, n_groups: int) -> list[int]:
    """The expert in each of the S slots of a layer: the three steps."""
    size = len(load_E) // n_groups
    groups = [list(range(start, start + size)) for start in range(0, len(load_E), size)]
    slots = []
    for groups_of_node in _balanced_packing([sum(load_E[e] for e in group) for group in groups], n_nodes):
        experts = _replicate([e for g in groups_of_node for e in groups[g]], load_E, n_slots // n_nodes)
        share = [load_E[e] / experts.count(e) for e in experts]
        for rank in _balanced_packing(share, n_ranks // n_nodes):
            slots += [experts[i] for i in rank]
    return slots


def _replicate(experts: list[int], load_E: list[float], n_slots: int) -> list[int]:
    """``experts`` followed by their replicas, n_slots in total. Each replica goes to the expert with the
    largest load per replica (the first of equals), which minimizes the largest load per replica."""
    copies = dict.fromkeys(experts, 1)
    replicas = []
    for _ in range(n_slots - len(experts)):
        busiest = max(experts, key=lambda e: load_E[e] / copies[e])
        copies[busiest] += 1
        replicas.append(busiest)
    return experts + replicas


def _balanced_packing(weights: list[float], n_packs: int) -> list[list[int]]:
    """The items in each pack, the same number in all.

    Items in descending order of weight, each into the lightest pack that is not full (the first of equal
    items or packs): LPT scheduling with machines of limited capacity. With one item per pack, item i is in
    pack i.
    """
    size = len(weights) // n_packs
    if size == 1:
        return [[i] for i in range(n_packs)]
    packs: list[list[int]] = [[] for _ in range(n_packs)]
    totals = [0.0] * n_packs
    for item in sorted(range(len(weights)), key=weights.__getitem__, reverse=True):  # stable, reversed too
        lightest = min((p for p in range(n_packs) if len(packs[p]) < size), key=totals.__getitem__)
        packs[lightest].append(item)
        totals[lightest] += weights[item]
    return packs


def _validated(loads_ME: Tensor) -> Tensor:
    """The loads in float64 on the CPU; ValueError for invalid ones."""
    if loads_ME.ndim != 2 or not loads_ME.numel():
        raise ValueError(
            f"loads {tuple(loads_ME.shape)} must be (M, E), at least one layer of at least one expert; pass "
            "a single layer as loads[None]"
        )
    loads_ME = loads_ME.detach().to("cpu", torch.float64)
    wrong = loads_ME[~((loads_ME >= 0) & (loads_ME < math.inf))]  # NaN is neither
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {loads_ME.numel()} loads are negative, NaN or infinite, the first {wrong[0]}; "
            "pass each expert's number of tokens, 0 or more"
        )
    return loads_ME


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} ({size}) must be at least 1")


def _divisible(name: str, number: int, by: str, divisor: int, reason: str) -> None:
    if number % divisor:
        above = (number // divisor + 1) * divisor
        raise ValueError(f"{name} ({number}) must be divisible by {by} ({divisor}), as {above} is: {reason}")
