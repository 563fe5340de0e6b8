"""All experts' matmuls in one call: torch's grouped matmul, as an operator that also compiles in float32.

    y[block e] = x[block e] @ weight[e].T      x (R, I) sorted by expert, weight (E, O, I), y (R, O)

torch 2.13 runs ``grouped_mm`` in float32 but traces it in bfloat16 alone, and its own backward fails on an
expanded gradient; stated as an operator with its shape and its gradient, it does both.

Dimensions: R rows, E experts, I and O the widths in and out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def obstacle(x: Tensor, **widths: int) -> str | None:
    """Why the grouped matmul cannot take such rows, of these widths, or None where it can."""
    dtype = x.dtype
    if x.device.type not in ("cpu", "cuda"):
        return f"torch.nn.functional.grouped_mm does not run on {x.device.type}"
    if dtype not in DTYPES:
        return f"torch.nn.functional.grouped_mm has no {dtype}"
    for name, width in widths.items():
        if width * dtype.itemsize % 16:
            return f"a row of {name} ({width}) {dtype} values is not a multiple of 16 bytes"
    return None if x.shape[0] else "there are no tokens"


@torch.library.custom_op("minimoe::grouped_matmul", mutates_args=())
def grouped_matmul(x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Each block of rows times its expert's weight, (R, O). ``ends_E`` (int32) is where blocks end, and
    never leaves the device."""
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


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_RO):
    x_RI, weight_EOI, ends_E = ctx.saved_tensors
    grad_RO = grad_RO.contiguous()
    needs_x, needs_weight, _ = ctx.needs_input_grad
    grad_x = grouped_matmul(grad_RO, weight_EOI.mT, ends_E) if needs_x else None
    grad_weight = grouped_weight_gradient(grad_RO, x_RI, ends_E) if needs_weight else None
    return grad_x, grad_weight, None


grouped_matmul.register_autograd(_backward, setup_context=_save)
