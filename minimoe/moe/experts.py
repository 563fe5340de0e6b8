"""The experts: one set of weights, and interchangeable ways to bring tokens to them and back.

    y_t = sum over the K picked experts of  weight * down( silu(gate x_t) * (up x_t) )

``reference`` says just that, token by token. The other two sort the R = T*K (token, expert) pairs by
expert, so that each expert sees its tokens as one contiguous block, and undo the sort afterwards:
``loop`` multiplies block by block in Python, ``grouped`` gives all blocks to one call of torch's
grouped matmul, without the host ever learning how long each block is.

Not done here: capacity limits and token dropping (GShard, Switch); nothing is ever dropped.

Dimensions: T tokens, D model width, H expert width, E experts, K experts a token, R = T*K.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimoe.moe import grouped
from minimoe.moe.routing import Routing

Dispatch = Literal["auto", "grouped", "loop", "reference"]
DISPATCHES: tuple[str, ...] = ("auto", "grouped", "loop", "reference")


class Experts(nn.Module):
    """E SwiGLU networks of width H, their weights stacked: ``gate_up_proj`` (E, 2H, D), the gate's
    rows first, and ``down_proj`` (E, D, H)."""

    def __init__(self, dim: int, expert_dim: int, n_experts: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(n_experts, 2 * expert_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(n_experts, dim, expert_dim))
        nn.init.normal_(self.gate_up_proj, std=0.02)
        nn.init.normal_(self.down_proj, std=0.02)

    def forward(self, x_TD: Tensor, routing: Routing, dispatch: Dispatch = "auto") -> Tensor:
        """x_TD (T, D), its routing -> y_TD (T, D), in the dtype the matmuls ran in.

        Raises:
            ValueError: ``dispatch`` is unknown, or ``grouped`` cannot run these widths or this dtype.
        """
        if dispatch not in DISPATCHES:
            raise ValueError(f"dispatch must be one of {', '.join(DISPATCHES)}, not {dispatch!r}")
        if torch.is_autocast_enabled(x_TD.device.type):
            # Autocast knows nn.Linear but not grouped_mm: cast here, so that all three ways agree.
            dtype = torch.get_autocast_dtype(x_TD.device.type)
            x_TD = x_TD.to(dtype)
            gate_up, down = self.gate_up_proj.to(dtype), self.down_proj.to(dtype)
        else:
            gate_up, down = self.gate_up_proj, self.down_proj

        if dispatch == "reference":
            return _reference(x_TD, gate_up, down, routing)
        obstacle = grouped.obstacle(x_TD, dim=gate_up.shape[2], expert_dim=down.shape[2])
        if dispatch == "grouped" and obstacle:
            raise ValueError(f"dispatch 'grouped' cannot run here: {obstacle}; use 'loop' or 'auto'")
        matmul = _loop_matmul if dispatch == "loop" or obstacle else _grouped_matmul
        return _sorted(x_TD, gate_up, down, routing, matmul)


def _expert(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One expert: x (..., D), gate_up (2H, D), down (D, H) -> (..., D)."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def _reference(x_TD: Tensor, gate_up: Tensor, down: Tensor, routing: Routing) -> Tensor:
    """The oracle: the equation, for each token and each of its experts. Slow, and plainly right."""
    outputs = []
    for x_D, weights_K, ids_K in zip(x_TD, routing.weights_TK, routing.ids_TK, strict=True):
        y_D = torch.zeros_like(x_D)
        for weight, expert in zip(weights_K, ids_K.tolist(), strict=True):
            y_D = y_D + weight.to(x_D.dtype) * _expert(x_D, gate_up[expert], down[expert])
        outputs.append(y_D)
    if outputs:
        return torch.stack(outputs)
    # No token: still touch all that learns, so that its gradient is zero and not None.
    return x_TD + 0 * (gate_up.sum() + down.sum() + routing.weights_TK.sum().to(x_TD.dtype))


def _sorted(x_TD: Tensor, gate_up: Tensor, down: Tensor, routing: Routing, matmul) -> Tensor:
    """Sort the pairs by expert, multiply expert by expert, put the results back and add them up."""
    top_k = routing.ids_TK.shape[1]
    order_R = routing.ids_TK.flatten().argsort(stable=True)
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(len(order_R), device=order_R.device)

    x_RD = _TakeRows.apply(x_TD, order_R, inverse_R, top_k)
    gate_RH, up_RH = matmul(x_RD, gate_up, routing.counts_E).chunk(2, dim=-1)
    y_RD = matmul(F.silu(gate_RH) * up_RH, down, routing.counts_E)
    y_TKD = rearrange(_TakeRows.apply(y_RD, inverse_R, order_R, 1), "(t k) d -> t k d", k=top_k)
    return (y_TKD * routing.weights_TK.to(y_TKD.dtype).unsqueeze(-1)).sum(1)


class _TakeRows(torch.autograd.Function):
    """Rows ``order`` of x, each row of x standing ``repeats`` times in a row beforehand.

    ``order`` is a permutation, so the gradient is the inverse gather and a sum over the repeats:
    autograd's own index_add does the same by scattering, slower, and on a GPU in an order that
    changes from run to run.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, order_R: Tensor, inverse_R: Tensor, repeats: int) -> Tensor:
        ctx.save_for_backward(inverse_R)
        ctx.repeats = repeats
        return x_ND.index_select(0, order_R if repeats == 1 else order_R // repeats)

    @staticmethod
    def backward(ctx, grad_RD: Tensor):
        (inverse_R,) = ctx.saved_tensors
        grad = grad_RD.index_select(0, inverse_R)
        if ctx.repeats > 1:
            grad = rearrange(grad, "(n k) d -> n k d", k=ctx.repeats).sum(1)
        return grad, None, None, None


def _loop_matmul(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """Block e of x times expert e's weight, one matmul after another. Waits for the counts."""
    blocks = x_RI.split(counts_E.tolist())
    return torch.cat([F.linear(x, w) for x, w in zip(blocks, weight_EOI, strict=True)])


def _grouped_matmul(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """The same in one call, which never waits."""
    return grouped.grouped_matmul(x_RI, weight_EOI, counts_E.cumsum(0).to(torch.int32))
