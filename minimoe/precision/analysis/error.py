"""How far a result is from the exact one, and why.

``measure_error`` gives the usual measures side by side, because each is blind to something; ``decompose``
splits a matmul's error by its causes. Everything is computed in float64.

With r = ‖actual‖ / ‖exact‖ the measures over all numbers are tied together:

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
from minimoe.precision.matmul import check_operands, choose_backend, finish, matmul, multiply
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Recipe, as_recipe


class Error(NamedTuple):
    """Measures of an error, floats. All are 0 (cosine 1, sqnr_db infinite) where nothing differs."""

    relative: float  # Frobenius: ‖actual - exact‖ / ‖exact‖
    max_relative: float  # the largest |actual - exact| / |exact|; infinite where only exact is 0
    sqnr_db: float  # signal to noise, -20 log10(relative)
    calc_diff: float  # 1 - 2 <x, y> / (‖x‖² + ‖y‖²), DeepGEMM's
    cosine: float  # <x, y> / (‖x‖ ‖y‖)
    backward: float  # component-wise: the largest |actual - exact| / (|a| |b|)
    off_outliers: float | None  # relative, over all columns but the outliers; None if none were named


def measure_error(
    actual: Tensor,
    exact: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    outliers: Tensor | None = None,
) -> Error:
    """The error of ``actual`` against ``exact``, same shape, any dtypes.

    Args:
        a, b: (..., M, K) and (K, N), whose product ``exact`` (..., M, N) is. With them ``backward`` compares
            with (|a| |b|)_ij, what an error in a's and b's last digits changes, rather than with |exact|,
            which cancellation makes small (Oettli and Prager, 1964; Higham 2002, section 3.5).
        outliers: which columns (indices, or one bool each) ``off_outliers`` leaves out. A few huge columns
            decide every norm over the whole, and hide that the others were lost.

    Nothing is left out silently: where a number is infinite or NaN, so are the measures it enters.
    Norms square in float64, which is exact enough for magnitudes between 1e-150 and 1e150.

    Raises:
        ValueError: shapes that differ, only one of a and b, or columns that there are not.
    """
    if actual.shape != exact.shape:
        raise ValueError(f"actual is {tuple(actual.shape)} and exact {tuple(exact.shape)}; compare the same")
    x, y = actual.detach().double(), exact.detach().double()
    delta, square_x, square_y = x - y, float(x.square().sum()), float(y.square().sum())
    relative = _relative(delta, y)
    return Error(
        relative,
        _largest(delta, y.abs()),
        decibels(relative),
        _ratio(float(delta.square().sum()), square_x + square_y),
        _cosine(float((x * y).sum()), math.sqrt(square_x), math.sqrt(square_y)),
        _largest(delta, _magnitude(a, b, y)),
        None if outliers is None else _relative(*_without(outliers, delta, y)),
    )


def decibels(relative: float) -> float:
    """A relative error as a ratio of signal to noise: -20 log10(relative); infinite for 0."""
    return -20 * math.log10(relative) if relative else math.inf


def _relative(delta: Tensor, exact: Tensor) -> float:
    return _ratio(float(delta.norm()), float(exact.norm()))


def _ratio(part: float, whole: float) -> float:
    """part / whole, where 0 / 0 is no error and anything else over 0 an infinite one."""
    return part / whole if whole else 0.0 if part == 0 else part * math.inf


def _cosine(dot: float, norm_x: float, norm_y: float) -> float:
    if norm_x == 0 or norm_y == 0:
        return float(norm_x == norm_y)
    return dot / norm_x / norm_y


def _largest(delta: Tensor, magnitude: Tensor) -> float:
    ratio = torch.where(delta == 0, 0.0, delta.abs() / magnitude)  # not 0 / 0; x / 0 is infinite
    return float(ratio.max()) if ratio.numel() else 0.0


def _magnitude(a: Tensor | None, b: Tensor | None, exact: Tensor) -> Tensor:
    if a is None and b is None:
        return exact.abs()
    if a is None or b is None:
        raise ValueError("the backward error needs both a and b, or neither")
    magnitude = a.detach().double().abs() @ b.detach().double().abs()
    if magnitude.shape != exact.shape:
        raise ValueError(f"a b is {tuple(magnitude.shape)} but exact is {tuple(exact.shape)}")
    return magnitude


def _without(outliers: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The tensors without these columns."""
    width, which = tensors[0].shape[-1], torch.as_tensor(outliers)
    good = len(which) == width if which.dtype == torch.bool else bool(((which >= 0) & (which < width)).all())
    if which.ndim != 1 or not good:
        raise ValueError(
            f"outliers {which.dtype} {tuple(which.shape)} must be indices from 0 to {width - 1}, or {width} "
            "bools"
        )
    keep = torch.ones(width, dtype=torch.bool, device=tensors[0].device)
    keep[which] = False
    return [x[..., keep] for x in tensors]


class Shares(NamedTuple):
    """An error as a sum of its causes, each (..., M, N) float64, and the exact product."""

    rounding: Tensor  # of numbers within the format's range, to its few mantissa bits
    underflow: Tensor  # of numbers below it: to a subnormal number with fewer bits still, or to 0
    saturation: Tensor  # of numbers beyond it, to the largest
    accumulation: Tensor  # of the sums; and of code * scale to float32, where that is what is multiplied
    output: Tensor  # of the result, to the recipe's output and to a's dtype
    exact: Tensor

    @property
    def total(self) -> Tensor:
        """The whole error, (..., M, N)."""
        return self.rounding + self.underflow + self.saturation + self.accumulation + self.output

    def norms(self) -> dict[str, float]:
        """Each cause's Frobenius norm over the exact product's. Their squares need not add up to the whole's:
        causes can cancel."""
        return {name: _relative(getattr(self, name), self.exact) for name in self._fields[:-1]}

    @property
    def dominant(self) -> str:
        """The cause with the largest norm; the first whose norm is not finite, if one is not."""
        norms = {name: x if math.isfinite(x) else math.inf for name, x in self.norms().items()}
        return max(norms, key=norms.__getitem__)


@torch.no_grad()
def decompose(a_MK: Tensor, b_KN: Tensor | Quantized, recipe: Recipe | str) -> Shares:
    """The error of ``matmul(a_MK, b_KN, recipe)`` against the float64 product, by cause.

    The causes are let in one after another, and each is what the product changes by: first the operands'
    rounding errors, then those of underflow, then of saturation; now the operands are what their codes mean.
    Then the sums as the recipe keeps them, last the result's own rounding. So the parts add up to the whole
    to float64 rounding, and what two causes do only together belongs to the later one.

    Raises:
        ValueError, TypeError: as ``matmul``.
    """
    recipe = as_recipe(recipe)
    check_operands(a_MK, b_KN)
    weight = None if isinstance(b_KN, Quantized) else recipe.weight
    rows_MK = a_MK.flatten(0, -2)
    a, b = cast_operand(rows_MK, recipe.activation, -1), cast_operand(b_KN, weight, -2)
    stages = [a.given @ b.given]
    for late in (("underflowed", "saturated"), ("saturated",), ()):
        left, right = (_except(x, late) for x in (a, b))
        stages.append(left @ right)
    fused = (
        choose_backend(rows_MK, b_KN, recipe.activation, weight, recipe) == "bf16"
    )  # its sums never appear
    plain = recipe.with_(output=None, backend="fold" if fused else recipe.backend)
    sums = multiply(rows_MK, b_KN, recipe.activation, weight, plain)
    result = matmul(rows_MK, b_KN, recipe) if fused else finish(sums, recipe).to(a_MK.dtype)
    stages += [sums.double(), result.double()]
    shape = (*a_MK.shape[:-1], b_KN.shape[-1])
    parts = [(after - before).view(shape) for before, after in pairwise(stages)]
    return Shares(**dict(zip(Shares._fields, (*parts, stages[0].view(shape)), strict=True)))


def _except(x: Operand, late: tuple[str, ...]) -> Tensor:
    """What the codes mean, but as given where a cause has not been let in yet."""
    result = x.meaning
    for name in late:
        result = torch.where(getattr(x, name)(), x.given, result)
    return result
