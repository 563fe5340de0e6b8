"""The error metrics against their definitions in numpy, the causes against cases with one cause."""

import math

import numpy as np
import pytest
import torch

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.analysis import ErrorBreakdown, decibels, decompose, measure_error
from minimoe.precision.formats import BF16, E2M1, E5M2, FP16, INT8
from minimoe.precision.matmul import matmul
from minimoe.precision.quantize import fake_quantize, quantize
from minimoe.precision.recipe import DEEPSEEK_V3, FULL, MXFP8, NAIVE, RECIPES, ROWWISE, Cast

CAUSES = ("rounding", "underflow", "saturation", "accumulation", "output")


# the metrics


@pytest.mark.parametrize("noise", [1e-12, 1e-3, 0.3, 5.0])
def test_metrics_equal_their_definitions(noise):
    a, b = torch.randn(7, 30), torch.randn(30, 9)
    exact = a.double() @ b.double()
    actual = exact + noise * torch.randn_like(exact)
    error = measure_error(actual, exact, a=a, b=b, outliers=torch.tensor([0, 4]))
    x, y = actual.numpy(), exact.numpy()
    rest = [j for j in range(9) if j not in (0, 4)]
    scale = np.abs(a.numpy().astype(np.float64)) @ np.abs(b.numpy().astype(np.float64))
    expected = (
        np.linalg.norm(x - y) / np.linalg.norm(y),
        np.max(np.abs(x - y) / np.abs(y)),
        10 * np.log10((y**2).sum() / ((x - y) ** 2).sum()),
        ((x - y) ** 2).sum() / (x**2 + y**2).sum(),
        (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()),
        np.max(np.abs(x - y) / scale),
        np.linalg.norm((x - y)[:, rest]) / np.linalg.norm(y[:, rest]),
    )
    np.testing.assert_allclose(error, expected, rtol=1e-12)
    assert measure_error(actual, exact).backward == error.max_relative
    keep = torch.ones(9, dtype=torch.bool)
    keep[rest] = False
    assert measure_error(actual, exact, outliers=keep).off_outliers == error.off_outliers


@pytest.mark.parametrize("noise", [1e-4, 0.1, 3.0])
def test_identities_between_the_metrics(noise):
    exact = torch.randn(20, 20, dtype=torch.float64)
    actual = 1.1 * exact + noise * torch.randn_like(exact)
    error = measure_error(actual, exact)
    r = float(actual.norm() / exact.norm())
    assert error.sqnr_db == decibels(error.relative) == pytest.approx(-20 * math.log10(error.relative))
    assert error.calc_diff == pytest.approx(error.relative**2 / (1 + r**2), rel=1e-12)
    assert error.relative**2 == pytest.approx(1 + r**2 - 2 * r * error.cosine, rel=1e-6)
    deepgemm = 1 - 2 * float((actual * exact).sum()) / float((actual**2 + exact**2).sum())
    assert error.calc_diff == pytest.approx(deepgemm, abs=1e-15)


def test_calc_diff_is_half_the_square_of_a_small_relative_error():
    """Without cancellation: 1 - 2<x, y> / (...) in float64 would be 0 or 1e-16 here."""
    exact = torch.randn(50, 50, dtype=torch.float64)
    error = measure_error(exact * (1 + 1e-9 * torch.randn_like(exact)), exact)
    assert error.calc_diff == pytest.approx(error.relative**2 / 2, rel=1e-6)
    assert 0 < error.calc_diff < 1e-17
    assert measure_error(exact * 1.0457, exact).calc_diff == pytest.approx(1e-3, rel=0.01)  # "allows 4.5 %"


def test_narrow_dtypes_are_compared_in_float64():
    exact = torch.randn(64, 64, dtype=torch.float64)
    rounded = exact.bfloat16()
    assert measure_error(rounded, exact) == measure_error(rounded.double(), exact)
    assert measure_error(torch.full((4,), 300.0).half(), torch.full((4,), 300.0)).relative == 0
    tiny = torch.full((4,), 1e-40)  # its square is 0 in float32
    assert measure_error(1.5 * tiny, tiny).relative == pytest.approx(0.5, rel=1e-4)


def test_zeros_infinities_and_nan():
    zero, one = torch.zeros(2, 2), torch.ones(2, 2)
    perfect = (0, 0, math.inf, 0, 1, 0, None)
    assert measure_error(zero, zero) == measure_error(torch.zeros(0, 3), torch.zeros(0, 3)) == perfect
    assert measure_error(one, zero) == (math.inf, math.inf, -math.inf, 1, 0, math.inf, None)
    assert measure_error(zero, one)[:6] == (1, 1, 0, 1, 0, 1)
    one_zero = torch.tensor((0.0, 1.0))
    assert measure_error(torch.tensor((0.1, 1.0)), one_zero).max_relative == math.inf
    assert measure_error(one_zero, one_zero).max_relative == 0
    broken = one.clone()
    broken[0, 1] = torch.inf
    error = measure_error(broken, one, outliers=torch.tensor([0]))
    assert error[:3] == (math.inf, math.inf, -math.inf)
    assert math.isnan(error.cosine)
    assert error.backward == error.off_outliers == math.inf
    broken[0, 1] = torch.nan
    error = measure_error(broken, one, outliers=torch.tensor([0]))
    assert all(math.isnan(x) for x in error)
    assert measure_error(broken, one, outliers=torch.tensor([1])).off_outliers == 0
    assert math.isnan(measure_error(broken, broken).relative)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"actual": torch.ones(2, 2)}, r"\(2, 2\).*\(2, 3\)"),
        ({"a": torch.ones(2, 4)}, "both a and b"),
        ({"a": torch.ones(2, 4), "b": torch.ones(4, 5)}, r"\(2, 5\).*\(2, 3\)"),
        ({"outliers": torch.tensor([3])}, r"0 to 2"),
        ({"outliers": torch.tensor([-1])}, r"0 to 2"),
        ({"outliers": torch.tensor([True, False])}, r"3 bools"),
        ({"outliers": torch.tensor([[0]])}, r"\(1, 1\)"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    arguments = {"actual": torch.ones(2, 3), "exact": torch.ones(2, 3)} | arguments
    with pytest.raises(ValueError, match=message):
        measure_error(**arguments)


def test_the_frobenius_norm_hides_that_an_outlier_destroys_the_rest():
    """Trap: one column of 4096 is 1e5 times larger, and all share a scale. The error over all columns looks
    good, because the outlier dominates the norm; but 59 % of the other numbers have become 0."""
    x = torch.randn(256, 4096)
    x[:, 1000] *= 1e5
    x[0, 1000] = 3.8e5  # the largest of some 5000 such
    rest = torch.arange(4096) != 1000
    outlier = torch.tensor([1000])
    together, tiles = (fake_quantize(x, "E4M3", block) for block in (None, (1, 128)))
    whole, tiled = (measure_error(y, x, outliers=outlier) for y in (together, tiles))
    assert whole.sqnr_db > 29
    assert 6.3 < decibels(whole.off_outliers) < 6.8
    assert 0.57 < float((together[:, rest] == 0).double().mean()) < 0.61
    assert tiled.sqnr_db > 29
    assert 28.8 < decibels(tiled.off_outliers) < 30  # 31.8 without the 127 in a tile with the outlier
    assert float((tiles[:, rest] == 0).double().mean()) < 0.03


# the causes


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_causes_add_up_to_the_total_error(name, dtype):
    a = (torch.randn(3, 5, 300) * torch.randn(300).exp()).to(dtype)
    b = torch.randn(300, 7).to(dtype)
    breakdown = decompose(a, b, name)
    whole = matmul(a, b, name).double() - a.double() @ b.double()
    assert all(getattr(breakdown, cause).shape == (3, 5, 7) for cause in CAUSES)
    torch.testing.assert_close(breakdown.total, whole, rtol=0, atol=1e-12 * float(whole.norm()))
    torch.testing.assert_close(breakdown.exact, a.double() @ b.double(), rtol=0, atol=0)
    assert tuple(breakdown.norms()) == CAUSES == ErrorBreakdown._fields[:-1]
    assert breakdown.norms()["rounding"] == pytest.approx(
        float(breakdown.rounding.norm() / breakdown.exact.norm())
    )


@pytest.mark.parametrize(
    "recipe",
    [
        ROWWISE.with_(accumulator=Accumulator.tensor_core()),
        DEEPSEEK_V3.with_(accumulator=Accumulator.bf16(promote_every=32)),
        DEEPSEEK_V3.with_(backend="blocks", output=FP16),
        FULL.with_(activation=Cast(INT8, (1, None)), weight=Cast(E2M1, (16, 16), "ocp")),
        RECIPES["deepseek-v3-pow2"].with_(backend="bf16"),
        RECIPES["deepseek-v3-pow2"].with_(backend="blocks"),
    ],
    ids=str,
)
def test_causes_add_up_with_any_accumulator_and_backend(recipe):
    a, b = torch.randn(9, 200), torch.randn(200, 11)
    breakdown = decompose(a, b, recipe)
    whole = matmul(a, b, recipe).double() - a.double() @ b.double()
    torch.testing.assert_close(breakdown.total, whole, rtol=0, atol=1e-12 * float(whole.norm()))


def random_exact(rows, columns):
    """Numbers that E4M3 has: integers up to 15, and 448, which makes the scale 1."""
    x = torch.randint(1, 16, (rows, columns)).float()
    x[:, 0] = 448
    x[0] = 448
    return x


ONLY = {  # cause: operands and recipe with that cause alone
    "rounding": lambda: (1 + torch.rand(8, 64), 1 + torch.rand(64, 8), NAIVE),
    "underflow": lambda: (1e-4 * torch.randn(8, 64), random_exact(64, 8), NAIVE),
    "saturation": lambda: (1e5 * torch.randn(8, 64).sign(), random_exact(64, 8), NAIVE),
    "accumulation": lambda: (
        random_exact(8, 2048), random_exact(2048, 8), ROWWISE.with_(accumulator=Accumulator.tensor_core()),
    ),
    "output": lambda: (random_exact(8, 64), random_exact(64, 8), ROWWISE.with_(output=BF16)),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_an_error_with_one_cause_is_attributed_to_it_alone(cause):
    breakdown = decompose(*ONLY[cause]())
    assert breakdown.dominant == cause
    norms = breakdown.norms()
    assert norms.pop(cause) > 1e-4
    assert max(norms.values()) < 1e-6, norms


def test_the_causes_of_one_number():
    """1x1 products with 1, under no scale: E4M3's range is 2^-9 … 2^-6 (subnormal) … 448, then 464."""
    one = torch.ones(1, 1)
    for value, cause, error in (
        (1.1, "rounding", 1.125 - 1.1),
        (0.0157, "rounding", 0.015625 - 0.0157),  # just above 2^-6
        (0.0156, "underflow", 0.015625 - 0.0156),
        (1e-3, "underflow", 2**-9 - 1e-3),
        (9e-4, "underflow", -9e-4),
        (460.0, "rounding", -12.0),
        (470.0, "saturation", -22.0),
        (-5000.0, "saturation", 4552.0),
    ):
        breakdown = decompose(torch.full((1, 1), value), one, NAIVE)
        assert breakdown.dominant == cause, value
        assert float(getattr(breakdown, cause)) == pytest.approx(error, abs=1e-6 * abs(value)), value
        assert sum(float(getattr(breakdown, other)) != 0 for other in CAUSES) == 1, value


def test_integers_underflow_only_to_zero():
    recipe = FULL.with_(activation=Cast(INT8, None, "none"))
    for value, cause in ((0.3, "underflow"), (0.9, "underflow"), (1.3, "rounding"), (100.2, "rounding")):
        assert decompose(torch.full((1, 1), value), torch.ones(1, 1), recipe).dominant == cause


def test_why_gradients_need_scales():
    """Without scales small gradients underflow and large ones saturate; with tiles only rounding is left. By
    MX's rule the largest number of a block may saturate."""
    g, w = torch.randn(32, 256), torch.randn(256, 32)
    assert decompose(1e-4 * g, w, NAIVE).dominant == "underflow"
    assert decompose(1e4 * g, w, NAIVE).dominant == "saturation"
    for scale in (1e-4, 1.0, 1e4):
        breakdown = decompose(scale * g, w, DEEPSEEK_V3)
        assert breakdown.dominant == "rounding"
        assert breakdown.norms()["saturation"] == 0
    assert 0.005 < decompose(g, w, MXFP8).norms()["saturation"] < 0.03


def test_float64_is_rounded_to_float32_and_saturates_beyond_its_range():
    a, one = torch.tensor([[1 / 3]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    breakdown = decompose(a, one, FULL)
    assert breakdown.dominant == "rounding"
    assert 0 < float(breakdown.rounding.abs()) < 2e-8
    assert decompose(1e300 * a, one, FULL).dominant == "saturation"


def test_quantized_weights_are_exact_and_empty_products_have_no_error():
    a, b = random_exact(8, 128), torch.randn(128, 8)
    breakdown = decompose(a, quantize(b, E5M2, (128, 128)), ROWWISE)
    assert breakdown.rounding.abs().max() == breakdown.underflow.abs().max() == 0
    assert float(breakdown.exact.norm()) > 0
    empty = decompose(torch.zeros(3, 0), torch.zeros(0, 2), DEEPSEEK_V3)
    assert empty.total.shape == (3, 2)
    assert set(empty.norms().values()) == {0.0}
    assert set(decompose(torch.zeros(3, 8), torch.randn(8, 2), DEEPSEEK_V3).norms().values()) == {0.0}


def test_stochastic_sums_add_up_as_well():
    recipe = ROWWISE.with_(accumulator=Accumulator.bf16("stochastic"))
    a, b = torch.rand(4, 64), torch.rand(64, 4)
    torch.manual_seed(3)
    breakdown = decompose(a, b, recipe)
    torch.manual_seed(3)
    whole = matmul(a, b, recipe).double() - a.double() @ b.double()
    torch.testing.assert_close(breakdown.total, whole, rtol=0, atol=1e-12 * float(whole.norm()))


def test_nan_shows_in_the_parts():
    a = torch.randn(4, 64)
    a[1, 1] = torch.nan
    breakdown = decompose(a, torch.randn(64, 4), DEEPSEEK_V3)
    assert breakdown.total[1].isnan().all()
    assert breakdown.total[0].isfinite().all()
    assert math.isnan(breakdown.norms()[breakdown.dominant])
