"""[evidence] Load statistics: how evenly the experts are used, and by which tokens. They wait for the device.

Dimensions: T tokens, E routed experts, K experts per token, V labels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minimoe.moe.router import Routing


def max_violation(counts_E: Tensor) -> float:
    """MaxVio (2408.15664, section 4.1): the busiest expert's load above the mean, over the mean.

    0 is perfect balance, also where there are no tokens; E/K - 1 means that all tokens go to the same K
    experts.
    """
    load_E = counts_E.to(torch.float64)
    mean = load_E.mean()
    return float((load_E.max() - mean) / mean) if mean > 0 else 0.0


class Statistics(NamedTuple):
    """How evenly the picks of one layer are distributed over its experts."""

    load_E: Tensor  # float64, on the CPU: each expert's share of the picks, sum 1; zeros without picks
    max_violation: float  # see the function
    entropy: float  # of load_E, over ln E: 1 is even (or a single expert), 0 all on one (or no picks)
    dead: int  # experts without a token
    dropped: float  # share of the picks beyond the experts' capacity


def statistics(routing: Routing | Tensor, *, capacity: int | None = None) -> Statistics:
    """One layer's balance, from its routing or from its counts_E (E,). ``capacity`` is the limit of tokens
    per expert (``capacity.expert_capacity``). ValueError for another shape of counts or a capacity below
    1."""
    counts_E = (routing.counts_E if isinstance(routing, Routing) else routing).detach().cpu()
    if counts_E.ndim != 1:
        raise ValueError(f"counts {tuple(counts_E.shape)} must be (E,): give one layer at a time")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity ({capacity}) must be at least 1 token per expert, or None for no limit")
    total, n_experts = max(int(counts_E.sum()), 1), len(counts_E)
    load_E = counts_E.to(torch.float64) / total
    entropy = float(torch.special.entr(load_E).sum()) / math.log(n_experts) if n_experts > 1 else 1.0
    dropped = 0.0 if capacity is None else int((counts_E - capacity).clamp(min=0).sum()) / total
    return Statistics(load_E, max_violation(counts_E), entropy, int((counts_E == 0).sum()), dropped)


def count_by(labels_T: Tensor, routing: Routing, n_labels: int) -> Tensor:
    """(n_labels, E) int64: how often the tokens of each label went to each expert.

    A label is an integer 0 … n_labels - 1, for padding too: a token's domain, for example, or its own id.
    Picks of weight exactly 0 (padding, or tokens that expert choice did not take) are not counted. ValueError
    for other labels.
    """
    n_tokens, n_experts = routing.scores_TE.shape
    if labels_T.shape != (n_tokens,) or labels_T.is_floating_point():
        raise ValueError(f"labels {labels_T.dtype} {tuple(labels_T.shape)} must be ({n_tokens},) integers")
    labels_T = labels_T.long()  # uint8 times E would overflow
    outside = labels_T[(labels_T < 0) | (labels_T >= n_labels)]
    if len(outside):
        raise ValueError(
            f"{len(outside)} of {n_tokens} labels are outside 0 … {n_labels - 1}, {int(outside.min())} to "
            f"{int(outside.max())}; raise n_labels ({n_labels}), or give padding a label of its own"
        )
    cells_TK = labels_T.unsqueeze(1) * n_experts + routing.ids_TK
    counts = torch.zeros(n_labels * n_experts, dtype=torch.int64, device=cells_TK.device)
    picked_TK = (routing.weights_TK != 0).long()
    return counts.scatter_add(0, cells_TK.flatten(), picked_TK.flatten()).view(n_labels, n_experts)


def top_tokens(counts_VE: Tensor, n: int = 10) -> tuple[Tensor, Tensor]:
    """(E, n) int64, twice: the ids that each expert got most often, and how often; ties go to the smaller id.

    counts_VE (V, E) is ``count_by`` with the token ids as labels. For an expert that got fewer than n
    different ids, the rest are ids with count 0. ValueError for n not between 1 and V.
    """
    if not 1 <= n <= len(counts_VE):
        raise ValueError(f"n ({n}) must be between 1 and the number of labels ({len(counts_VE)})")
    # Not topk, which breaks ties in no particular order.
    counts_EV, ids_EV = counts_VE.t().sort(dim=1, descending=True, stable=True)
    return ids_EV[:, :n], counts_EV[:, :n]
