"""[speed] The capacity dispatcher: a limit of tokens per expert, beyond which tokens are dropped.

As in GShard (arXiv 2006.16668) and Switch (2101.03961): fixed shapes and one batched matmul, without grouping
rows of unknown number; in exchange padding is computed and tokens are dropped. Capacity is filled pick by
pick: all tokens' first choices before any second choice, and in token order within a pick. A dropped (token,
expert) pair contributes zero, so that the token passes unchanged through the residual connection (and the
shared expert).

**Dropping leaks the future** where K > 1: a token's second choice can be displaced by the first choices of
later tokens. With K = 1 tokens are displaced by earlier ones only.

The gradient is autograd's; on a GPU that of x is summed in a nondeterministic order.

Dimensions: T tokens, D model width, H expert width, E experts, K experts per token, R = T*K, C capacity.
"""

import math

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from minimoe.moe.arguments import check_capacity_factor
from minimoe.moe.router import count_tokens


def expert_capacity(n_tokens: int, n_experts: int, top_k: int, factor: float) -> int:
    """C, the capacity of an expert in tokens: ``factor`` times an even share of the T*K pairs, rounded up.

    Switch was trained with factors from 1 to 2. No expert can be picked by more than all T tokens.

    Raises:
        ValueError: the factor is not positive.
    """
    check_capacity_factor(factor)
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

    A pair of weight exactly 0 (padding, or a token that expert choice did not take) uses no capacity.

    Raises:
        ValueError: the capacity is missing or negative, or 0 although there are tokens.
    """
    n_tokens, top_k = ids_TK.shape
    n_experts = len(gate_up)
    if capacity is None or capacity < min(n_tokens, 1):
        raise ValueError(
            f"dispatch 'capacity' needs capacity ({capacity}), the tokens per expert, to be at least 1; "
            "compute it with capacity.expert_capacity(n_tokens, n_experts, top_k, factor)"
        )
    # Pick by pick (K, T), so that a stable sort by expert puts first choices before second ones.
    ids_R = torch.where(weights_TK != 0, ids_TK, n_experts).t().flatten()
    order_R = ids_R.argsort(stable=True)
    starts_E = count_tokens(ids_R.unsqueeze(1), n_experts + 1).cumsum(0).roll(1)
    starts_E[0] = 0
    rank_R = torch.empty_like(order_R)  # of the pair among those of its expert
    arange_R = torch.arange(len(order_R), device=order_R.device)
    rank_R[order_R] = arange_R - starts_E[ids_R[order_R]]
    taken_R = (rank_R < capacity) & (ids_R < n_experts)

    # Each pair's row among the E*C rows of all experts; dropped pairs share one more row at the end.
    n_rows = n_experts * capacity
    row_R = torch.where(taken_R, ids_R * capacity + rank_R, n_rows)
    token_R = arange_R % max(n_tokens, 1)
    token_of_row = torch.zeros(n_rows + 1, dtype=torch.int64, device=x_TD.device)
    token_of_row = token_of_row.scatter(0, row_R, token_R)[:-1]
    x_ECD = x_TD[token_of_row].view(n_experts, capacity, x_TD.shape[1])

    gate_ECH, up_ECH = torch.bmm(x_ECD, gate_up.mT).chunk(2, -1)
    y_ECD = torch.bmm(F.silu(gate_ECH) * up_ECH, down.mT)
    y_RD = F.pad(y_ECD.flatten(0, 1), (0, 0, 0, 1))[row_R]  # the row of dropped pairs is zero
    weighted = y_RD * weights_TK.t().reshape(-1, 1)
    return reduce(weighted, "(k t) d -> t d", "sum", k=top_k).to(x_TD.dtype)
