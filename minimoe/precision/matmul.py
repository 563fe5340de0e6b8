"""FP8 matmul with FP32 accumulation: plain tensors in, quantized inside under a recipe, plain tensors out.

``multiply`` is one product, without a gradient. ``matmul`` is differentiable: the two products of its
backward pass are quantized by the same recipe. (Autograd through a cast to 8 bits would instead cast the
*gradient* to unscaled 8 bits.)

Dimensions: M, N, K of a product, K contracted.
"""

import math

import torch
from torch import Tensor

from minimoe.precision.arguments import check_operands
from minimoe.precision.backends import choose_backend
from minimoe.precision.codec import decode
from minimoe.precision.formats import BF16, FP32, Format
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Cast, Recipe, as_recipe
from minimoe.precision.rounding import round_to
from minimoe.precision.scaled_mm import scaled_mm
from minimoe.precision.scales import spread


def matmul(a_MK: Tensor, b_KN: Tensor | Quantized, recipe: Recipe | str) -> Tensor:
    """a_MK @ b_KN, a cast as the recipe's activation and b as its weight -> (..., M, N) in a's dtype.

    Args:
        a_MK: (..., M, K) floats; leading axes are more rows.
        b_KN: (K, N) floats; or ``Quantized``, weights without a high-precision original (for inference).

    The gradient of the result is cast as the recipe's gradient; a ``Quantized`` b_KN receives none.

    Raises:
        ValueError: shapes that do not match, an unknown recipe, or a backend that cannot run here.
        TypeError: operands that are not floats.
    """
    recipe = as_recipe(recipe)
    check_operands(a_MK, b_KN)
    rows = a_MK.flatten(0, -2)
    with torch.autocast(a_MK.device.type, enabled=False):  # it would run float32 matmuls in 16 bits
        if isinstance(b_KN, Quantized):
            y = multiply(rows, b_KN, recipe.activation, None, recipe).to(a_MK.dtype)
        else:
            y = _Matmul.apply(rows, b_KN, recipe)
    return y.view(*a_MK.shape[:-1], b_KN.shape[-1])


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a_MK, b_KN, recipe):
        ctx.save_for_backward(a_MK, b_KN)
        ctx.recipe = recipe
        return multiply(a_MK, b_KN, recipe.activation, recipe.weight, recipe).to(a_MK.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_MN):
        (a_MK, b_KN), recipe = ctx.saved_tensors, ctx.recipe
        da = db = None
        if ctx.needs_input_grad[0]:
            da = multiply(g_MN, b_KN.mT, recipe.gradient, recipe.weight, recipe).to(a_MK.dtype)
        if ctx.needs_input_grad[1]:
            # As (N, K) and transposed, because weights are stored with their outputs first.
            db = multiply(g_MN.mT, a_MK, recipe.gradient, recipe.activation, recipe).mT.to(b_KN.dtype)
        return da, db, None


def multiply(
    a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None, recipe: Recipe
) -> Tensor:
    """One product (M, N), float32: operands under these casts, sums and result as the recipe says."""
    backend = choose_backend(a_MK, b_KN, cast_a, cast_b, recipe)
    if backend == "hardware":
        y_MN = scaled_mm(a_MK, b_KN, cast_a, cast_b)
    elif backend == "blocks":
        y_MN = _multiply_blocks(a_MK, b_KN, cast_a, cast_b, recipe)
    else:
        dtype = torch.bfloat16 if backend == "bf16" else torch.float32
        y_MN = (dequantized(a_MK, cast_a, -1, dtype) @ dequantized(b_KN, cast_b, -2, dtype)).float()
    return round_output(y_MN, recipe)


def _multiply_blocks(
    a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None, recipe: Recipe
) -> Tensor:
    """The definition: along K, wherever a scale changes, the accumulator's sum of codes is scaled, added to a
    float32 total and restarted."""
    codes_a, scale_a, side_a, fmt_a = _codes(a_MK, cast_a, -1)
    codes_b, scale_b, side_b, fmt_b = _codes(b_KN, cast_b, -2)
    depth = codes_a.shape[1]
    side = math.gcd(side_a or 0, side_b or 0) or max(depth, 1)
    total = codes_a.new_zeros(len(codes_a), codes_b.shape[1])
    for start in range(0, depth, side):
        k = slice(start, start + side)
        partial = recipe.accumulator.matmul(codes_a[:, k], codes_b[k], formats=(fmt_a, fmt_b))
        i, j = (start // s if s else 0 for s in (side_a, side_b))
        # in float64: neither the scales' product nor a scale times the sum may overflow before the other
        total += (partial.double() * scale_a[:, i, None] * scale_b[j]).float()
    return total


def _codes(
    x: Tensor | Quantized, cast: Cast | None, contracted: int
) -> tuple[Tensor, Tensor, int | None, Format]:
    """The codes as numbers; their scales, one per row and block of K (in x's order of axes); the length of a
    block of K (None: all of it); the format."""
    if not isinstance(x, Quantized):
        if cast is None:
            return x.float(), x.new_ones(1, 1, dtype=torch.float32), None, FP32
        x = cast.quantize(x, contracted)
    sides = x.block or (None, None)
    keep = (sides[0], 1) if contracted == -1 else (1, sides[1])
    return decode(x.data, x.fmt), spread(x.scale, keep, x.shape), sides[contracted], x.fmt


def dequantized(x: Tensor | Quantized, cast: Cast | None, contracted: int, dtype: torch.dtype) -> Tensor:
    """The operand after its cast, as a plain tensor."""
    if isinstance(x, Quantized):
        return x.dequantize(dtype)
    return x.to(dtype) if cast is None else cast.fake_quantize(x, contracted, dtype)


def round_output(y: Tensor, recipe: Recipe) -> Tensor:
    """The result rounded to the recipe's output format."""
    if recipe.output is None:
        return y
    if recipe.output == BF16:
        return y.bfloat16().float()
    return round_to(y, recipe.output, overflow="inf" if recipe.output.has_infinity else "saturate")
