"""Matmuls under a recipe: plain tensors in, quantised inside, plain tensors out.

``multiply`` is one product, without a gradient; ``matmul`` has one, whose two products are quantised by the
same recipe. (Differentiating through casts to 8 bits would instead cast the *gradient* to unscaled 8 bits.)

Dimensions: M, N, K of a product, K contracted.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.codec import decode
from minimoe.precision.formats import BF16, FP32, Format
from minimoe.precision.quantize import Quantized, spread
from minimoe.precision.recipe import Backend, Cast, Recipe, as_recipe
from minimoe.precision.rounding import round_to
from minimoe.precision.scaled_mm import hardware_multiply, unsupported_reason


def matmul(a_MK: Tensor, b_KN: Tensor | Quantized, recipe: Recipe | str) -> Tensor:
    """a_MK @ b_KN with a as the recipe's activation and b as its weight -> (..., M, N) in a's dtype.

    Args:
        a_MK: (..., M, K) floats; leading axes are more rows.
        b_KN: (K, N) floats; or ``Quantized``, weights that have no high-precision original (inference).

    The gradient of the result is quantised as the recipe's gradient; b_KN as ``Quantized`` gets none.

    Raises:
        ValueError: the shapes do not fit, an unknown recipe, or one that asks for hardware that is not here.
        TypeError: an operand is not of floats.
    """
    recipe = as_recipe(recipe)
    check_operands(a_MK, b_KN)
    rows = a_MK.flatten(0, -2)
    with torch.autocast(a_MK.device.type, enabled=False):  # it would multiply in 16 bits what is meant for 32
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
            # As (N, K) and turned round, because weights lie in memory by their outputs.
            db = multiply(g_MN.mT, a_MK, recipe.gradient, recipe.activation, recipe).mT.to(b_KN.dtype)
        return da, db, None


def multiply(
    a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None, recipe: Recipe
) -> Tensor:
    """One product (M, N), float32: operands cast as told, sums and result as the recipe says."""
    backend = choose_backend(a_MK, b_KN, cast_a, cast_b, recipe)
    if backend == "hardware":
        if problem := unsupported_reason(a_MK, b_KN, cast_a, cast_b):
            raise ValueError(f"backend 'hardware' cannot do this: {problem}; use 'auto' or 'fold'")
        y_MN = hardware_multiply(a_MK, b_KN, cast_a, cast_b)  # type: ignore[arg-type]
    elif backend == "blocks":
        y_MN = _blocks(a_MK, b_KN, cast_a, cast_b, recipe)
    else:
        dtype = torch.bfloat16 if backend == "bf16" else torch.float32
        y_MN = (meaning(a_MK, cast_a, -1, dtype) @ meaning(b_KN, cast_b, -2, dtype)).float()
        if backend == "bf16":
            return y_MN
    return finish(y_MN, recipe)


def finish(y: Tensor, recipe: Recipe) -> Tensor:
    """The result rounded to the recipe's output."""
    if recipe.output is None:
        return y
    if recipe.output == BF16:
        return y.bfloat16().float()
    return round_to(y, recipe.output, overflow="inf" if recipe.output.has_infinity else "saturate")


def meaning(x: Tensor | Quantized, cast: Cast | None, contracted: int, dtype: torch.dtype) -> Tensor:
    """What the operand is after its cast, as a plain tensor."""
    if isinstance(x, Quantized):
        return x.dequantize(dtype)
    return x.to(dtype) if cast is None else cast.fake(x, contracted, dtype)


def choose_backend(
    a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None, recipe: Recipe
) -> Backend:
    """The recipe's backend, or the fastest that computes what the recipe says."""
    exact = _exact_in_bf16(a_MK, cast_a) and _exact_in_bf16(b_KN, cast_b)
    if recipe.backend == "bf16" and not exact:
        raise ValueError(
            "backend 'bf16' would round these operands, which are not exact in bf16; take 'fold'"
        )
    if recipe.backend != "auto":
        return recipe.backend
    if recipe.accumulator != Accumulator.fp32():
        return "blocks"
    # A GPU's own sums are not kept in float32 throughout; but they are what the recipe is meant to run on.
    if a_MK.device.type == "cuda" and unsupported_reason(a_MK, b_KN, cast_a, cast_b) is None:
        return "hardware"
    return "bf16" if recipe.output == BF16 and exact and multiplies_bf16_fast(a_MK.device) else "fold"


def _exact_in_bf16(x: Tensor | Quantized, cast: Cast | None) -> bool:
    if isinstance(x, Quantized):
        return x.scale_codes.dtype == torch.float8_e8m0fnu
    return x.dtype == torch.bfloat16 if cast is None else cast.exact_in_bf16


@lru_cache
def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether the processor has instructions for products of bf16 with sums in float32."""
    if device.type != "cpu":
        return device.type == "cuda"
    if not hasattr(torch.cpu, "get_capabilities"):  # not in the oldest torch that is supported
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _blocks(
    a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None, recipe: Recipe
) -> Tensor:
    """The definition. Along K the sum of codes is scaled, added in float32 and begun anew wherever a scale
    changes; within a block it is the accumulator's."""
    codes_a, scale_a, side_a, fmt_a = _codes(a_MK, cast_a, -1)
    codes_b, scale_b, side_b, fmt_b = _codes(b_KN, cast_b, -2)
    depth = codes_a.shape[1]
    side = math.gcd(side_a or 0, side_b or 0) or max(depth, 1)
    total = codes_a.new_zeros(len(codes_a), codes_b.shape[1])
    for start in range(0, depth, side):
        within = slice(start, start + side)
        partial = recipe.accumulator.matmul(codes_a[:, within], codes_b[within], formats=(fmt_a, fmt_b))
        i, j = (start // s if s else 0 for s in (side_a, side_b))
        # in float64: neither the scales' product nor one scale with the sum may overflow by itself
        total += (partial.double() * scale_a[:, i, None] * scale_b[j]).float()
    return total


def _codes(
    x: Tensor | Quantized, cast: Cast | None, contracted: int
) -> tuple[Tensor, Tensor, int | None, Format]:
    """The codes as numbers, their scales (one a row and block of K, or K first if that axis comes first),
    how long a block of K is (None: all of it), and the format."""
    if not isinstance(x, Quantized):
        if cast is None:
            return x.float(), x.new_ones(1, 1, dtype=torch.float32), None, FP32
        x = cast.quantize(x, contracted)
    sides = x.block or (None, None)
    along = contracted + 2
    keep = (1, sides[1]) if along == 0 else (sides[0], 1)
    return decode(x.data, x.fmt), spread(x.scale, keep, x.shape), sides[along], x.fmt


def check_operands(a: Tensor, b: Tensor | Quantized, axes: int = 2) -> None:
    """Raises TypeError for what is not floats and ValueError for shapes that do not fit.

    Args:
        axes: 2 for one b (K, N), 3 for a stack (E, K, N).
    """
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Quantized) and not (isinstance(x, Tensor) and x.is_floating_point()):
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a tensor of floats, not {kind}; convert it first")
    if a.ndim < 2 or len(b.shape) != axes or a.shape[-1] != b.shape[-2]:
        wanted = "(K, N)" if axes == 2 else "(E, K, N)"
        raise ValueError(
            f"a is {tuple(a.shape)} and b is {tuple(b.shape)}; give a (..., M, K) and b {wanted}, K the same"
        )
