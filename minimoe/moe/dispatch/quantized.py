"""[speed] The quantized dispatcher: the experts under a low-precision recipe, as two grouped matmuls.

The equation is that of ``reference``; the precision of each product is that of the recipe. Gate, choice and
the sum over a token's experts stay in float32, as in V3 (section 3.3.1).

``composed_experts`` is built from the differentiable ``grouped_matmul`` and supports every recipe.
``quantized_experts`` computes the same with less work where a token's quantization does not depend on other
tokens: it is quantized once and not for each of its K experts (V3 dispatches tokens in 8 bits).

Dimensions: T tokens, D model width, H expert width, E experts, K experts per token, R = T*K, G = 2H.
"""

import torch
from torch import Tensor

from minimoe.moe.dispatch.loop import rows_per_expert, sorted_pairs
from minimoe.moe.dispatch.weighted_swiglu import weighted_swiglu, weighted_swiglu_backward
from minimoe.precision.grouped_matmul import (
    dequantized_dtype,
    dequantized_groups,
    grouped_matmul,
    grouped_outer,
    grouped_product,
    is_rowwise,
)
from minimoe.precision.matmul import dequantized
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
    trainable = isinstance(gate_up, Tensor) and isinstance(down, Tensor)
    work = weights_TK.numel() * gate_up.shape[1] * gate_up.shape[2] / gate_up.shape[0]
    dtype = dequantized_dtype(x_TD, gate_up.mT, recipe.activation, recipe.weight, recipe, work)
    per_token = is_rowwise(recipe.activation) and is_rowwise(recipe.gradient)
    if not trainable or dtype is None or not per_token:
        return composed_experts(x_TD, gate_up, down, weights_TK, ids_TK, recipe)
    with torch.autocast(x_TD.device.type, enabled=False):
        return _QuantizedExperts.apply(x_TD, gate_up, down, weights_TK, ids_TK, recipe, dtype)


def composed_experts(
    x_TD: Tensor,
    gate_up: Tensor | Quantized,
    down: Tensor | Quantized,
    weights_TK: Tensor,
    ids_TK: Tensor,
    recipe: Recipe,
) -> Tensor:
    """As ``quantized_experts``, from differentiable parts; its oracle."""
    tokens_R, weights_R1 = sorted_pairs(weights_TK, ids_TK.flatten().argsort(stable=True))
    ends_E = torch.tensor(rows_per_expert(ids_TK, gate_up.shape[0])).cumsum(0)
    gate_up_RG = grouped_matmul(x_TD.index_select(0, tokens_R), gate_up.mT, ends_E, recipe)
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


class _QuantizedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, gate_up, down, weights_TK, ids_TK, recipe, dtype):
        order_R, sizes = ids_TK.flatten().argsort(stable=True), rows_per_expert(ids_TK, len(gate_up))
        tokens_R, weights_R1 = sorted_pairs(weights_TK, order_R)
        x_RD = dequantized(x_TD, recipe.activation, -1, dtype).index_select(0, tokens_R)
        gate_up_RG = grouped_product(x_RD, dequantized(gate_up.mT, recipe.weight, -2, dtype), sizes, recipe)
        h_RH = dequantized(weighted_swiglu(gate_up_RG, weights_R1), recipe.activation, -1, dtype)
        y_RD = grouped_product(h_RH, dequantized(down.mT, recipe.weight, -2, dtype), sizes, recipe)
        ctx.save_for_backward(x_TD, gate_up, down, weights_R1, gate_up_RG, order_R, tokens_R)
        ctx.sizes, ctx.recipe, ctx.dtype, ctx.weights = sizes, recipe, dtype, weights_TK.shape
        return _combine(y_RD, tokens_R, x_TD)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD):
        x_TD, gate_up, down, weights_R1, gate_up_RG, order_R, tokens_R = ctx.saved_tensors
        sizes, recipe, dtype = ctx.sizes, ctx.recipe, ctx.dtype
        gradient, weight, activation = recipe.gradient, recipe.weight, recipe.activation
        grad_TD = grad_TD.float()

        def outer(g_RN: Tensor, a_RK: Tensor) -> Tensor:
            g_groups = dequantized_groups(g_RN, sizes, gradient, dtype)
            return grouped_outer(g_groups, dequantized_groups(a_RK, sizes, activation, dtype), recipe)

        grad_RD = dequantized(grad_TD, gradient, -1, dtype).index_select(0, tokens_R)
        dh_RH = grouped_product(grad_RD, dequantized(down, weight, -2, dtype), sizes, recipe)
        dgate_up_RG, dweights_R, h_RH = weighted_swiglu_backward(dh_RH, gate_up_RG, weights_R1)
        ddown = outer(grad_TD.index_select(0, tokens_R), h_RH)
        dgate_up = outer(dgate_up_RG, x_TD.index_select(0, tokens_R).float())
        dgate_up_RG = dequantized(dgate_up_RG, gradient, -1, dtype)
        dx_RD = grouped_product(dgate_up_RG, dequantized(gate_up, weight, -2, dtype), sizes, recipe)
        dweights_TK = torch.empty_like(dweights_R).index_copy_(0, order_R, dweights_R).view(ctx.weights)
        dx_TD = _combine(dx_RD, tokens_R, x_TD)
        return dx_TD, dgate_up.to(gate_up.dtype), ddown.to(down.dtype), dweights_TK, None, None, None


def _combine(y_RD: Tensor, tokens_R: Tensor, like_TD: Tensor) -> Tensor:
    """The sum of each token's rows, accumulated in float32, in the dtype of ``like_TD``."""
    wide = torch.zeros_like(like_TD, dtype=torch.float32)
    return wide.index_add_(0, tokens_R, y_RD).to(like_TD.dtype)
