"""Many matmuls in one: rows sorted into groups, each group with a matrix of its own.

``grouped_matmul`` is by definition ``matmul`` group by group; each group is quantised as if it stood alone.
Tiles of 1×128 along a row do not care about groups, so forward and input gradient quantise all rows at
once. Only the weight gradient, contracted over a group's rows, needs tiles that start with the group.

Dimensions: R rows of all groups, E groups, K contracted, N columns of a result, n rows of one group.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from minimoe.precision.matmul import check_operands, choose_backend, finish, meaning, multiply
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Cast, Recipe, as_recipe

WORK_FOR_BF16 = 2**24

"""Multiplications from which a group's bf16 matmul is faster than float32 (with AVX-512: 0.5 to 0.9 times as
fast at 2^21 to 2^23, 1.5 to 2 times at 2^25)."""


def grouped_matmul(
    a_RK: Tensor, b_EKN: Tensor | Quantized, ends_E: Tensor | Sequence[int], recipe: Recipe | str
) -> Tensor:
    """Rows ends[e-1] … ends[e] of a_RK times b_EKN[e] -> (R, N) in a's dtype. Differentiable.

    Args:
        a_RK: floats, the rows of group 0 first.
        b_EKN: (E, K, N) floats, or ``Quantized`` weights (no gradient).
        ends_E: (E,) where each group's rows end, as torch's grouped matmul has it; not decreasing, the last
            one R. Groups may be empty. A tensor on a GPU is read by the host, which waits for it.

    Raises:
        ValueError: the shapes or the ends do not fit, or an unknown recipe.
        TypeError: an operand is not of floats.
    """
    recipe = as_recipe(recipe)
    check_operands(a_RK, b_EKN, 3)
    ends = [0, *(ends_E.tolist() if isinstance(ends_E, Tensor) else ends_E)]
    if a_RK.ndim != 2 or len(ends) != b_EKN.shape[0] + 1 or ends[-1] != len(a_RK) or sorted(ends) != ends:
        raise ValueError(
            f"ends {ends[1:]} must be one for each of the {b_EKN.shape[0]} matrices, not decreasing, and end "
            f"at the number of rows of a {tuple(a_RK.shape)}"
        )
    sizes = [end - start for start, end in pairwise(ends)]
    with torch.autocast(a_RK.device.type, enabled=False):
        if isinstance(b_EKN, Quantized):
            return _rows(a_RK, b_EKN, sizes, recipe.activation, None, recipe).to(a_RK.dtype)
        return _GroupedMatmul.apply(a_RK, b_EKN, sizes, recipe)


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a_RK, b_EKN, sizes, recipe):
        ctx.save_for_backward(a_RK, b_EKN)
        ctx.sizes, ctx.recipe = sizes, recipe
        return _rows(a_RK, b_EKN, sizes, recipe.activation, recipe.weight, recipe).to(a_RK.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_RN):
        (a_RK, b_EKN), sizes, recipe = ctx.saved_tensors, ctx.sizes, ctx.recipe
        da = db = None
        if ctx.needs_input_grad[0]:
            da = _rows(g_RN, b_EKN.mT, sizes, recipe.gradient, recipe.weight, recipe).to(a_RK.dtype)
        if ctx.needs_input_grad[1]:
            db = _weights(g_RN, a_RK, sizes, recipe).to(b_EKN.dtype).mT
        return da, db, None, None


def _rows(
    a_RK: Tensor, b_EKN: Tensor | Quantized, sizes: list[int], cast_a: Cast | None, cast_b: Cast | None,
    recipe: Recipe,
) -> Tensor:  # fmt: skip
    """(R, N) float32: each group's rows times its matrix."""
    work = a_RK.numel() * b_EKN.shape[2] / max(len(sizes), 1)
    dtype = folded(a_RK, b_EKN, cast_a, cast_b, recipe, work)
    if dtype is not None:
        matrices = meaning(b_EKN, cast_b, -2, dtype)
        return grouped_product(cast_rows(a_RK, sizes, cast_a, dtype), matrices, sizes, recipe)
    groups = zip(a_RK.split(sizes), _matrices(b_EKN), strict=True)
    return torch.cat([multiply(a_nK, b_KN, cast_a, cast_b, recipe) for a_nK, b_KN in groups])


def _weights(g_RN: Tensor, a_RK: Tensor, sizes: list[int], recipe: Recipe) -> Tensor:
    """(E, N, K) float32: each group's gᵀ a, contracted over its rows."""
    work = g_RN.numel() * a_RK.shape[1] / max(len(sizes), 1)
    dtype = folded(g_RN.mT, a_RK, recipe.gradient, recipe.activation, recipe, work)
    if dtype is not None:
        g_groups = cast_along_rows(g_RN, sizes, recipe.gradient, dtype)
        return grouped_outer(g_groups, cast_along_rows(a_RK, sizes, recipe.activation, dtype), recipe)
    groups = zip(g_RN.split(sizes), a_RK.split(sizes), strict=True)
    casts = recipe.gradient, recipe.activation
    return torch.stack([multiply(g_nN.mT, a_nK, *casts, recipe) for g_nN, a_nK in groups])


def folded(
    a: Tensor, b: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None, recipe: Recipe, work: float
) -> torch.dtype | None:
    """The dtype of plain matmuls of what the codes mean, if that is what the recipe comes to; else None.

    ``work`` is how many multiplications a group has. A processor's bf16 matmul is made anew for every number
    of rows it meets, a tenth of a millisecond each: small groups are multiplied in float32 unless told.
    """
    if len(b.shape) == 3 and b.shape[0]:
        b = _matrices(b)[0]
    backend = choose_backend(a, b, cast_a, cast_b, recipe)
    if backend == "bf16" and recipe.backend == "auto" and a.device.type == "cpu" and work < WORK_FOR_BF16:
        backend = "fold"
    return {"fold": torch.float32, "bf16": torch.bfloat16}.get(backend)


def grouped_product(a_RK: Tensor, b_EKN: Tensor, sizes: list[int], recipe: Recipe) -> Tensor:
    """(R, N) float32: plain rows times plain matrices, the result rounded as the recipe says."""
    y_RN = a_RK.new_empty(len(a_RK), b_EKN.shape[2])
    for a_nK, b_KN, y_nN in zip(a_RK.split(sizes), b_EKN, y_RN.split(sizes), strict=True):
        if len(a_nK):
            torch.mm(a_nK, b_KN, out=y_nN)
    return y_RN.float() if y_RN.dtype == torch.bfloat16 else finish(y_RN, recipe)


def grouped_outer(g_groups: Sequence[Tensor], a_groups: Sequence[Tensor], recipe: Recipe) -> Tensor:
    """(E, N, K) float32: gᵀ a of each group's (n, N) and (n, K)."""
    dw_ENK = g_groups[0].new_zeros(len(g_groups), g_groups[0].shape[1], a_groups[0].shape[1])
    for g_nN, a_nK, dw_NK in zip(g_groups, a_groups, dw_ENK, strict=True):
        if len(g_nN):
            torch.mm(g_nN.mT, a_nK, out=dw_NK)
    return dw_ENK.float() if dw_ENK.dtype == torch.bfloat16 else finish(dw_ENK, recipe)


def row_by_row(cast: Cast | None) -> bool:
    """Whether a row's cast, contracted along itself, does not depend on other rows."""
    return cast is None or (cast.block is not None and cast.block[0] == 1)


def cast_rows(a_RK: Tensor, sizes: list[int], cast: Cast | None, dtype: torch.dtype) -> Tensor:
    """What the rows are after their cast, contracted along themselves."""
    if row_by_row(cast):
        return meaning(a_RK, cast, -1, dtype)
    return torch.cat([meaning(a_nK, cast, -1, dtype) for a_nK in a_RK.split(sizes)])


def cast_along_rows(
    x_RK: Tensor, sizes: list[int], cast: Cast | None, dtype: torch.dtype
) -> Sequence[Tensor]:
    """Each group's rows after a cast whose blocks run along the rows."""
    side = cast.block[1] if cast and cast.block else None
    if cast is None or side is None:
        return [meaning(x_nK, cast, -2, dtype) for x_nK in x_RK.split(sizes)]
    # Every group begins at a multiple of the block in a copy with zeros between: then one cast does for all.
    room = [-(-size // side) * side for size in sizes]
    if room != sizes:
        padded = x_RK.new_zeros(sum(room), x_RK.shape[1])
        for place, rows in zip(padded.split(room), x_RK.split(sizes), strict=True):
            place[: len(rows)] = rows
        x_RK = padded
    groups = meaning(x_RK, cast, -2, dtype).split(room)
    return [group[:size] for group, size in zip(groups, sizes, strict=True)]


def _matrices(b_EKN: Tensor | Quantized) -> Sequence[Tensor | Quantized]:
    if isinstance(b_EKN, Tensor):
        return b_EKN.unbind()
    parts = zip(b_EKN.data.unbind(), b_EKN.scale_codes.unbind(), strict=True)
    return [Quantized(data, scale, b_EKN.fmt, b_EKN.block) for data, scale in parts]
