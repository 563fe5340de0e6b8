"""[evidence] Error metrics of a result against the exact one, and the causes of a matmul's error.

``measure_error`` reports the usual metrics side by side, because each one misses something; ``decompose``
splits a matmul's error by cause. Everything is computed in float64.

With r = ‖actual‖ / ‖exact‖ the metrics over all numbers are related by

    sqnr_db   = -20 log10(relative)
    relative² = 1 + r² - 2 r cosine
    calc_diff = relative² / (1 + r²)           about relative² / 2, so 1e-3 allows an error of 4.5 %

Dimensions: M, N, K of a product, K contracted.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from minimoe.precision.analysis.operand import Operand, cast_operand
from minimoe.precision.arguments import check_operands
from minimoe.precision.backends import choose_backend
from minimoe.precision.matmul import matmul, multiply, round_output
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Recipe, as_recipe


class ErrorMetrics(NamedTuple):
    """Metrics of an error, floats. Without an error all are 0 (cosine 1, sqnr_db infinite)."""

    relative: float  # Frobenius: ‖actual - exact‖ / ‖exact‖
    max_relative: float  # the largest |actual - exact| / |exact|; infinite where only exact is 0
    sqnr_db: float  # signal to quantization noise ratio, -20 log10(relative)
    calc_diff: float  # DeepGEMM's 1 - 2 <x, y> / (‖x‖² + ‖y‖²)
    cosine: float  # <x, y> / (‖x‖ ‖y‖)
    backward: float  # component-wise: the largest |actual - exact| / (|a| |b|)
    off_outliers: float | None  # relative, over all columns but the outliers; None if none were given


def measure_error(
    actual: Tensor,
    exact: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    outliers: Tensor | None = None,
) -> ErrorMetrics:
    """The error of ``actual`` against ``exact``, same shape, any dtypes.

    Args:
        a, b: (..., M, K) and (K, N), whose product is ``exact`` (..., M, N). With them ``backward`` compares
            with (|a| |b|)_ij, what an error in a's and b's last digits changes, rather than with |exact|,
            which cancellation makes small (Oettli and Prager, 1964; Higham 2002, section 3.5).
        outliers: the columns (indices, or one bool each) that ``off_outliers`` excludes. A few huge columns
            dominate every norm over all, and hide that the others were lost.

    Nothing is excluded silently: a metric that involves an infinite or NaN number is not finite either.
    Norms square in float64, which is exact enough for magnitudes between 1e-150 and 1e150.

    Raises:
        ValueError: shapes that differ, only one of a and b, or columns out of range.
    """
    if actual.shape != exact.shape:
        raise ValueError(
            f"actual is {tuple(actual.shape)} and exact {tuple(exact.shape)}; they must be equal"
        )
    x, y = actual.detach().double(), exact.detach().double()
    delta, square_x, square_y = x - y, float(x.square().sum()), float(y.square().sum())
    relative = _relative(delta, y)
    return ErrorMetrics(
        relative,
        _max_ratio(delta, y.abs()),
        decibels(relative),
        _ratio(float(delta.square().sum()), square_x + square_y),
        _cosine(float((x * y).sum()), math.sqrt(square_x), math.sqrt(square_y)),
        _max_ratio(delta, _backward_denominator(a, b, y)),
        None if outliers is None else _relative(*_without_columns(outliers, delta, y)),
    )


def decibels(relative: float) -> float:
    """A relative error as a signal-to-noise ratio: -20 log10(relative); infinite for 0."""
    return -20 * math.log10(relative) if relative else math.inf


def _relative(delta: Tensor, exact: Tensor) -> float:
    return _ratio(float(delta.norm()), float(exact.norm()))


def _ratio(part: float, whole: float) -> float:
    """part / whole, with 0 / 0 = 0 (no error) and anything else over 0 infinite."""
    return part / whole if whole else 0.0 if part == 0 else part * math.inf


def _cosine(dot: float, norm_x: float, norm_y: float) -> float:
    if norm_x == 0 or norm_y == 0:
        return float(norm_x == norm_y)
    return dot / norm_x / norm_y


def _max_ratio(delta: Tensor, denominator: Tensor) -> float:
    ratio = torch.where(delta == 0, 0.0, delta.abs() / denominator)
    return float(ratio.max()) if ratio.numel() else 0.0


def _backward_denominator(a: Tensor | None, b: Tensor | None, exact: Tensor) -> Tensor:
    if a is None and b is None:
        return exact.abs()
    if a is None or b is None:
        raise ValueError("the backward error needs both a and b, or neither")
    product = a.detach().double().abs() @ b.detach().double().abs()
    if product.shape != exact.shape:
        raise ValueError(f"a b is {tuple(product.shape)} but exact is {tuple(exact.shape)}")
    return product


def _without_columns(outliers: Tensor, *tensors: Tensor) -> list[Tensor]:
    width, columns = tensors[0].shape[-1], torch.as_tensor(outliers)
    if columns.dtype == torch.bool:
        valid = len(columns) == width
    else:
        valid = bool(((columns >= 0) & (columns < width)).all())
    if columns.ndim != 1 or not valid:
        raise ValueError(
            f"outliers {columns.dtype} {tuple(columns.shape)} must be indices from 0 to {width - 1}, or "
            f"{width} bools"
        )
    keep = torch.ones(width, dtype=torch.bool, device=tensors[0].device)
    keep[columns] = False
    return [x[..., keep] for x in tensors]


class ErrorBreakdown(NamedTuple):
    """An error as the sum of its causes, each (..., M, N) float64, and the exact product."""

    rounding: Tensor  # of numbers in the format's range, to its few mantissa bits
    underflow: Tensor  # of numbers below it: to a subnormal number with even fewer bits, or to 0
    saturation: Tensor  # of numbers beyond it, to the largest
    accumulation: Tensor  # of the sums; and of code * scale to float32, where that is multiplied
    output: Tensor  # of the result, to the recipe's output and to a's dtype
    exact: Tensor

    @property
    def total(self) -> Tensor:
        """The total error, (..., M, N)."""
        return self.rounding + self.underflow + self.saturation + self.accumulation + self.output

    def norms(self) -> dict[str, float]:
        """Each cause's Frobenius norm over the exact product's. Their squares need not add up to the total's:
        causes can cancel."""
        return {name: _relative(getattr(self, name), self.exact) for name in self._fields[:-1]}

    @property
    def dominant(self) -> str:
        """The cause with the largest norm; the first whose norm is not finite, if there is one."""
        norms = {name: x if math.isfinite(x) else math.inf for name, x in self.norms().items()}
        return max(norms, key=norms.__getitem__)


@torch.no_grad()
def decompose(a_MK: Tensor, b_KN: Tensor | Quantized, recipe: Recipe | str) -> ErrorBreakdown:
    """The error of ``matmul(a_MK, b_KN, recipe)`` against the float64 product, by cause.

    The causes are added one after another, and each is the resulting change of the product: first the
    operands' rounding errors, then those of underflow, then of saturation, which makes the operands the
    dequantized ones; then the recipe's sums, last the rounding of the result. So the parts add up to the
    total (to float64 rounding), and what two causes do only together belongs to the later one.

    Raises:
        ValueError, TypeError: as ``matmul``.
    """
    recipe = as_recipe(recipe)
    check_operands(a_MK, b_KN)
    weight = None if isinstance(b_KN, Quantized) else recipe.weight
    rows_MK = a_MK.flatten(0, -2)
    a, b = cast_operand(rows_MK, recipe.activation, -1), cast_operand(b_KN, weight, -2)
    stages = [a.original @ b.original]
    for excluded in (("underflowed", "saturated"), ("saturated",), ()):
        stages.append(_dequantized_without(a, excluded) @ _dequantized_without(b, excluded))
    # A bf16 matmul does not expose its sums before they are rounded.
    is_bf16 = choose_backend(rows_MK, b_KN, recipe.activation, weight, recipe) == "bf16"
    unrounded = recipe.with_(output=None, backend="dequantize" if is_bf16 else recipe.backend)
    sums = multiply(rows_MK, b_KN, recipe.activation, weight, unrounded)
    result = matmul(rows_MK, b_KN, recipe) if is_bf16 else round_output(sums, recipe).to(a_MK.dtype)
    stages += [sums.double(), result.double()]
    shape = (*a_MK.shape[:-1], b_KN.shape[-1])
    parts = [(after - before).view(shape) for before, after in pairwise(stages)]
    return ErrorBreakdown._make((*parts, stages[0].view(shape)))


def _dequantized_without(x: Operand, causes: tuple[str, ...]) -> Tensor:
    """The dequantized operand, with its original numbers wherever one of these causes applies."""
    result = x.dequantized
    for cause in causes:
        result = torch.where(getattr(x, cause)(), x.original, result)
    return result
