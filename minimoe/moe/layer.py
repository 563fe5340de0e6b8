"""The mixture-of-experts layer: a router, the routed experts, and a shared expert that sees every token.

    y = shared(x) + sum over the picked experts of weight * expert(x)        (V3, equation 12)

The residual connection is the caller's. ``y, routing = moe(x)``: the layer stores nothing between calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from minimoe.moe.arguments import Choice, Dispatch, Score, check_capacity_factor, check_layer, check_mask
from minimoe.moe.dispatch.capacity import expert_capacity
from minimoe.moe.expert_choice import ExpertChoiceRouter
from minimoe.moe.experts import Experts
from minimoe.moe.feed_forward import SwiGLU
from minimoe.moe.router import Router, Routing
from minimoe.precision.recipe import Recipe, as_recipe

if TYPE_CHECKING:
    from minimoe.moe.expert_parallel.dispatcher import ExpertParallel


class MoE(nn.Module):
    """A mixture of experts with a shared expert (DeepSeekMoE, arXiv 2401.06066; V3, section 2.1.2).

    Args:
        dim: D, the width of x.
        expert_dim: H, the width of one expert.
        n_experts, top_k: E routed experts, K of them per token.
        n_shared: shared experts, computed as one SwiGLU of width n_shared * H and not scaled by ``scale``; 0
            for none.
        score, normalize, scale, n_groups, top_groups, jitter: see ``router``.
        dispatch: ``auto`` | ``grouped`` | ``loop`` | ``capacity`` | ``reference``; see ``experts``.
        choice: ``token``, each token picks its experts, or ``expert``; see ``expert_choice``.
        capacity_factor: for dispatch ``capacity`` only: tokens per expert, relative to an even share.
        recipe: the low-precision recipe for the matmuls of all experts, a Recipe or its name
            (``minimoe.precision.RECIPES``). The gate stays in float32, as in V3.

    Parameters and buffers are named as in published checkpoints: ``gate.weight``,
    ``gate.e_score_correction_bias``, ``experts.gate_up_proj``, ``experts.down_proj``,
    ``shared_experts.{gate,up,down}_proj.weight``. ``presets`` has the arguments of published layers.

    Raises:
        ValueError: a size is not positive, the routing is invalid, or the recipe is unknown or combined with
            a dispatch or choice other than the default.
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
        choice: Choice = "token",
        jitter: float = 0.0,
        capacity_factor: float = 1.25,
        recipe: Recipe | str | None = None,
    ) -> None:
        super().__init__()
        recipe = None if recipe is None else as_recipe(recipe)
        check_layer(dim, expert_dim, n_experts, n_shared, choice, dispatch, recipe)
        check_capacity_factor(capacity_factor)
        self.dim = dim
        self.dispatch: Dispatch = dispatch
        self.capacity_factor = capacity_factor
        self.gate = (Router if choice == "token" else ExpertChoiceRouter)(
            dim,
            n_experts,
            top_k,
            score=score,
            normalize=normalize,
            scale=scale,
            n_groups=n_groups,
            top_groups=top_groups,
            jitter=jitter,
        )
        self.experts = Experts(dim, expert_dim, n_experts, recipe)
        self.shared_experts = SwiGLU(dim, n_shared * expert_dim, recipe) if n_shared else None
        self.parallel: ExpertParallel | None = None  # set by parallelize.expert_parallel_

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        """x (..., D) -> y (..., D) and the routing, whose T counts all leading axes.

        Args:
            mask: x's shape without D, bool, False for padding. Padding gets y = 0, is not counted, and does
                not contribute to losses computed from the routing.

        Raises:
            ValueError: the last axis of x is not D, the mask does not fit, or scores are NaN.
        """
        if x.shape[-1] != self.dim:
            raise ValueError(f"x has width {x.shape[-1]}, but the layer has dim {self.dim}")
        x_TD, mask_T = x.reshape(-1, self.dim), None
        if mask is not None:
            check_mask(mask, x.shape[:-1])
            mask_T = mask.reshape(-1)
            x_TD = x_TD.masked_fill(~mask_T.unsqueeze(-1), 0)
        routing = self.gate(x_TD, mask_T)
        dispatch, capacity = self._dispatch(len(x_TD))
        if self.parallel is None:
            y_TD, shared_TD = self.experts(x_TD, routing, dispatch, capacity), self._shared(x_TD)
        else:
            y_TD, shared_TD = self.parallel(
                self.experts, x_TD, routing, mask_T, dispatch, overlapped=lambda: self._shared(x_TD)
            )
        if shared_TD is not None:
            y_TD = y_TD + shared_TD
        return y_TD.view(x.shape), routing

    def _shared(self, x_TD: Tensor) -> Tensor | None:
        return None if self.shared_experts is None else self.shared_experts(x_TD)

    def _dispatch(self, n_tokens: int) -> tuple[Dispatch, int | None]:
        """The dispatcher to run, and its capacity."""
        expert_choice = self.gate.choice == "expert" and self.dispatch in ("auto", "capacity")
        if not expert_choice and self.dispatch != "capacity":
            return self.dispatch, None
        factor = 1.0 if expert_choice else self.capacity_factor  # experts choose an even share each
        return "capacity", expert_capacity(n_tokens, len(self.gate.weight), self.gate.top_k, factor)
