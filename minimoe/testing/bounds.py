"""``assert_within_bound``: whether a matmul computed elsewhere does what a recipe says."""

import torch
from torch import Tensor

from minimoe.precision.analysis.bounds import BoundKind, bound
from minimoe.precision.analysis.error import decompose, measure_error
from minimoe.precision.analysis.operand import exact_product
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
    """Assert that ``actual`` is a_MK @ b_KN but for what the recipe's roundings explain (``bounds.bound``).

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

    It sees what is wrong by more than rounding: a scale missing or at the wrong place, sums kept in too few
    bits. It does not see what is as small as rounding itself: 1x64 tiles for 1x128, or bf16 for float32 in a
    result of 8-bit numbers.

    The probabilistic bound sees more, for data that do not repeat. For random signs the deterministic one
    grows like K and the result like sqrt(K); in E4M3 it says little beyond K = 1000.

    Elements whose bound is infinite (they meet numbers that are not finite) are not judged.

    Args:
        actual: (..., M, N), any float dtype.
        a_MK, b_KN, recipe, kind, failure: as for ``bound``.

    Returns:
        The largest error as a part of its bound, from 0 to 1.

    Raises:
        AssertionError: how many elements exceed the bound, the worst of them, where they are, and which
            error the recipe itself would have made.
        ValueError: another shape than the product's; no element has a finite bound; as ``bound``.
        TypeError: as ``bound``.
    """
    recipe = as_recipe(recipe)
    limit = bound(a_MK, b_KN, recipe, kind, failure=failure)
    if actual.shape != limit.shape:
        raise ValueError(f"actual is {tuple(actual.shape)}, but a b is {tuple(limit.shape)}")
    judged = limit.isfinite()
    if limit.numel() and not judged.any():
        raise ValueError(
            f"{recipe.name}: the {kind} bound of all {limit.numel()} elements is infinite (numbers that are "
            "not finite, or sums that can overflow), so that there is nothing to hold actual to"
        )
    actual, exact = actual.detach(), exact_product(a_MK, b_KN)
    error = (actual.double() - exact).abs()
    ratio = torch.where(error == 0, 0.0, error / limit)
    wrong = judged & ~(ratio <= 1)  # NaN is wrong, too
    if not wrong.any():
        return float(ratio[judged].max()) if limit.numel() else 0.0
    shares = decompose(a_MK, b_KN, recipe)
    lines = [
        f"{recipe.name}: {int(wrong.sum())} of {wrong.numel()} elements exceed the {kind} bound",
        _worst(torch.where(wrong, ratio.nan_to_num(nan=torch.inf), -1.0), actual, exact, limit),
        _where(wrong, actual, exact),
        f"  relative error {measure_error(actual, exact).relative:.3g}, the recipe's own is "
        f"{measure_error(exact + shares.total, exact).relative:.3g}, most of it {shares.dominant} "
        f"({', '.join(f'{name} {norm:.2g}' for name, norm in shares.norms().items() if norm)})",
    ]
    raise AssertionError("\n".join(lines))


def _worst(ratio: Tensor, actual: Tensor, exact: Tensor, limit: Tensor) -> str:
    i = int(ratio.argmax())
    index = tuple(int(k) for k in torch.unravel_index(torch.tensor(i), ratio.shape))
    got, want, most = (float(x.flatten()[i]) for x in (actual, exact, limit))
    return (
        f"  worst at {index}: {got:.6g} instead of {want:.6g}, off by {abs(got - want):.3g}, "
        f"{float(ratio.flatten()[i]):.3g} times the bound of {most:.3g}"
    )


def _where(wrong: Tensor, actual: Tensor, exact: Tensor) -> str:
    """Rows and columns, which tell a's scales from b's, and a direction if there is one."""
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
