"""Placement: which rank holds which expert, so that measured loads come out even; hot experts stand twice.

Under expert parallelism a step lasts as long as its busiest rank's. The gate decides how many tokens an
expert gets; where the expert stands is free. DeepSeek-V3 (arXiv 2412.19437, section 3.4.1) measures the
loads while it serves, gives the hottest experts replicas on spare slots, and deals all out again so that
the ranks come out even. This is its published balancer (github.com/deepseek-ai/EPLB), greedy throughout:

    1. groups of experts are packed onto the nodes, so that the tokens of one group stay on one node;
    2. each node replicates its own experts until all its slots are taken;
    3. each node packs its replicas onto its ranks.

A slot is room for one expert's weights. Nothing here moves any: it says where they should go. That is
asked once in some minutes and not at each step, so it is plain Python on the CPU.

Dimensions: M mixture layers, E routed experts, S slots (of all ranks), R ranks, P replicas of an expert.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # eq=False: == on tensors has no truth value
class Placement:
    """Which expert each slot holds; made by ``rebalance_experts`` or ``contiguous``. Slots of rank r are the
    S / R from r S / R on, so one placement serves any R that divides S, though it is balanced for one
    alone."""

    expert_MS: Tensor  # int64, on the CPU: the expert in each slot
    replicas_ME: Tensor  # int64, on the CPU: how often each expert stands, at least once; rows sum to S

    def slots(self, layer: int, expert: int) -> Tensor:
        """(P,) int64, rising: where the expert stands. ValueError for a layer or an expert there is not."""
        n_layers, n_experts = self.replicas_ME.shape
        for name, index, size in (("layer", layer, n_layers), ("expert", expert, n_experts)):
            if not 0 <= index < size:
                raise ValueError(f"{name} ({index}) must be between 0 and {size - 1}")
        return (self.expert_MS[layer] == expert).nonzero().squeeze(1)

    def loads(self, loads_ME: Tensor, n_ranks: int) -> Tensor:
        """(M, R) float64, on the CPU: every rank's load, in the unit of the experts'.

        loads_ME (M, E) need not be the loads that were placed: later ones say how well it has aged. An
        expert's load is shared evenly by its replicas, those that stand on the same rank included. ValueError
        for loads that ``rebalance_experts`` would refuse or of another shape, and ranks that do not divide S.
        """
        loads_ME = _checked(loads_ME)
        if loads_ME.shape != self.replicas_ME.shape:
            raise ValueError(
                f"loads {tuple(loads_ME.shape)} must be {tuple(self.replicas_ME.shape)}, as many layers and "
                "experts as were placed; contiguous(..., layers=) takes the loads' layers"
            )
        n_layers, n_slots = self.expert_MS.shape
        _at_least_one(n_ranks=n_ranks)
        _divisible("n_slots", n_slots, "n_ranks", n_ranks, "every rank holds the same number")
        share_MS = (loads_ME / self.replicas_ME).gather(1, self.expert_MS)
        return share_MS.view(n_layers, n_ranks, n_slots // n_ranks).sum(-1)

    def imbalance(self, loads_ME: Tensor, n_ranks: int) -> Tensor:
        """(M,) float64: the busiest rank's load over the mean rank's. 1 is even (or a layer without load), R
        all on one rank. A step waits so many times longer than it need. Arguments as in ``loads``."""
        loads_MR = self.loads(loads_ME, n_ranks)
        mean_M = loads_MR.mean(1)
        return torch.where(mean_M > 0, loads_MR.amax(1) / mean_M, 1.0)


def contiguous(n_experts: int, n_ranks: int, layers: int = 1) -> Placement:
    """Where expert parallelism starts: no replicas, and expert e on rank e // (E / R), in all M layers.

    ValueError for a size below 1, and for experts that the ranks do not divide.
    """
    _at_least_one(n_experts=n_experts, n_ranks=n_ranks, layers=layers)
    _divisible("n_experts", n_experts, "n_ranks", n_ranks, "every rank holds the same number")
    expert_ME = torch.arange(n_experts).repeat(layers, 1)
    return Placement(expert_ME, torch.ones_like(expert_ME))


def rebalance_experts(
    loads_ME: Tensor, n_slots: int, *, n_ranks: int, n_nodes: int = 1, n_groups: int = 1
) -> Placement:
    """Place and replicate each layer's experts for even loads.

    Hierarchical where n_nodes divides n_groups: no expert leaves the node of its group, so that routing
    limited to a few groups sends a token to few nodes. Else global: nodes and groups are ignored. Each step
    is greedy, and so near the optimum but seldom at it: on loads that are even by rank already,
    ``contiguous`` can be better. Nor are two replicas of an expert kept off the same rank, where one would
    do. DeepSeek-V3 prefills on 32 ranks with its 256 experts on 288 slots.

    Args:
        loads_ME: (M, E) any real dtype, what each expert is to bear: its tokens, say, summed over some time.
        n_slots: S, of all ranks together; S - E are for replicas.
        n_ranks: R. Slots S r / R … S (r + 1) / R - 1 are rank r's, in the order in which it was filled.
        n_nodes: machines; the R / n_nodes ranks of one follow one another.
        n_groups: groups of experts, each E / n_groups that follow one another, as in ``Router``.

    Raises:
        ValueError: loads that are not (M, E) or have no entry, a negative, NaN or infinite one; a size below
            1; fewer slots than experts; n_slots not divisible by n_ranks, n_ranks by n_nodes or n_experts
            by n_groups.
    """
    loads_ME = _checked(loads_ME)
    n_experts = loads_ME.shape[1]
    _at_least_one(n_slots=n_slots, n_ranks=n_ranks, n_nodes=n_nodes, n_groups=n_groups)
    if n_slots < n_experts:
        raise ValueError(
            f"n_slots ({n_slots}) must be at least n_experts ({n_experts}): every expert stands once; "
            f"{-(-n_experts // n_ranks) * n_ranks} is the least for {n_ranks} ranks"
        )
    _divisible("n_slots", n_slots, "n_ranks", n_ranks, "every rank holds the same number")
    _divisible("n_ranks", n_ranks, "n_nodes", n_nodes, "every node has the same number")
    _divisible("n_experts", n_experts, "n_groups", n_groups, "every group has the same number")
    if n_groups % n_nodes:
        n_nodes, n_groups = 1, 1
    rows = [_place_layer(load_E, n_slots, n_ranks, n_nodes, n_groups) for load_E in loads_ME.tolist()]
    expert_MS = torch.tensor(rows)
    replicas_ME = torch.zeros(loads_ME.shape, dtype=torch.int64)
    return Placement(expert_MS, replicas_ME.scatter_add(1, expert_MS, torch.ones_like(expert_MS)))


def _place_layer(load_E: list[float], n_slots: int, n_ranks: int, n_nodes: int, n_groups: int) -> list[int]:
    """The expert in each of the S slots; the three steps."""
    size = len(load_E) // n_groups
    groups = [list(range(start, start + size)) for start in range(0, len(load_E), size)]
    slots = []
    for groups_of_node in _pack([sum(load_E[e] for e in group) for group in groups], n_nodes):
        experts = _replicate([e for g in groups_of_node for e in groups[g]], load_E, n_slots // n_nodes)
        share = [load_E[e] / experts.count(e) for e in experts]
        for rank in _pack(share, n_ranks // n_nodes):
            slots += [experts[i] for i in rank]
    return slots


def _replicate(experts: list[int], load_E: list[float], n_slots: int) -> list[int]:
    """``experts`` and then their replicas, n_slots in all. The next replica is always of the expert whose
    load per replica is largest, of equals the first; so the largest that is left is as small as can be."""
    copies = dict.fromkeys(experts, 1)
    replicas = []
    for _ in range(n_slots - len(experts)):
        hottest = max(experts, key=lambda e: load_E[e] / copies[e])
        copies[hottest] += 1
        replicas.append(hottest)
    return experts + replicas


def _pack(weights: list[float], n_packs: int) -> list[list[int]]:
    """Balanced packing: which items each pack holds, the same number in all.

    Items in order of falling weight, each into the lightest pack that still has a free place; of equal items
    or packs the first. (LPT scheduling with full machines closed.) One item a pack: item i in pack i.
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


def _checked(loads_ME: Tensor) -> Tensor:
    """The loads in float64 on the CPU; ValueError for what cannot be loads."""
    if loads_ME.ndim != 2 or not loads_ME.numel():
        raise ValueError(
            f"loads {tuple(loads_ME.shape)} must be (M, E), at least one layer of at least one expert; give "
            "a single layer as loads[None]"
        )
    loads_ME = loads_ME.detach().to("cpu", torch.float64)
    wrong = loads_ME[~((loads_ME >= 0) & (loads_ME < math.inf))]  # NaN is neither
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {loads_ME.numel()} loads are negative, NaN or infinite, the first {wrong[0]}; "
            "give each expert's tokens, 0 or more"
        )
    return loads_ME


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} ({size}) must be at least 1")


def _divisible(name: str, number: int, by: str, divisor: int, reason: str) -> None:
    if number % divisor:
        above = (number // divisor + 1) * divisor
        raise ValueError(
            f"{name} ({number}) must be divisible by {by} ({divisor}): {reason}; {above} would be"
        )
