"""The arguments of a mixture-of-experts layer: their types and their validation.

Dimensions: T tokens, E routed experts.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from minimoe.precision.recipe import Recipe

Score = Literal["softmax", "sigmoid"]

Choice = Literal["token", "expert"]

Dispatch = Literal["auto", "grouped", "loop", "capacity", "reference"]

DISPATCHES: tuple[str, ...] = get_args(Dispatch)


def check_layer(
    dim: int,
    expert_dim: int,
    n_experts: int,
    n_shared: int,
    choice: str,
    dispatch: str,
    recipe: Recipe | None,
) -> None:
    """Raise ValueError for invalid arguments of ``MoE``, those of its router excepted."""
    for name, value in (("dim", dim), ("expert_dim", expert_dim), ("n_experts", n_experts)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    if n_shared < 0:
        raise ValueError(f"n_shared ({n_shared}) must be 0 (none) or more")
    if choice not in get_args(Choice):
        raise ValueError(f"choice must be 'token' or 'expert', not {choice!r}")
    check_dispatch(dispatch, recipe)
    if recipe is not None and choice == "expert":
        raise ValueError(f"choice 'expert' does not support recipes ({recipe.name}); use 'token'")


def check_dispatch(dispatch: str, recipe: Recipe | None) -> None:
    """Raise ValueError for an unknown dispatcher, or one that cannot compute under the recipe."""
    if dispatch not in DISPATCHES:
        raise ValueError(f"dispatch must be one of {', '.join(DISPATCHES)}, not {dispatch!r}")
    if recipe is not None and dispatch != "auto":
        raise ValueError(f"dispatch {dispatch!r} does not support recipes ({recipe.name}); use 'auto'")


def check_routing(n_experts: int, top_k: int, score: str, n_groups: int, top_groups: int | None) -> None:
    """Raise ValueError for invalid arguments of ``router.route``."""
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"score must be 'softmax' or 'sigmoid', not {score!r}")
    if not 1 <= top_k <= n_experts:
        raise ValueError(f"top_k ({top_k}) must be between 1 and n_experts ({n_experts})")
    if n_groups < 1 or n_experts % n_groups:
        raise ValueError(f"n_experts ({n_experts}) must be divisible by n_groups ({n_groups})")
    if top_groups is None:
        return
    if not 1 <= top_groups <= n_groups:
        raise ValueError(f"top_groups ({top_groups}) must be between 1 and n_groups ({n_groups})")
    if top_k % top_groups:
        raise ValueError(
            f"top_k ({top_k}) must be divisible by top_groups ({top_groups}): groups are ranked by their "
            "top_k / top_groups best experts"
        )
    if top_k // top_groups > n_experts // n_groups:
        raise ValueError(
            f"top_k / top_groups ({top_k // top_groups}) must not exceed the experts per group "
            f"({n_experts // n_groups}); raise top_groups"
        )


def check_jitter(jitter: float) -> None:
    """Raise ValueError for noise that could change a value's sign."""
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter ({jitter}) must be at least 0 and below 1; Switch uses 0.01")


def check_capacity_factor(factor: float) -> None:
    """Raise ValueError for a factor that is not positive and finite."""
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f"capacity_factor ({factor}) must be above 0; 1 is an even share, Switch uses 1.25")


def check_mask(mask: Tensor | None, shape: torch.Size) -> None:
    """Raise ValueError for a mask that is not one bool per token, where tokens have this shape."""
    if mask is not None and (mask.shape != shape or mask.dtype != torch.bool):
        raise ValueError(
            f"the mask must be bool with one entry per token, {tuple(shape)}, True for real tokens; "
            f"it is {mask.dtype} {tuple(mask.shape)}"
        )


def check_not_nan(scores_TE: Tensor) -> None:
    """Raise ValueError for NaN on a CPU. On a GPU the check would wait for the device, so there is none."""
    if scores_TE.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if math.isnan(scores_TE.detach().sum().item()):  # the sum is NaN if any score is
        bad = int(scores_TE.isnan().any(-1).sum())
        raise ValueError(
            f"the scores of {bad} of {len(scores_TE)} tokens are NaN; look for NaN or infinite values in "
            "the layer's input and in gate.weight, or lower the learning rate"
        )
