"""The reference dispatcher: the equation of the experts, token by token; the oracle for the others.

    y_t = sum over the K picked experts of  weight * down( silu(gate x_t) * (up x_t) )

Dimensions: T tokens, D model width, H expert width, K experts per token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_experts(
    x_TD: Tensor, gate_up: Tensor, down: Tensor, weights_TK: Tensor, ids_TK: Tensor
) -> Tensor:
    """x_TD (T, D), gate_up (E, 2H, D), down (E, D, H), the routing -> y_TD (T, D).
    Slow, and obviously correct. A token's K results are summed in float32, as by every dispatcher."""
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    outputs = []
    for x_D, weights_K, ids_K in zip(x_TD, weights_TK, ids_TK, strict=True):
        y_D = torch.zeros_like(x_D, dtype=wide)
        for weight, expert in zip(weights_K, ids_K.tolist(), strict=True):
            y_D = y_D + weight * _expert(x_D, gate_up[expert], down[expert]).to(wide)
        outputs.append(y_D)
    if outputs:
        return torch.stack(outputs).to(x_TD.dtype)
    # Without tokens, still depend on all parameters, so that their gradients are zero and not None.
    return x_TD + 0 * (gate_up.sum() + down.sum() + weights_TK.sum()).to(x_TD.dtype)


def _expert(x_D: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One expert: x (D,), gate_up (2H, D), down (D, H) -> (D,)."""
    gate_H, up_H = F.linear(x_D, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate_H) * up_H, down)
