"""[evidence] A priori error bounds of a matmul, element by element, deterministic or probabilistic.

With q = code * scale the dequantized value of a number x, |q - x| <= e, and y the result:

    |y - a b|  <=  |q_a q_b - a b|  +  |sums - q_a q_b|  +  |y - sums|
                   operands            accumulation         output

The bounds use only the data's magnitudes, scales and the powers of two between which numbers lie, and no
rounding error itself. But what numbers beyond a format's largest and below its smallest become is known.

``deterministic`` bounds always hold. Operands: e_a |b| + |q_a| e_b. Sums: gamma(K, u) |q_a| |q_b|, in any
order (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).

``probabilistic`` bounds assume independent rounding errors with mean 0; the probability that any element
exceeds its bound is at most ``failure``. Operands: lambda sqrt(sum over k of (e_a |b|)² + (|q_a| e_b)²)
(Azuma and Hoeffding: independent errors with mean 0, each with a bound). Sums: lambda sqrt(K) in place of K
(Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019; Ipsen and Zhou, arXiv 1906.11812). Errors whose mean is
not 0 keep their deterministic bound:

- those of numbers beyond the format's largest or below its smallest, which do not average out;
- those of 16-bit sums rounded to nearest: a large sum absorbs small terms one after another, and if these
  have one sign sqrt(K) does not cover the loss. Stochastic rounding does have mean 0 (Connolly, Higham, Mary,
  SIAM J. Sci. Comput. 43(1), 2021);
- those of the tensor core's sums, which are truncated toward 0.

The data must not repeat, nor all lie between the same two numbers of the format: equal errors add up like K
and not like sqrt(K). Constant matrices exceed the probabilistic bound.

Dimensions: M, N, K of a product, K contracted.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.analysis.operand import Operand, cast_operand, exact_product
from minimoe.precision.analysis.sum_bounds import TINY, U32, BoundKind, RoundingModel, sums_of_codes
from minimoe.precision.arguments import check_choice, check_operands
from minimoe.precision.formats import BF16, FP16, FP32, Format
from minimoe.precision.matmul import matmul
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Recipe, as_recipe


@torch.no_grad()
def bound(
    a_MK: Tensor,
    b_KN: Tensor | Quantized,
    recipe: Recipe | str,
    kind: BoundKind = "deterministic",
    *,
    failure: float = 1e-9,
) -> Tensor:
    """A bound on |matmul(a_MK, b_KN, recipe) - a_MK @ b_KN| -> (..., M, N) float64.

    Args:
        a_MK, b_KN, recipe: as for ``matmul``. (For a gradient's product put the gradient's cast in place of
            the operand's: ``recipe.with_(activation=recipe.gradient)`` for g Wᵀ.)
        kind: ``deterministic`` or ``probabilistic``; see the module.
        failure: for a probabilistic bound: the probability that any element exceeds it.

    Infinite where there is no bound: for numbers multiplied by infinities or NaNs, and for sums that could
    leave their format's range, float32's or fp16's 65504 (where the codes are summed, before scaling).

    The bound holds for the recipe's accumulator, in any order of summation. A GPU's own 8-bit matmul
    (``auto`` and ``hardware`` there) keeps fewer bits; name its accumulator, ``Accumulator.tensor_core()``.
    So does a float32 matmul if torch may use TF32.

    Raises:
        ValueError, TypeError: as ``matmul``; an unknown kind; a failure that is not between 0 and 1.
    """
    recipe = as_recipe(recipe)
    check_operands(a_MK, b_KN)
    check_choice("kind", kind, BoundKind)
    if not 0 < failure < 1:
        raise ValueError(f"failure must be a probability between 0 and 1, not {failure}")
    rows_MK = a_MK.flatten(0, -2)
    a = cast_operand(rows_MK, recipe.activation, -1)
    b = cast_operand(b_KN, None if isinstance(b_KN, Quantized) else recipe.weight, -2)
    (m, k), n = a.original.shape, b.original.shape[1]
    model = RoundingModel(kind, failure, m * n, k)
    ranges = _ranges(a, recipe), _ranges(b, recipe)
    error = _operand_error(*ranges, model)
    error += _accumulation_error(*ranges, recipe, model)
    error += (k + 8) * 2.0**-52 * (ranges[0].size @ ranges[1].size)  # float64's own, in here and in a b
    exact = (a.original @ b.original).abs()
    narrow = {torch.bfloat16: BF16, torch.float16: FP16}.get(a_MK.dtype)
    for fmt in filter(None, (recipe.output, narrow)):
        error += _output_error(exact + error, fmt)
    return error.nan_to_num(nan=torch.inf, posinf=torch.inf).view(*a_MK.shape[:-1], n)


@torch.no_grad()
def tightness(
    a_MK: Tensor, b_KN: Tensor | Quantized, recipe: Recipe | str, kind: BoundKind = "deterministic"
) -> tuple[float, float]:
    """The ratio of the bound to the error of ``matmul``: its median and its minimum over the elements.

    For normal random numbers in 8 bits the median is about 2.2 sqrt(K) if deterministic (all errors of
    maximal size and one sign, against the median of a random sum) and 2.6 lambda, about 20, if probabilistic
    (lambda sigmas of errors of maximal size, against two thirds of a sigma of uniform ones).
    """
    error = (matmul(a_MK, b_KN, recipe).double() - exact_product(a_MK, b_KN)).abs()
    ratio = bound(a_MK, b_KN, recipe, kind)[error > 0] / error[error > 0]
    return (float(ratio.median()), float(ratio.min())) if ratio.numel() else (math.inf, math.inf)


class _Ranges(NamedTuple):
    """The possible values of each number of an operand after its cast, float64."""

    size: Tensor  # |x|
    center: Tensor  # beyond the largest number and below the smallest, what |x| becomes; else |x|
    rounding: Tensor  # the largest distance from there
    operand: Operand

    @property
    def known_error(self) -> Tensor:
        return (self.size - self.center).abs()

    @property
    def upper(self) -> Tensor:
        return self.center + self.rounding


def _ranges(x: Operand, recipe: Recipe) -> _Ranges:
    size, fmt = x.original.abs(), x.fmt
    least, steps = fmt.min_subnormal, size / x.scale
    exponent = torch.frexp(steps).exponent.sub(1).clamp_min(fmt.min_exponent) - fmt.mantissa_bits
    half = torch.ldexp(x.scale, exponent - 1)  # half the spacing; at most u |x| for normal numbers
    # x / scale is itself rounded, by 2^-24 of it or float32's smallest steps; twice that, to be safe.
    rounding = half + 2 * U32 * size + TINY * x.scale
    becomes = torch.where(steps > fmt.max, fmt.max, torch.where(steps > least / 2, least, 0.0)) * x.scale
    known = (steps > fmt.max) | (steps < least)
    center, rounding = torch.where(known, becomes, size), torch.where(known, 0.0, rounding)
    if fmt == FP32 or x.original is x.dequantized:  # no cast; but float64 may have to become float32
        same = x.original == x.dequantized
        center, rounding = torch.where(same, size, center), rounding.masked_fill(same, 0.0)
    if recipe.backend == "bf16":  # exact under powers of two
        inexact = torch.frexp(x.scale).mantissa != 0.5
        rounding = rounding + inexact * 2 * BF16.unit_roundoff * size
    unbounded = ~(x.original.isfinite() & x.dequantized.isfinite()) | (center + rounding > FP32.max)
    return _Ranges(size, center, rounding.masked_fill(unbounded, torch.inf), x)


def _operand_error(a: _Ranges, b: _Ranges, model: RoundingModel) -> Tensor:
    """|q_a q_b - a b|: the known errors; then a's rounding; then b's, with a rounded already."""
    known = a.known_error @ b.size + a.center @ b.known_error
    rounding = a.rounding @ b.center + a.upper @ b.rounding
    if model.probabilistic:
        variance = a.rounding**2 @ b.center**2 + a.upper**2 @ b.rounding**2
        rounding = torch.minimum(rounding, model.operand_lambda * variance.sqrt())
    return known + rounding


def _accumulation_error(a: _Ranges, b: _Ranges, recipe: Recipe, model: RoundingModel) -> Tensor:
    """|sums - q_a q_b|: block by block if the recipe sums so, else in any order."""
    (_, depth), formats = a.size.shape, (a.operand.fmt, b.operand.fmt)
    side = math.gcd(a.operand.side or 0, b.operand.side or 0) or max(depth, 1)
    blocks = -(-depth // side)
    if recipe.accumulator == Accumulator.fp32() and recipe.backend != "blocks":
        # A term is rounded in its product, K - 1 additions and two scalings; in blocks, in their sums too.
        total = a.upper @ b.upper
        # Multiplications in bf16 flush what is below float32's normal numbers to 0.
        tiny = FP32.min_normal if recipe.output == BF16 else TINY
        error = model.gamma(depth + blocks + 4, U32) * total
        error += tiny * (a.upper.sum(1, keepdim=True) + b.upper.sum(0) + 2 * depth)
        return error.masked_fill(total + error > FP32.max, torch.inf)
    total = error = a.size.new_zeros(len(a.size), b.size.shape[1])
    for start in range(0, depth, side):
        k = slice(start, start + side)
        scale = a.operand.scale[:, start, None] * b.operand.scale[start]
        codes = a.upper[:, k] / a.operand.scale[:, k], b.upper[k] / b.operand.scale[k]
        sums, sum_error = sums_of_codes(*codes, formats, recipe.accumulator, model)
        sums = sums + sum_error
        total = total + sums * scale
        error = error + (sum_error * scale + TINY).masked_fill(sums > FP32.max, torch.inf)
    error = error + model.gamma(blocks + 3, U32) * total
    return error.masked_fill(total + error > FP32.max, torch.inf)


def _output_error(largest: Tensor, fmt: Format) -> Tensor:
    """The rounding error of numbers up to ``largest``; beyond the format's range they saturate or overflow
    to infinity."""
    error = (fmt.unit_roundoff * largest).clamp_min(fmt.min_subnormal / 2)
    if fmt.has_infinity:
        return error.masked_fill(largest > fmt.max, torch.inf)
    return torch.maximum(error, largest - fmt.max)
