"""[speed] The loop dispatcher: one matmul per expert, launched from the host. The fastest on a CPU.

Rows are sorted by expert and processed in blocks of a few whole experts whose rows fit a core's cache:
gather, multiply, SwiGLU, multiply and add to the output run on a block while it is cached, and no (R, D)
tensor is made. The backward pass is written out: autograd would save the gathered rows and both results of
every expert; here only the (R, 2H) pre-activations are saved.

Dimensions: T tokens, D model width, H expert width, E experts, K experts per token, R = T*K, G = 2H, n rows
of a block or of an expert.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from minimoe.moe.dispatch.small_batch import single_token_experts, small_matmul
from minimoe.moe.dispatch.weighted_swiglu import weighted_swiglu, weighted_swiglu_backward

BLOCK_FLOATS = 1 << 17  # floats per block of gathered rows: 512 KB, half a core's second-level cache

SMALL_BATCH = 5  # rows per expert, on average, below which ``small_batch.small_matmul`` is faster


class Block(NamedTuple):
    """Consecutive experts, and the number of sorted rows of each."""

    experts: list[int]
    sizes: list[int]

    def parts(self, rows: Tensor) -> Sequence[Tensor]:
        """The block's rows, split by expert. Most blocks have one expert, and a split takes time."""
        return rows.split(self.sizes) if len(self.sizes) > 1 else (rows,)


def blocks(counts: Sequence[int], dim: int) -> Iterator[Block]:
    """Blocks of experts with rows, of at most BLOCK_FLOATS each unless a single expert has more."""
    max_rows = max(1, BLOCK_FLOATS // dim)
    experts: list[int] = []
    sizes: list[int] = []
    for expert, count in enumerate(counts):
        if experts and count and sum(sizes) + count > max_rows:
            yield Block(experts, sizes)
            experts, sizes = [], []
        if count:
            experts.append(expert)
            sizes.append(count)
    if experts:
        yield Block(experts, sizes)


def sorted_pairs(weights_TK: Tensor, order_R: Tensor) -> tuple[Tensor, Tensor]:
    """The token of each sorted row, and its weight as a column."""
    return order_R // weights_TK.shape[1], weights_TK.flatten().index_select(0, order_R).unsqueeze(1)


def rows_per_expert(ids_TK: Tensor, n_experts: int) -> list[int]:
    """The number of sorted rows of each expert, on the host: waits for the device."""
    return ids_TK.flatten().bincount(minlength=n_experts).tolist()


def loop_experts(x_TD: Tensor, gate_up: Tensor, down: Tensor, weights_TK: Tensor, ids_TK: Tensor) -> Tensor:
    """x_TD (T, D), gate_up (E, 2H, D), down (E, D, H), the routing -> y_TD (T, D)."""
    save = torch.is_grad_enabled()
    # The operator has a gradient and compiles, but its call overhead is a tenth of a decoding step.
    forward = _operator if save or torch.compiler.is_compiling() else _forward
    return forward(x_TD, gate_up, down, weights_TK, ids_TK, save)[0].to(x_TD.dtype)


def _forward(
    x_TD: Tensor, gate_up: Tensor, down: Tensor, weights_TK: Tensor, ids_TK: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y_TD in at least float32; and with ``save``, for the backward pass, the (R, 2H) pre-activations of the
    sorted rows and the order that sorted them."""
    dim, wide = x_TD.shape[1], _wide(x_TD.dtype)
    if len(x_TD) == 1 and dim % 2 == 0 and not save:
        y_TD = single_token_experts(x_TD, gate_up, down, weights_TK, ids_TK)
        return y_TD.to(wide), x_TD.new_empty(0, gate_up.shape[1]), ids_TK.new_empty(0)
    order_R = ids_TK.flatten().argsort(stable=True)
    tokens_R, weights_R1 = sorted_pairs(weights_TK, order_R)
    counts = rows_per_expert(ids_TK, len(gate_up))
    plan = list(blocks(counts, dim))
    lengths = [sum(block.sizes) for block in plan]
    longest = max(lengths, default=0)
    saved_RG = x_TD.new_empty(len(order_R) if save else 0, gate_up.shape[1])
    buffer_nD = x_TD.new_empty(longest, dim)
    buffer_nG = x_TD.new_empty(0 if save else longest, gate_up.shape[1])
    y_TD = torch.zeros_like(x_TD, dtype=wide)
    outputs = saved_RG.split(lengths) if save else [buffer_nG[:n] for n in lengths]
    for block, tokens_n, weights_n1, gate_up_nG in zip(
        plan, tokens_R.split(lengths), weights_R1.split(lengths), outputs, strict=True
    ):
        n = len(tokens_n)
        x_nD = torch.index_select(x_TD, 0, tokens_n, out=buffer_nD[:n])
        small = n < SMALL_BATCH * len(block.experts)
        if small:
            gate_up_nG.copy_(small_matmul(x_nD, [gate_up[e] for e in block.experts], block.sizes))
        else:
            for e, x, out in zip(block.experts, block.parts(x_nD), block.parts(gate_up_nG), strict=True):
                torch.mm(x, gate_up[e].t(), out=out)
        h_nH = weighted_swiglu(gate_up_nG, weights_n1)
        if small:
            y_nD = small_matmul(h_nH, [down[e] for e in block.experts], block.sizes)
        else:
            y_nD = x_nD  # the gathered rows are no longer needed: overwrite them
            for e, h, out in zip(block.experts, block.parts(h_nH), block.parts(y_nD), strict=True):
                torch.mm(h, down[e].t(), out=out)
        y_TD.index_add_(0, tokens_n, y_nD.to(wide))
    return y_TD, saved_RG, order_R if save else order_R.new_empty(0)


def _backward(
    grad_TD: Tensor,
    x_TD: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights_TK: Tensor,
    ids_TK: Tensor,
    saved_RG: Tensor,
    order_R: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x_TD, gate_up, down and weights_TK."""
    tokens_R, weights_R1 = sorted_pairs(weights_TK, order_R)
    counts = rows_per_expert(ids_TK, len(gate_up))
    grad_TD = grad_TD.to(x_TD.dtype)
    dx_TD = torch.zeros_like(x_TD, dtype=_wide(x_TD.dtype))
    dgate_up, ddown = torch.empty_like(gate_up), torch.empty_like(down)
    for expert, count in enumerate(counts):
        if not count:  # an expert without tokens has a gradient of zero
            dgate_up[expert].zero_()
            ddown[expert].zero_()
    dweights_R = torch.empty_like(weights_TK).flatten()
    plan = list(blocks(counts, x_TD.shape[1]))
    lengths = [sum(block.sizes) for block in plan]
    rows = (tokens_R, weights_R1, saved_RG, dweights_R)
    for block, tokens_n, weights_n1, gate_up_nG, dweights_n in zip(
        plan, *(tensor.split(lengths) for tensor in rows), strict=True
    ):
        x_nD, grad_nD = x_TD.index_select(0, tokens_n), grad_TD.index_select(0, tokens_n)
        grads, xs = block.parts(grad_nD), block.parts(x_nD)
        dh_nH = x_nD.new_empty(len(tokens_n), down.shape[2])
        for e, grad, out in zip(block.experts, grads, block.parts(dh_nH), strict=True):
            torch.mm(grad, down[e], out=out)
        dgate_up_nG, dweights, h_nH = weighted_swiglu_backward(dh_nH, gate_up_nG, weights_n1)
        dweights_n.copy_(dweights)
        dgate_ups, hs = block.parts(dgate_up_nG), block.parts(h_nH)
        for e, grad, h, dgate_up_row, x in zip(block.experts, grads, hs, dgate_ups, xs, strict=True):
            torch.mm(grad.t(), h, out=ddown[e])
            torch.mm(dgate_up_row.t(), x, out=dgate_up[e])
            torch.mm(dgate_up_row, gate_up[e], out=x)  # x is no longer needed: dx overwrites it
        dx_TD.index_add_(0, tokens_n, x_nD.to(dx_TD.dtype))
    dweights_TK = torch.empty_like(weights_TK)
    dweights_TK.view(-1)[order_R] = dweights_R
    return dx_TD.to(x_TD.dtype), dgate_up, ddown, dweights_TK


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a token's K results are summed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


_operator = torch.library.custom_op("minimoe::loop_experts", _forward, mutates_args=())

_backward_operator = torch.library.custom_op("minimoe::loop_experts_backward", _backward, mutates_args=())


@_operator.register_fake
def _(x_TD, gate_up, down, weights_TK, ids_TK, save):
    rows = ids_TK.numel() if save else 0
    y_TD = torch.empty_like(x_TD, dtype=_wide(x_TD.dtype))
    return y_TD, x_TD.new_empty(rows, gate_up.shape[1]), ids_TK.new_empty(rows)


@_backward_operator.register_fake
def _(grad_TD, x_TD, gate_up, down, weights_TK, ids_TK, saved_RG, order_R):
    return tuple(torch.empty_like(tensor) for tensor in (x_TD, gate_up, down, weights_TK))


def _setup_context(ctx, inputs, output):
    _, saved_RG, order_R = output
    ctx.save_for_backward(*inputs[:5], saved_RG, order_R)
    ctx.mark_non_differentiable(saved_RG, order_R)


def _autograd_backward(ctx, grad_TD, *_):
    return *_backward_operator(grad_TD, *ctx.saved_tensors), None, None


_operator.register_autograd(_autograd_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.minimoe.loop_experts)
def _(x, gate_up, down, weights, ids, save, out_shape=None, **kwargs) -> int:
    return 6 * math.prod(ids) * gate_up[2] * down[2]  # three products of D x H per row


@register_flop_formula(torch.ops.minimoe.loop_experts_backward)
def _(grad, x, gate_up, down, weights, ids, saved, order, out_shape=None, **kwargs) -> int:
    return 12 * math.prod(ids) * gate_up[2] * down[2]  # twice the forward pass: input and weight gradients
