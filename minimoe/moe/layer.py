"""The layer: a router, the routed experts, and a shared expert that every token visits.

    y = shared(x) + sum over the picked experts of weight * expert(x)        (V3, equation 12)

The residual connection is the caller's. ``y, routing = moe(x)``: the layer keeps nothing between calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from minimoe.moe.dispatch.capacity import places
from minimoe.moe.experts import DISPATCHES, Dispatch, Experts
from minimoe.moe.feed_forward import SwiGLU
from minimoe.moe.router import Choice, Router, Routing, Score
from minimoe.precision.recipe import Recipe, as_recipe

if TYPE_CHECKING:
    from minimoe.moe.expert_parallel.dispatcher import ExpertParallel


class MoE(nn.Module):
    """A mixture of experts with a shared expert (DeepSeekMoE, arXiv 2401.06066; V3, section 2.1.2).

    Args:
        dim: D, the width of x.
        expert_dim: H, the width of one expert.
        n_experts, top_k: E routed experts, K of them a token.
        n_shared: shared experts; one MLP of width n_shared * H, not scaled by ``scale``. 0 for none.
        score, normalize, scale, n_groups, top_groups: see ``routing.route``.
        dispatch: ``grouped`` | ``loop`` | ``capacity`` | ``reference``, see ``experts``; ``auto`` takes
            the fastest that drops nothing and runs these widths and this dtype.
        choice, jitter: see ``routing.Router``.
        capacity_factor: of dispatch ``capacity`` alone: places an expert has over an even share.

        recipe: how the matmuls of the experts, shared ones included, are done in 8 bits, a Recipe or its name
            (``minimoe.precision.RECIPES``). The gate stays in float32, as in V3.

    Parameters and buffers bear the names of the open checkpoints: ``gate.weight``,
    ``gate.e_score_correction_bias``, ``experts.gate_up_proj``, ``experts.down_proj``,
    ``shared_experts.{gate,up,down}_proj.weight``.

    ``presets`` has the arguments of published layers.

    Raises:
        ValueError: a size is not positive, the routing cannot be, or the recipe is unknown or goes together
            with a dispatch or choice of its own.
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
        if recipe is not None and (dispatch != "auto" or choice == "expert"):
            raise ValueError(
                f"a recipe ({recipe.name}) goes with dispatch 'auto' and choice 'token', not with "
                f"{dispatch!r} and {choice!r}"
            )
        for name, value in (("dim", dim), ("expert_dim", expert_dim), ("n_experts", n_experts)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        if n_shared < 0:
            raise ValueError(f"n_shared ({n_shared}) must be 0 (none) or more")
        if dispatch not in DISPATCHES:
            raise ValueError(f"dispatch must be one of {', '.join(DISPATCHES)}, not {dispatch!r}")
        places(1, 1, 1, capacity_factor)  # a factor that cannot be is refused here
        self.dim = dim
        self.dispatch: Dispatch = dispatch
        self.capacity_factor = capacity_factor
        self.gate = Router(
            dim,
            n_experts,
            top_k,
            score=score,
            normalize=normalize,
            scale=scale,
            n_groups=n_groups,
            top_groups=top_groups,
            choice=choice,
            jitter=jitter,
        )
        self.experts = Experts(dim, expert_dim, n_experts, recipe)
        self.shared_experts = SwiGLU(dim, n_shared * expert_dim, recipe) if n_shared else None
        self.parallel: ExpertParallel | None = None  # set by parallel.expert_parallel_

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        """x (..., D) -> y (..., D) and where each token went; T in the routing counts all leading axes.

        Args:
            mask: x's shape without D, bool, False for padding. Padding gets y = 0, is not counted, and
                is in no loss made from the routing.

        Raises:
            ValueError: the last axis of x is not D, the mask does not fit, or scores are NaN.
        """
        if x.shape[-1] != self.dim:
            raise ValueError(f"x has width {x.shape[-1]}, the layer has dim {self.dim}")
        x_TD = x.reshape(-1, self.dim)
        mask_T = None
        if mask is not None:
            if mask.shape != x.shape[:-1]:
                raise ValueError(
                    f"the mask is {tuple(mask.shape)}, x without its width is {tuple(x.shape[:-1])}; "
                    "give one bool a token, True for real ones"
                )
            mask_T = mask.reshape(-1)
            x_TD = x_TD.masked_fill(~mask_T.unsqueeze(-1), 0)
        routing = self.gate(x_TD, mask_T)
        dispatch, capacity = self._dispatch(len(x_TD))
        if self.parallel is None:
            y_TD = self.experts(x_TD, routing, dispatch, capacity)
            shared_TD = self._shared(x_TD)
        else:
            y_TD, shared_TD = self.parallel(
                self.experts, x_TD, routing, mask_T, dispatch, meanwhile=lambda: self._shared(x_TD)
            )
        if shared_TD is not None:
            y_TD = y_TD + shared_TD
        return y_TD.view(x.shape), routing

    def _shared(self, x_TD: Tensor) -> Tensor | None:
        return None if self.shared_experts is None else self.shared_experts(x_TD)

    def _dispatch(self, n_tokens: int) -> tuple[Dispatch, int | None]:
        """How the experts get their tokens, and how many each may take."""
        by_experts = self.gate.choice == "expert" and self.dispatch in ("auto", "capacity")
        if not by_experts and self.dispatch != "capacity":
            return self.dispatch, None
        factor = 1.0 if by_experts else self.capacity_factor  # experts that choose choose an even share
        return "capacity", places(n_tokens, len(self.gate.weight), self.gate.top_k, factor)
