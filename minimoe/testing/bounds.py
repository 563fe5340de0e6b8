"""``assert_within_bound``: an assertion that a low-precision matmul is as accurate as its recipe allows."""

import torch
from torch import Tensor

from minimoe.precision.analysis import (
    BoundKind,
    ErrorBreakdown,
    bound,
    decompose,
    exact_product,
    measure_error,
)
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Recipe, as_recipe


@torch.no_grad()
def assert_within_bound(
    actual: Tensor,
    a_MK: Tensor,
    b_KN: Tensor | Quantized,
    recipe: Recipe | str,
    kind: BoundKind = "deterministic",
    *,
    failure: float = 1e-9,
) -> float:
    """Assert that ``actual`` differs from a_MK @ b_KN by no more than the recipe's error bound (``bound``).

        >>> from minimoe.precision.matmul import matmul
        >>> from minimoe.testing import assert_within_bound
        >>> a, b = torch.full((2, 128), 1e-4), torch.ones(128, 2)
        >>> assert_within_bound(matmul(a, b, "deepseek-v3"), a, b, "deepseek-v3") < 0.01
        True
        >>> assert_within_bound(matmul(a, b, "naive"), a, b, "deepseek-v3")
        Traceback (most recent call last):
        AssertionError: deepseek-v3: 4 of 4 elements exceed the deterministic bound
          worst at (0, 0): 0 instead of 0.0128, off by 0.0128, 13.8 times the bound of 0.000931
          in 2 of 2 rows and 2 of 2 columns; 100% too small: terms lost in sums, saturated or rounded to 0?
          relative error 1, the recipe's own is ...

    It detects errors larger than rounding: a missing or misplaced scale. It does not detect errors as small
    as the rounding of the operands, which dominates the bound of a recipe that casts: 1x64 tiles in place of
    1x128, a few lost products, sums in bf16. To test sums, use operands that are 8-bit numbers already and
    the recipe ``full``: then only the accumulation is bounded.

    The probabilistic bound detects more, for data that do not repeat. For random signs the deterministic one
    grows like K and the result like sqrt(K); in E4M3 it is of little use beyond K = 1000.

    Elements with an infinite bound (from operands that are not finite) are not checked.

    Args:
        actual: (..., M, N), any float dtype.
        a_MK, b_KN, recipe, kind, failure: as for ``bound``.

    Returns:
        The largest ratio of an error to its bound, from 0 to 1.

    Raises:
        AssertionError: how many elements exceed the bound, the worst one, their rows and columns, and the
            error of the recipe itself.
        ValueError: a shape that is not the product's; no element has a finite bound; as ``bound``.
        TypeError: as ``bound``.
    """
    recipe = as_recipe(recipe)
    limit = bound(a_MK, b_KN, recipe, kind, failure=failure)
    if actual.shape != limit.shape:
        raise ValueError(f"actual is {tuple(actual.shape)}, but a b is {tuple(limit.shape)}")
    checked = limit.isfinite()
    if limit.numel() and not checked.any():
        raise ValueError(
            f"{recipe.name}: the {kind} bound of all {limit.numel()} elements is infinite (numbers that are "
            "not finite, or sums that can overflow), so actual cannot be checked"
        )
    actual, exact = actual.detach(), exact_product(a_MK, b_KN)
    error = (actual.double() - exact).abs()
    ratio = torch.where(error == 0, 0.0, error / limit)
    wrong = checked & ~(ratio <= 1)  # NaN included
    if not wrong.any():
        return float(ratio[checked].max()) if limit.numel() else 0.0
    breakdown = decompose(a_MK, b_KN, recipe)
    lines = [
        f"{recipe.name}: {int(wrong.sum())} of {wrong.numel()} elements exceed the {kind} bound",
        _describe_worst(torch.where(wrong, ratio.nan_to_num(nan=torch.inf), -1.0), actual, exact, limit),
        _describe_location(wrong, actual, exact),
        f"  relative error {measure_error(actual, exact).relative:.3g}, the recipe's own is "
        f"{measure_error(exact + breakdown.total, exact).relative:.3g}{_describe_causes(breakdown)}",
    ]
    raise AssertionError("\n".join(lines))


def _describe_causes(breakdown: ErrorBreakdown) -> str:
    norms = {name: norm for name, norm in breakdown.norms().items() if norm}
    if not norms:
        return " (these inputs and their sums are exact)"
    causes = ", ".join(f"{name} {norm:.2g}" for name, norm in norms.items())
    return f", most of it {breakdown.dominant} ({causes})"


def _describe_worst(ratio: Tensor, actual: Tensor, exact: Tensor, limit: Tensor) -> str:
    i = int(ratio.argmax())
    index = tuple(int(k) for k in torch.unravel_index(torch.tensor(i), ratio.shape))
    got, want, most = (float(x.flatten()[i]) for x in (actual, exact, limit))
    return (
        f"  worst at {index}: {got:.6g} instead of {want:.6g}, off by {abs(got - want):.3g}, "
        f"{float(ratio.flatten()[i]):.3g} times the bound of {most:.3g}"
    )


def _describe_location(wrong: Tensor, actual: Tensor, exact: Tensor) -> str:
    """The rows (affected by a's scales) and columns (b's), and the direction of the error if there is one."""
    wrong_MN = wrong.reshape(-1, wrong.shape[-1])
    rows, columns = wrong_MN.any(1), wrong_MN.any(0)
    line = f"  in {int(rows.sum())} of {len(rows)} rows and {int(columns.sum())} of {len(columns)} columns"
    finite = actual[wrong].isfinite()
    if not finite.all():
        line += f", {int((~finite).sum())} of them not finite"
    small = (actual[wrong].abs() < exact[wrong].abs()).double().mean()
    if small > 0.9:
        line += f"; {float(small):.0%} too small: terms lost in sums, saturated or rounded to 0?"
    return line
