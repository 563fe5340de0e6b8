"""How large a matmul's error can be, element by element, before it is computed.

With q = code * scale what a number x becomes, |q - x| <= e, and y the result:

    |y - a b|  <=  |q_a q_b - a b|  +  |sums - q_a q_b|  +  |y - sums|
                   operands            accumulation         output

Of the data only magnitudes, scales and the powers of two between which numbers lie are used, and no rounding
error itself. But what numbers beyond a format's largest and below its smallest become is known.

``deterministic`` bounds hold always. Operands: e_a |b| + |q_a| e_b. Sums: gamma(K, u) |q_a| |q_b|, in any
order (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).

``probabilistic`` bounds take rounding errors for independent with mean 0, and fail anywhere in the result
with no more than the probability ``failure``. Operands: lambda sqrt(sum over k of (e_a |b|)² + (|q_a| e_b)²)
(Azuma and Hoeffding: independent errors with mean 0, each with a bound). Sums: lambda sqrt(K) in place of K
(Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019; Ipsen and Zhou, arXiv 1906.11812). What has no mean 0
stays deterministic:

- the errors of numbers beyond the format's largest or below its smallest, which do not even out;
- 16-bit sums rounded to nearest: a large sum swallows small terms one after another, and if these have one
  sign sqrt(K) does not cover it. Rounded at random, errors do have mean 0 (Connolly, Higham, Mary, SIAM J.
  Sci. Comput. 43(1), 2021);
- the tensor core's sums, which are cut off towards 0.

And the data must not repeat, nor all lie between the same two numbers of the format: equal errors add up
like K and not like sqrt(K). Matrices of one constant exceed the probabilistic bound.

Dimensions: M, N, K of a product, K contracted.
"""

import math
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.analysis.operand import Operand, cast_operand, exact_product
from minimoe.precision.analysis.sum_bounds import (
    TINY,
    U32,
    Kind,
    Model,
    gamma,
    gamma_probabilistic,
    sums_of_codes,
)
from minimoe.precision.formats import BF16, FP16, FP32, Format
from minimoe.precision.matmul import check_operands, matmul
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Recipe, as_recipe

__all__ = ["Kind", "bound", "gamma", "gamma_probabilistic", "tightness"]


@torch.no_grad()
def bound(
    a_MK: Tensor,
    b_KN: Tensor | Quantized,
    recipe: Recipe | str,
    kind: Kind = "deterministic",
    *,
    failure: float = 1e-9,
) -> Tensor:
    """What |matmul(a_MK, b_KN, recipe) - a_MK @ b_KN| does not exceed -> (..., M, N) float64.

    Args:
        a_MK, b_KN, recipe: as for ``matmul``. (For a gradient's product put the gradient's cast where the
            recipe has the operand's: ``recipe.with_(activation=recipe.gradient)`` for g Wᵀ.)
        kind: see above.
        failure: of a probabilistic bound: the probability that any element at all exceeds it.

    Infinite where nothing can be said: for numbers that meet infinities or NaNs, and sums that could leave
    their format's range, be it float32's or fp16's 65504 (where the sum is of codes, not of what they mean).

    Sums are held to what the recipe says, in whatever order. A GPU's own 8-bit matmul (``auto`` and
    ``hardware`` there) keeps fewer bits; name its accumulator, ``Accumulator.tensor_core()``. So does a
    float32 matmul if torch is allowed to use TF32.

    Raises:
        ValueError, TypeError: as ``matmul``; an unknown kind; a failure that is no probability.
    """
    recipe = as_recipe(recipe)
    check_operands(a_MK, b_KN)
    if kind not in get_args(Kind) or not 0 < failure < 1:
        raise ValueError(
            f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}, and failure between 0 and 1, "
            f"not {failure}"
        )
    rows_MK = a_MK.flatten(0, -2)
    a = cast_operand(rows_MK, recipe.activation, -1)
    b = cast_operand(b_KN, None if isinstance(b_KN, Quantized) else recipe.weight, -2)
    (m, k), n = a.given.shape, b.given.shape[1]
    model = Model(kind, failure, m * n, k)
    limits = _limits(a, recipe), _limits(b, recipe)
    error = _operands(*limits, model)
    error += _accumulation(*limits, recipe, model)
    error += (k + 8) * 2.0**-52 * (limits[0].size @ limits[1].size)  # float64's own, in here and in a b
    exact = (a.given @ b.given).abs()
    narrow = {torch.bfloat16: BF16, torch.float16: FP16}.get(a_MK.dtype)
    for fmt in filter(None, (recipe.output, narrow)):
        error += _output(exact + error, fmt)
    return error.nan_to_num(nan=torch.inf, posinf=torch.inf).view(*a_MK.shape[:-1], n)


@torch.no_grad()
def tightness(
    a_MK: Tensor, b_KN: Tensor | Quantized, recipe: Recipe | str, kind: Kind = "deterministic"
) -> tuple[float, float]:
    """How many times the error of ``matmul`` its bound is: in the median, and where it comes closest.

    For normal random numbers in 8 bits the median is about 2.2 sqrt(K) if deterministic (all errors as large
    as can be, with one sign, against the median of a random sum) and 2.6 lambda, about 20, if probabilistic
    (lambda sigmas of errors as large as can be, against two thirds of a sigma of evenly distributed ones).
    """
    error = (matmul(a_MK, b_KN, recipe).double() - exact_product(a_MK, b_KN)).abs()
    ratio = bound(a_MK, b_KN, recipe, kind)[error > 0] / error[error > 0]
    return (float(ratio.median()), float(ratio.min())) if ratio.numel() else (math.inf, math.inf)


class _Limits(NamedTuple):
    """Of each number of an operand, float64."""

    size: Tensor  # |x|
    kept: Tensor  # what it is known to become beyond the largest number and below the smallest; else |x|
    rounding: Tensor  # how far it is rounded at most, where that is not known
    operand: Operand

    @property
    def known(self) -> Tensor:
        """The error where it is known."""
        return (self.size - self.kept).abs()

    @property
    def reach(self) -> Tensor:
        """The largest that it can be after its cast."""
        return self.kept + self.rounding


def _limits(x: Operand, recipe: Recipe) -> _Limits:
    size, fmt = x.given.abs(), x.fmt
    least, steps = fmt.min_subnormal, size / x.scale
    exponent = torch.frexp(steps).exponent.sub(1).clamp_min(fmt.min_exponent) - fmt.mantissa_bits
    half = torch.ldexp(x.scale, exponent - 1)  # the distance of neighbours; at most u |x| for normal numbers
    # x / scale is itself rounded, by 2^-24 of it or float32's smallest steps; twice that, to be safe.
    rounding = half + 2 * U32 * size + TINY * x.scale
    becomes = torch.where(steps > fmt.max, fmt.max, torch.where(steps > least / 2, least, 0.0)) * x.scale
    known = (steps > fmt.max) | (steps < least)
    kept, rounding = torch.where(known, becomes, size), torch.where(known, 0.0, rounding)
    if fmt == FP32 or x.given is x.meaning:  # not cast; but float64 may have to become float32
        same = x.given == x.meaning
        kept, rounding = torch.where(same, size, kept), rounding.masked_fill(same, 0.0)
    if recipe.backend == "bf16":  # exact under powers of two
        inexact = torch.frexp(x.scale).mantissa != 0.5
        rounding = rounding + inexact * 2 * BF16.unit_roundoff * size
    lost = ~(x.given.isfinite() & x.meaning.isfinite()) | (kept + rounding > FP32.max)
    return _Limits(size, kept, rounding.masked_fill(lost, torch.inf), x)


def _operands(a: _Limits, b: _Limits, model: Model) -> Tensor:
    """|q_a q_b - a b|: what is known; then a's rounding; then b's, with a rounded already."""
    known = a.known @ b.size + a.kept @ b.known
    rounding = a.rounding @ b.kept + a.reach @ b.rounding
    if model.random:
        variance = a.rounding**2 @ b.kept**2 + a.reach**2 @ b.rounding**2
        rounding = torch.minimum(rounding, model.of_operands * variance.sqrt())
    return known + rounding


def _accumulation(a: _Limits, b: _Limits, recipe: Recipe, model: Model) -> Tensor:
    """|sums - q_a q_b|: block after block where the recipe says so, else in any order."""
    (_, depth), formats = a.size.shape, (a.operand.fmt, b.operand.fmt)
    side = math.gcd(a.operand.side or 0, b.operand.side or 0) or max(depth, 1)
    blocks = -(-depth // side)
    if recipe.accumulator == Accumulator.fp32() and recipe.backend != "blocks":
        # A term is rounded in its product, in K - 1 additions, by two scales; and if by blocks, in theirs.
        total = a.reach @ b.reach
        # Multiplications of bf16 take what is below float32's normal numbers for 0.
        tiny = FP32.min_normal if recipe.output == BF16 else TINY
        lost = model.gamma(depth + blocks + 4, U32) * total
        lost += tiny * (a.reach.sum(1, keepdim=True) + b.reach.sum(0) + 2 * depth)
        return lost.masked_fill(total + lost > FP32.max, torch.inf)
    total = lost = a.size.new_zeros(len(a.size), b.size.shape[1])
    for start in range(0, depth, side):
        k = slice(start, start + side)
        scale = a.operand.scale[:, start, None] * b.operand.scale[start]
        codes = a.reach[:, k] / a.operand.scale[:, k], b.reach[k] / b.operand.scale[k]
        sums, error = sums_of_codes(*codes, formats, recipe.accumulator, model)
        sums = sums + error
        total = total + sums * scale
        lost = lost + (error * scale + TINY).masked_fill(sums > FP32.max, torch.inf)
    lost = lost + model.gamma(blocks + 3, U32) * total
    return lost.masked_fill(total + lost > FP32.max, torch.inf)


def _output(largest: Tensor, fmt: Format) -> Tensor:
    """How far numbers up to ``largest`` are rounded; beyond the format's they become infinite or saturate."""
    error = (fmt.unit_roundoff * largest).clamp_min(fmt.min_subnormal / 2)
    if fmt.has_infinity:
        return error.masked_fill(largest > fmt.max, torch.inf)
    return torch.maximum(error, largest - fmt.max)
