"""The layer: a router, the routed experts, and a shared expert that every token visits.

    y = shared(x) + sum over the picked experts of weight * expert(x)        (V3, equation 12)

The residual connection is the caller's. ``y, routing = moe(x)``: the layer keeps nothing between calls.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from minimoe.moe.experts import DISPATCHES, Dispatch, Experts
from minimoe.moe.routing import Router, Routing, Score


class SwiGLU(nn.Module):
    """down( silu(gate x) * up x ), without biases (Shazeer, arXiv 2002.05202). x (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)
        for linear in (self.gate_proj, self.up_proj, self.down_proj):
            nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """A mixture of experts with a shared expert (DeepSeekMoE, arXiv 2401.06066; V3, section 2.1.2).

    Args:
        dim: D, the width of x.
        expert_dim: H, the width of one expert.
        n_experts, top_k: E routed experts, K of them a token.
        n_shared: shared experts; one MLP of width n_shared * H, not scaled by ``scale``. 0 for none.
        score, normalize, scale, n_groups, top_groups: see ``routing.route``.
        dispatch: ``grouped`` | ``loop`` | ``reference``, see ``experts``; ``auto`` takes the fastest
            that runs these widths and this dtype.

    Parameters and buffers bear the names of the open checkpoints: ``gate.weight``,
    ``gate.e_score_correction_bias``, ``experts.gate_up_proj``, ``experts.down_proj``,
    ``shared_experts.{gate,up,down}_proj.weight``.

    Raises:
        ValueError: a size is not positive, or the routing cannot be.
    """

    def __init__(
        self,
        dim: int,
        expert_dim: int,
        n_experts: int,
        top_k: int,
        *,
        n_shared: int = 1,
        score: Score = "sigmoid",
        normalize: bool = True,
        scale: float = 1.0,
        n_groups: int = 1,
        top_groups: int | None = None,
        dispatch: Dispatch = "auto",
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("expert_dim", expert_dim), ("n_experts", n_experts)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        if n_shared < 0:
            raise ValueError(f"n_shared ({n_shared}) must be 0 (none) or more")
        if dispatch not in DISPATCHES:
            raise ValueError(f"dispatch must be one of {', '.join(DISPATCHES)}, not {dispatch!r}")
        self.dim = dim
        self.dispatch: Dispatch = dispatch
        self.gate = Router(
            dim,
            n_experts,
            top_k,
            score=score,
            normalize=normalize,
            scale=scale,
            n_groups=n_groups,
            top_groups=top_groups,
        )
        self.experts = Experts(dim, expert_dim, n_experts)
        self.shared_experts = SwiGLU(dim, n_shared * expert_dim) if n_shared else None

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x (..., D) -> y (..., D) and where each token went; T in the routing counts all leading axes.

        Raises:
            ValueError: the last axis of x is not D.
        """
        if x.shape[-1] != self.dim:
            raise ValueError(f"x has width {x.shape[-1]}, the layer has dim {self.dim}")
        x_TD = x.reshape(-1, self.dim)
        routing = self.gate(x_TD)
        y_TD = self.experts(x_TD, routing, self.dispatch)
        if self.shared_experts is not None:
            y_TD = y_TD + self.shared_experts(x_TD)
        return y_TD.view(x.shape), routing
