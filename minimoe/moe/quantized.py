"""The experts under a recipe for 8-bit matmuls: all rows sorted by expert, then two grouped matmuls.

The equation is that of ``experts``; what differs is how each product is done. Gate, choice and the sum over
a token's experts stay in float32, as in V3 (section 3.3.1).

Dimensions: T tokens, D model width, H expert width, E experts, K experts a token, R = T*K, G = 2H.
"""

import torch
from torch import Tensor

from minimoe.moe.swiglu import weighted_swiglu, weighted_swiglu_backward
from minimoe.precision.grouped import grouped_matmul
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Recipe


def quantized_experts(
    x_TD: Tensor,
    gate_up: Tensor | Quantized,
    down: Tensor | Quantized,
    weights_TK: Tensor,
    ids_TK: Tensor,
    recipe: Recipe,
) -> Tensor:
    """x_TD (T, D), gate_up (E, 2H, D), down (E, D, H), the routing -> y_TD (T, D) in x's dtype."""
    order_R = ids_TK.flatten().argsort(stable=True)
    tokens_R = order_R // weights_TK.shape[1]
    ends_E = ids_TK.flatten().bincount(minlength=gate_up.shape[0]).cumsum(0).tolist()
    gate_up_RG = grouped_matmul(x_TD.index_select(0, tokens_R), gate_up.mT, ends_E, recipe)
    weights_R1 = weights_TK.flatten().index_select(0, order_R).unsqueeze(1)
    h_RH = _WeightedSwiGLU.apply(gate_up_RG, weights_R1)
    y_RD = grouped_matmul(h_RH, down.mT, ends_E, recipe)
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    return torch.zeros_like(x_TD, dtype=wide).index_add(0, tokens_R, y_RD.to(wide)).to(x_TD.dtype)


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up_RG, weights_R1):
        ctx.save_for_backward(gate_up_RG, weights_R1)
        return weighted_swiglu(gate_up_RG, weights_R1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh_RH):
        dgate_up_RG, dweights_R, _ = weighted_swiglu_backward(dh_RH.clone(), *ctx.saved_tensors)
        return dgate_up_RG, dweights_R.unsqueeze(1)
