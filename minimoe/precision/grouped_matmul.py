"""[speed] Grouped matmul under a recipe: rows sorted into groups, each group multiplied by its own matrix.

``grouped_matmul`` is by definition ``matmul`` group by group; each group is quantized independently. Tiles of
1×128 along a row do not depend on the group, so the forward product and the input gradient quantize all rows
at once. Only the weight gradient, contracted over a group's rows, needs tiles that start with the group.

Dimensions: R rows of all groups, E groups, K contracted, N columns of a result, n rows of one group.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from minimoe.precision.arguments import check_operands
from minimoe.precision.backends import choose_backend
from minimoe.precision.matmul import dequantized, multiply, round_output
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Cast, Recipe, as_recipe

MIN_PRODUCTS_FOR_BF16 = 2**24
"""Multiplications from which a group's bf16 matmul is faster than float32 (with AVX-512: 0.5 to 0.9 times as
fast at 2^21 to 2^23, 1.5 to 2 times at 2^25)."""


def grouped_matmul(
    a_RK: Tensor, b_EKN: Tensor | Quantized, ends_E: Tensor | Sequence[int], recipe: Recipe | str
) -> Tensor:
    """Rows ends[e-1] … ends[e] of a_RK times b_EKN[e] -> (R, N) in a's dtype. Differentiable.

    Args:
        a_RK: floats, the rows of group 0 first.
        b_EKN: (E, K, N) floats, or ``Quantized`` weights (no gradient).
        ends_E: (E,) where each group's rows end, as in torch's grouped matmul; not decreasing, the last one
            R. Groups may be empty. Reading a tensor on a GPU makes the host wait for it.

    Raises:
        ValueError: shapes or ends that do not match, or an unknown recipe.
        TypeError: operands that are not floats.
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
            return _multiply_rows(a_RK, b_EKN, sizes, recipe.activation, None, recipe).to(a_RK.dtype)
        return _GroupedMatmul.apply(a_RK, b_EKN, sizes, recipe)


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a_RK, b_EKN, sizes, recipe):
        ctx.save_for_backward(a_RK, b_EKN)
        ctx.sizes, ctx.recipe = sizes, recipe
        return _multiply_rows(a_RK, b_EKN, sizes, recipe.activation, recipe.weight, recipe).to(a_RK.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_RN):
        (a_RK, b_EKN), sizes, recipe = ctx.saved_tensors, ctx.sizes, ctx.recipe
        da = db = None
        if ctx.needs_input_grad[0]:
            da = _multiply_rows(g_RN, b_EKN.mT, sizes, recipe.gradient, recipe.weight, recipe).to(a_RK.dtype)
        if ctx.needs_input_grad[1]:
            db = _weight_gradient(g_RN, a_RK, sizes, recipe).to(b_EKN.dtype).mT
        return da, db, None, None


def _multiply_rows(
    a_RK: Tensor, b_EKN: Tensor | Quantized, sizes: list[int], cast_a: Cast | None, cast_b: Cast | None,
    recipe: Recipe,
) -> Tensor:  # fmt: skip
    """(R, N) float32: each group's rows times its matrix."""
    n_products = a_RK.numel() * b_EKN.shape[2] / max(len(sizes), 1)
    dtype = dequantized_dtype(a_RK, b_EKN, cast_a, cast_b, recipe, n_products)
    if dtype is None:
        groups = zip(a_RK.split(sizes), _matrices(b_EKN), strict=True)
        return torch.cat([multiply(a_nK, b_KN, cast_a, cast_b, recipe) for a_nK, b_KN in groups])
    if is_rowwise(cast_a):
        rows = dequantized(a_RK, cast_a, -1, dtype)
    else:
        rows = torch.cat([dequantized(a_nK, cast_a, -1, dtype) for a_nK in a_RK.split(sizes)])
    return grouped_product(rows, dequantized(b_EKN, cast_b, -2, dtype), sizes, recipe)


def _weight_gradient(g_RN: Tensor, a_RK: Tensor, sizes: list[int], recipe: Recipe) -> Tensor:
    """(E, N, K) float32: gᵀ a of each group, contracted over its rows."""
    casts = recipe.gradient, recipe.activation
    n_products = g_RN.numel() * a_RK.shape[1] / max(len(sizes), 1)
    dtype = dequantized_dtype(g_RN.mT, a_RK, *casts, recipe, n_products)
    if dtype is None:
        groups = zip(g_RN.split(sizes), a_RK.split(sizes), strict=True)
        return torch.stack([multiply(g_nN.mT, a_nK, *casts, recipe) for g_nN, a_nK in groups])
    g_groups, a_groups = (
        dequantized_groups(x, sizes, cast, dtype) for x, cast in zip((g_RN, a_RK), casts, strict=True)
    )
    return grouped_outer(g_groups, a_groups, recipe)


def dequantized_dtype(
    a: Tensor, b: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None, recipe: Recipe,
    n_products: float,
) -> torch.dtype | None:  # fmt: skip
    """The dtype in which plain matmuls of the dequantized operands compute what the recipe says; None if they
    do not.

    ``n_products`` is the number of multiplications per group. A CPU's bf16 matmul is prepared again for every
    new number of rows, a tenth of a millisecond each: ``auto`` multiplies small groups in float32.
    """
    if len(b.shape) == 3 and b.shape[0]:
        b = _matrices(b)[0]
    backend = choose_backend(a, b, cast_a, cast_b, recipe)
    small = a.device.type == "cpu" and n_products < MIN_PRODUCTS_FOR_BF16
    if backend == "bf16" and recipe.backend == "auto" and small:
        return torch.float32
    return {"dequantize": torch.float32, "bf16": torch.bfloat16}.get(backend)


def grouped_product(a_RK: Tensor, b_EKN: Tensor, sizes: list[int], recipe: Recipe) -> Tensor:
    """(R, N) float32: plain rows times plain matrices, the result rounded as the recipe says."""
    y_RN = a_RK.new_empty(len(a_RK), b_EKN.shape[2])
    for a_nK, b_KN, y_nN in zip(a_RK.split(sizes), b_EKN, y_RN.split(sizes), strict=True):
        if len(a_nK):
            torch.mm(a_nK, b_KN, out=y_nN)
    return y_RN.float() if y_RN.dtype == torch.bfloat16 else round_output(y_RN, recipe)


def grouped_outer(g_groups: Sequence[Tensor], a_groups: Sequence[Tensor], recipe: Recipe) -> Tensor:
    """(E, N, K) float32: gᵀ a of each group's (n, N) and (n, K)."""
    dw_ENK = g_groups[0].new_zeros(len(g_groups), g_groups[0].shape[1], a_groups[0].shape[1])
    for g_nN, a_nK, dw_NK in zip(g_groups, a_groups, dw_ENK, strict=True):
        if len(g_nN):
            torch.mm(g_nN.mT, a_nK, out=dw_NK)
    return dw_ENK.float() if dw_ENK.dtype == torch.bfloat16 else round_output(dw_ENK, recipe)


def is_rowwise(cast: Cast | None) -> bool:
    """Whether the cast of a row, contracted along the row, does not depend on other rows."""
    return cast is None or (cast.block is not None and cast.block[0] == 1)


def dequantized_groups(
    x_RK: Tensor, sizes: list[int], cast: Cast | None, dtype: torch.dtype
) -> Sequence[Tensor]:
    """Each group's rows after a cast that is contracted over the rows."""
    side = cast.block[1] if cast and cast.block else None
    if cast is None or side is None:
        return [dequantized(x_nK, cast, -2, dtype) for x_nK in x_RK.split(sizes)]
    # Padded with zeros so that every group starts at a multiple of the block, one cast serves all groups.
    padded_sizes = [-(-size // side) * side for size in sizes]
    if padded_sizes != sizes:
        padded = x_RK.new_zeros(sum(padded_sizes), x_RK.shape[1])
        for target, rows in zip(padded.split(padded_sizes), x_RK.split(sizes), strict=True):
            target[: len(rows)] = rows
        x_RK = padded
    groups = dequantized(x_RK, cast, -2, dtype).split(padded_sizes)
    return [group[:size] for group, size in zip(groups, sizes, strict=True)]


def _matrices(b_EKN: Tensor | Quantized) -> Sequence[Tensor | Quantized]:
    if isinstance(b_EKN, Tensor):
        return b_EKN.unbind()
    parts = zip(b_EKN.data.unbind(), b_EKN.scale_codes.unbind(), strict=True)
    return [Quantized(data, scale, b_EKN.fmt, b_EKN.block) for data, scale in parts]
