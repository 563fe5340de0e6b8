"""Capacity: every expert has the same number of places, and pairs that find none are dropped.

The way of GShard (arXiv 2006.16668) and Switch (2101.03961): fixed shapes, one batched matmul, no sorting
of rows of unknown number; in exchange padding is computed and tokens are lost. Places are given by slot:
all tokens' first choices before any second choice, and within a slot in the order of the tokens. A
dropped pair contributes zero, so the token rides the residual connection (and the shared expert).

**Dropping leaks the future** where K > 1: a token's second choice loses its place to later tokens' first
choices. With K = 1 only earlier tokens push others out.

Plain autograd, as little used as it is; on a GPU its gradient of x is summed in an order that changes.

Dimensions: T tokens, D model width, H expert width, E experts, K experts a token, R = T*K, C places.
"""

import math

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from minimoe.moe.router import count_tokens


def places(n_tokens: int, n_experts: int, top_k: int, factor: float) -> int:
    """C, the places an expert has: ``factor`` times an even share of the T*K pairs, rounded up.

    Switch trained with factors from 1 to 2. No expert can be picked by more than all T tokens.

    Raises:
        ValueError: the factor is not positive.
    """
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f"capacity_factor ({factor}) must be above 0; 1 is an even share, Switch has 1.25")
    return min(n_tokens, math.ceil(factor * n_tokens * top_k / n_experts))


def capacity_experts(
    x_TD: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights_TK: Tensor,
    ids_TK: Tensor,
    capacity: int | None,
) -> Tensor:
    """x_TD (T, D), gate_up (E, 2H, D), down (E, D, H), the routing, C -> y_TD (T, D).

    A pair of weight exactly 0 (padding, or a token that expert choice passed over) takes no place.

    Raises:
        ValueError: the capacity is missing or negative, or 0 where there are tokens.
    """
    n_tokens, top_k = ids_TK.shape
    n_experts = len(gate_up)
    if capacity is None or capacity < min(n_tokens, 1):
        raise ValueError(
            f"dispatch 'capacity' needs capacity ({capacity}), the tokens one expert takes, to be at least "
            "1; capacity.places(n_tokens, n_experts, top_k, factor) counts it"
        )
    # Slot by slot (K, T), so that a stable sort by expert keeps first choices in front of second ones.
    ids_R = torch.where(weights_TK != 0, ids_TK, n_experts).t().flatten()
    order_R = ids_R.argsort(stable=True)
    starts_E = count_tokens(ids_R.unsqueeze(1), n_experts + 1).cumsum(0).roll(1)
    starts_E[0] = 0
    place_R = torch.empty_like(order_R)
    ranks_R = torch.arange(len(order_R), device=order_R.device)
    place_R[order_R] = ranks_R - starts_E[ids_R[order_R]]
    kept_R = (place_R < capacity) & (ids_R < n_experts)

    # Where each pair's row stands among the E*C places; what is dropped goes to one more, a bin.
    bin_ = n_experts * capacity
    seat_R = torch.where(kept_R, ids_R * capacity + place_R, bin_)
    token_R = ranks_R % max(n_tokens, 1)
    tokens_of_seats = torch.zeros(bin_ + 1, dtype=torch.int64, device=x_TD.device)
    tokens_of_seats = tokens_of_seats.scatter(0, seat_R, token_R)[:-1]
    x_ECD = x_TD[tokens_of_seats].view(n_experts, capacity, x_TD.shape[1])

    gate_ECH, up_ECH = torch.bmm(x_ECD, gate_up.mT).chunk(2, -1)
    y_ECD = torch.bmm(F.silu(gate_ECH) * up_ECH, down.mT)
    y_RD = F.pad(y_ECD.flatten(0, 1), (0, 0, 0, 1))[seat_R]  # the bin is a row of zeros
    weighted = y_RD * weights_TK.t().reshape(-1, 1)
    return reduce(weighted, "(k t) d -> t d", "sum", k=top_k).to(x_TD.dtype)
