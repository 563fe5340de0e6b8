"""[speed] The grouped dispatcher: all experts in two grouped matmuls, without waiting for the device.

    y[block e] = x[block e] @ weight[e].T      x (R, I) sorted by expert, weight (E, O, I), y (R, O)

torch 2.13 runs ``grouped_mm`` in float32 but traces it in bfloat16 only, and its own backward pass fails on
an expanded gradient; registered as custom operators with their shapes, the matmuls compile in both. The
backward pass around them is written out: autograd would save the gathered rows and both results of every
expert (3 R*D); here x and the (R, 2H) pre-activations are saved.

Dimensions: T tokens, D model width, H expert width, E experts, K experts per token, R = T*K, G = 2H, I and O
input and output width of a matmul.
"""

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from minimoe.moe.dispatch.weighted_swiglu import weighted_swiglu, weighted_swiglu_backward
from minimoe.moe.router import count_tokens

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unsupported_reason(x: Tensor, **widths: int) -> str | None:
    """Why the grouped matmul does not support rows like those of x, with these widths; None if it does."""
    dtype = x.dtype
    if x.device.type not in ("cpu", "cuda"):
        return f"torch.nn.functional.grouped_mm does not run on {x.device.type}"
    if dtype not in DTYPES:
        return f"torch.nn.functional.grouped_mm does not support {dtype}"
    for name, width in widths.items():
        if width * dtype.itemsize % 16:
            return f"a row of {name} ({width}) {dtype} values is not a multiple of 16 bytes"
    return None if x.shape[0] else "there are no tokens"


def grouped_experts(
    x_TD: Tensor, gate_up: Tensor, down: Tensor, weights_TK: Tensor, ids_TK: Tensor
) -> Tensor:
    """x_TD (T, D), gate_up (E, 2H, D), down (E, D, H), the routing -> y_TD (T, D)."""
    order_R = ids_TK.flatten().argsort(stable=True)
    inverse_R = torch.empty_like(order_R).scatter_(
        0, order_R, torch.arange(len(order_R), device=order_R.device)
    )
    ends_E = count_tokens(ids_TK, len(gate_up)).cumsum(0).to(torch.int32)
    return _GroupedExperts.apply(x_TD, gate_up, down, weights_TK, order_R, inverse_R, ends_E)


class _GroupedExperts(torch.autograd.Function):
    """Sort the pairs by expert, multiply, return the results to token order and sum them per token."""

    @staticmethod
    def forward(ctx, x_TD, gate_up, down, weights_TK, order_R, inverse_R, ends_E):
        top_k = weights_TK.shape[1]
        weights_R1 = weights_TK.flatten().index_select(0, order_R).unsqueeze(1)
        x_RD = x_TD.index_select(0, order_R // top_k)
        gate_up_RG = grouped_matmul(x_RD, gate_up, ends_E)
        y_RD = grouped_matmul(weighted_swiglu(gate_up_RG, weights_R1), down, ends_E)
        ctx.save_for_backward(x_TD, gate_up, down, weights_R1, gate_up_RG, order_R, inverse_R, ends_E)
        ctx.top_k = top_k
        return _combine(y_RD, inverse_R, top_k)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD):
        x_TD, gate_up, down, weights_R1, gate_up_RG, order_R, inverse_R, ends_E = ctx.saved_tensors
        tokens_R = order_R // ctx.top_k
        grad_RD = grad_TD.index_select(0, tokens_R)
        dh_RH = grouped_matmul(grad_RD, down.mT, ends_E)
        dgate_up_RG, dweights_R, h_RH = weighted_swiglu_backward(dh_RH, gate_up_RG, weights_R1)
        ddown = grouped_weight_gradient(grad_RD, h_RH, ends_E)
        dgate_up = grouped_weight_gradient(dgate_up_RG, x_TD.index_select(0, tokens_R), ends_E)
        dx_TD = _combine(grouped_matmul(dgate_up_RG, gate_up.mT, ends_E), inverse_R, ctx.top_k)
        dweights_TK = dweights_R.index_select(0, inverse_R).view(-1, ctx.top_k)
        return dx_TD, dgate_up, ddown, dweights_TK, None, None, None


def _combine(rows_RD: Tensor, inverse_R: Tensor, top_k: int) -> Tensor:
    """The sum of each token's K rows, accumulated in float32. An inverse gather and a sum, because index_add
    on a GPU adds in an order that changes from run to run."""
    return reduce(rows_RD.index_select(0, inverse_R), "(t k) d -> t d", "sum", k=top_k)


@torch.library.custom_op("minimoe::grouped_matmul", mutates_args=())
def grouped_matmul(x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Each block of rows times its expert's weight, (R, O). ``ends_E`` (int32), where blocks end, stays on
    the device."""
    return F.grouped_mm(x_RI, weight_EOI.mT, offs=ends_E)


@torch.library.custom_op("minimoe::grouped_weight_gradient", mutates_args=())
def grouped_weight_gradient(grad_RO: Tensor, x_RI: Tensor, ends_E: Tensor) -> Tensor:
    """Each block's grad.T @ x, (E, O, I); zeros for an expert without rows."""
    return F.grouped_mm(grad_RO.mT, x_RI, offs=ends_E)


@grouped_matmul.register_fake
def _(x_RI, weight_EOI, ends_E):
    return x_RI.new_empty(x_RI.shape[0], weight_EOI.shape[1])


@grouped_weight_gradient.register_fake
def _(grad_RO, x_RI, ends_E):
    return x_RI.new_empty(ends_E.shape[0], grad_RO.shape[1], x_RI.shape[1])


@register_flop_formula([torch.ops.minimoe.grouped_matmul, torch.ops.minimoe.grouped_weight_gradient])
def _(a, b, ends, out_shape=None, **kwargs) -> int:
    return 2 * a[0] * a[1] * b[1]  # rows times both widths: (R, I) x (E, O, I), or (R, O) x (R, I)
