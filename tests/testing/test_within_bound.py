"""assert_within_bound accepts correct results, and detects and locates errors larger than rounding."""

import doctest
import re

import pytest
import torch

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.analysis import bound, exact_product
from minimoe.precision.formats import E4M3
from minimoe.precision.matmul import matmul
from minimoe.precision.quantize import fake_quantize, quantize
from minimoe.precision.recipe import DEEPSEEK_V3, DEEPSEEK_V3_POW2, FULL, RECIPES, ROWWISE
from minimoe.testing import assert_within_bound
from minimoe.testing import bounds as within

KINDS = ("deterministic", "probabilistic")


def report(actual, a, b, recipe, kind="deterministic"):
    with pytest.raises(AssertionError) as error:
        assert_within_bound(actual, a, b, recipe, kind)
    print(error.value)
    return str(error.value)


def uneven(rows, columns):
    """Magnitudes that differ from block to block, so that a wrong block's scale matters."""
    x = torch.randn(rows, columns)
    blocks = torch.exp2(torch.randint(-6, 7, (rows // 128 + 1, columns // 128 + 1)))
    return x * blocks.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]


def v3_by_hand(a, b, side=128):
    """Another implementation: dequantize, multiply."""
    return fake_quantize(a, E4M3, (1, side)) @ fake_quantize(b, E4M3, (side, side))


# what is accepted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_within_its_own_bound(name, kind):
    a, b = torch.randn(2, 8, 300), torch.randn(300, 20)
    margin = assert_within_bound(matmul(a, b, name), a, b, name, kind)
    assert 0.001 < margin < (1 / 2.5 if kind == "probabilistic" else 0.3)


def test_the_margin_is_the_largest_error_over_its_bound():
    a, b = torch.randn(8, 256), torch.randn(256, 8)
    y = matmul(a, b, "deepseek-v3")
    expected = (y.double() - exact_product(a, b)).abs() / bound(a, b, "deepseek-v3")
    assert assert_within_bound(y, a, b, "deepseek-v3") == float(expected.max())
    assert assert_within_bound(torch.zeros(3, 2), torch.zeros(3, 64), torch.randn(64, 2), FULL) == 0
    assert assert_within_bound(torch.zeros(0, 2), torch.zeros(0, 64), torch.randn(64, 2), FULL) == 0


def test_all_backends_pass():
    a, b = uneven(64, 384), uneven(384, 64)
    for recipe, backends in (
        (DEEPSEEK_V3, ("auto", "dequantize", "blocks")),
        (DEEPSEEK_V3_POW2, ("auto", "dequantize", "bf16", "blocks")),
        (ROWWISE, ("auto", "hardware", "blocks")),
    ):
        for backend in backends:
            assert_within_bound(matmul(a, b, recipe.with_(backend=backend)), a, b, recipe, "probabilistic")
    assert_within_bound(v3_by_hand(a, b), a, b, DEEPSEEK_V3, "probabilistic")
    codes = quantize(b, E4M3, (128, 128))
    assert_within_bound(matmul(a, codes, DEEPSEEK_V3), a, codes, DEEPSEEK_V3, "probabilistic")
    a, b = torch.rand(16, 1024), torch.rand(1024, 16)
    core = ROWWISE.with_(accumulator=Accumulator.tensor_core(13, 128))
    for kind in KINDS:
        assert_within_bound(matmul(a, b, core), a, b, core, kind)
        assert_within_bound(matmul(a, b, ROWWISE), a, b, core, kind)  # a more exact result is accepted


def test_the_example_of_the_docstring_runs():
    results = doctest.testmod(within, optionflags=doctest.ELLIPSIS)
    assert results.attempted == 5
    assert results.failed == 0


# what is detected


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_without_scales(kind):
    a, b = 1e-4 * torch.rand(32, 256), torch.rand(256, 32)
    text = report(matmul(a, b, "naive"), a, b, "deepseek-v3", kind)
    assert re.search(rf"deepseek-v3: 1024 of 1024 elements exceed the {kind} bound", text)
    assert "100% too small" in text
    assert re.search(
        r"relative error 1, the recipe's own is 0\.00\d+, most of it rounding \(rounding 0\.00", text
    )


@pytest.mark.parametrize("kind", KINDS)
def test_transposed_scales(kind):
    a, b = torch.randn(32, 256), torch.randn(256, 256)
    b[:128, 128:] *= 64
    codes = quantize(b, E4M3, (128, 128))
    scale = codes.scale.T.repeat_interleave(128, 0).repeat_interleave(128, 1)
    wrong = v3_by_hand(a, torch.eye(256)) @ (codes.data.float() * scale)
    assert "in 32 of 32 rows" in report(wrong, a, b, "deepseek-v3", kind)


def test_one_wrong_scale_is_located_by_its_rows_or_columns():
    a, b = torch.randn(32, 512), torch.randn(512, 256)
    left, right = fake_quantize(a, E4M3, (1, 128)), fake_quantize(b, E4M3, (128, 128))
    left[5, 128:256] *= 2
    text = report(left @ right, a, b, "deepseek-v3", "probabilistic")
    assert re.search(r"worst at \(5, \d+\): .* times the bound of", text)
    assert re.search(r"in 1 of 32 rows and \d\d of 256 columns", text)
    left, right = fake_quantize(a, E4M3, (1, 128)), fake_quantize(b, E4M3, (128, 128))
    right[128:256, 128:] *= 2
    text = report(left @ right, a, b, "deepseek-v3", "probabilistic")
    assert int(re.search(r"and (\d+) of 256 columns", text)[1]) <= 128
    left[3, :] *= 2  # all of one row
    assert "in 1 of 32 rows" in report((left @ fake_quantize(b, E4M3, (128, 128)))[:], a, b, "deepseek-v3")


def test_another_tile_than_the_codes_were_made_with():
    a, b = uneven(32, 512), torch.randn(512, 32)
    codes = quantize(a, E4M3, (1, 64))
    wrong = codes.data.float() * codes.scale[:, ::2].repeat_interleave(128, 1)
    assert_within_bound(codes.dequantize() @ b, a, b, DEEPSEEK_V3.with_(weight=None))
    wrong[:, 64:128] *= 4
    report(wrong @ b, a, b, DEEPSEEK_V3.with_(weight=None))


def test_sums_that_are_not_promoted():
    a, b = torch.rand(32, 4096), torch.rand(4096, 32)
    promised = ROWWISE.with_(accumulator=Accumulator.tensor_core(13, promote_every=128))
    unpromoted = matmul(a, b, ROWWISE.with_(accumulator=Accumulator.tensor_core(13)))
    text = report(unpromoted, a, b, promised, "probabilistic")
    assert "1024 of 1024 elements" in text
    assert "100% too small: terms lost in sums" in text
    few_bits = matmul(a, b, ROWWISE.with_(accumulator=Accumulator.tensor_core(11)))
    report(few_bits, a, b, promised)
    assert_within_bound(matmul(a, b, promised), a, b, promised, "probabilistic")


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_where_nothing_may_be_rounded(kind):
    a, b = torch.randn(32, 256), torch.randn(256, 32)
    assert "most of it accumulation" in report(matmul(a, b, FULL).bfloat16(), a, b, FULL, kind)
    report(a.bfloat16().float() @ b, a, b, FULL, kind)
    a, b = a.bfloat16(), b.bfloat16()
    assert_within_bound(matmul(a, b, FULL), a, b, FULL, kind)  # a in bf16: so is the result


def test_nan_is_found_and_reported():
    a, b = torch.randn(8, 64), torch.randn(64, 8)
    y = matmul(a, b, "deepseek-v3")
    y[2, 3], y[4, 4] = torch.nan, torch.inf
    text = report(y, a, b, "deepseek-v3")
    assert "2 of 64 elements" in text
    assert "worst at (2, 3): nan instead of" in text
    assert "2 of them not finite" in text
    a[2] = torch.inf  # where the inputs are not finite, the result is not checked
    y[4, 4] = 1e3
    assert "1 of 64 elements" in report(y, a, b, "deepseek-v3")


def add_products_in_bf16(a, b):
    """A running sum that is rounded to bf16 after every product."""
    sums = torch.zeros(len(a), b.shape[1], dtype=torch.bfloat16)
    for k in range(a.shape[1]):
        sums = (sums.float() + a[:, k, None] * b[k]).bfloat16()
    return sums.float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [130, 1030])
def test_exact_inputs_and_the_recipe_full_detect_wrong_sums(k, kind):
    """Of numbers that are E4M3 already only the accumulation is bounded."""
    codes = torch.randn(64, k).to(torch.float8_e4m3fn), torch.randn(k, 32).to(torch.float8_e4m3fn)
    scales = torch.exp2(torch.randint(-4, 5, (64, 1))), torch.exp2(torch.randint(-4, 5, (1, 32)))
    a, b = (x.float() * scale for x, scale in zip(codes, scales, strict=True))
    unscaled = codes[0].float() @ codes[1].float()
    assert assert_within_bound(unscaled * scales[0] * scales[1], a, b, FULL, kind) < 0.01
    whole_tiles = k // 128 * 128
    report(a[:, :whole_tiles] @ b[:whole_tiles], a, b, FULL, kind)
    report(add_products_in_bf16(a, b), a, b, FULL, kind)
    report(unscaled, a, b, FULL, kind)


def test_sums_without_an_error_of_the_recipe_itself():
    """At K = 130 float32 adds products of E4M3 numbers exactly: there is no cause to name."""
    a, b = (torch.randn(16, 130).to(torch.float8_e4m3fn).float() for _ in range(2))
    text = report(a[:, :128] @ b.T[:128], a, b.T, FULL)
    assert "the recipe's own is 0 (these inputs and their sums are exact)" in text


# what is not detected


def test_the_rounding_of_inputs_hides_wrong_sums():
    """It dominates the bound of a recipe that casts."""
    a, b = torch.randn(64, 1024), torch.randn(1024, 32)
    in_bf16 = add_products_in_bf16(fake_quantize(a, E4M3, (1, 1024)), fake_quantize(b, E4M3, (1024, 1)))
    for kind in KINDS:
        assert_within_bound(matmul(a[:, :-16], b[:-16], "rowwise"), a, b, "rowwise", kind)
        assert_within_bound(in_bf16, a, b, "rowwise", kind)
    a, b = torch.randn(64, 4096), torch.randn(4096, 32)
    without_tail = matmul(a[:, :-128], b[:-128], "rowwise")
    assert_within_bound(without_tail, a, b, "rowwise")
    report(without_tail, a, b, "rowwise", "probabilistic")


def test_errors_as_small_as_rounding_pass():
    """A limit of the check: none of these is what the recipe says, and none is outside its bound."""
    a, b = torch.randn(32, 512), torch.randn(512, 32)
    for wrong in (
        v3_by_hand(a, b, side=64),
        v3_by_hand(a.bfloat16().float(), b.bfloat16().float()),  # rounded twice
        v3_by_hand(a, b).bfloat16(),
        matmul(a, b, DEEPSEEK_V3.with_(accumulator=Accumulator.tensor_core(10))),
    ):
        for kind in KINDS:
            assert_within_bound(wrong, a, b, "deepseek-v3", kind)


def test_the_deterministic_bound_of_a_long_sum_of_random_signs_is_vacuous():
    """At K = 8192 it accepts zeros; the probabilistic one does not."""
    a, b = torch.randn(16, 8192), torch.randn(8192, 16)
    assert_within_bound(torch.zeros(16, 16), a, b, "deepseek-v3")
    report(torch.zeros(16, 16), a, b, "deepseek-v3", "probabilistic")


def test_invalid_arguments_are_refused():
    a, b = torch.randn(8, 64), torch.randn(64, 8)
    y = a @ b
    with pytest.raises(ValueError, match=r"actual is \(7, 8\), but a b is \(8, 8\)"):
        assert_within_bound(y[1:], a, b, "deepseek-v3")
    with pytest.raises(ValueError, match="unknown recipe 'v3'; use one of full, deepseek-v3"):
        assert_within_bound(y, a, b, "v3")
    with pytest.raises(ValueError, match="bound of all 64 elements is infinite"):
        assert_within_bound(y, a, b, ROWWISE.with_(accumulator=Accumulator.fp16()))
    with pytest.raises(ValueError, match="kind must be one of"):
        assert_within_bound(y, a, b, "deepseek-v3", "sure")
