"""Matmuls under a recipe, against operands quantized by hand in numpy and multiplied in float64."""

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minimoe.precision import (
    BF16,
    DEEPSEEK_V3,
    DEEPSEEK_V3_POW2,
    E4M3,
    FULL,
    MXFP8,
    NAIVE,
    RECIPES,
    ROWWISE,
    TENSORWISE,
    Accumulator,
    Cast,
    Recipe,
    grouped_matmul,
    matmul,
    quantize,
)
from minimoe.precision.backends import multiplies_bf16_fast
from minimoe.precision.grouped_matmul import dequantized_dtype
from minimoe.precision.scaled_mm import unsupported_reason

DTYPES = {"E4M3": (ml_dtypes.float8_e4m3fn, 448.0), "E5M2": (ml_dtypes.float8_e5m2, 57344.0)}
# The casts of (activation, weight, gradient) per recipe: format, rows x contracted columns, scale.
BY_HAND = {
    "full": [None, None, None],
    "deepseek-v3": [("E4M3", (1, 128), "fp32"), ("E4M3", (128, 128), "fp32"), ("E4M3", (1, 128), "fp32")],
    "deepseek-v3-pow2": [("E4M3", (1, 128), "up"), ("E4M3", (128, 128), "up"), ("E4M3", (1, 128), "up")],
    "tensorwise": [("E4M3", (0, 0), "fp32"), ("E4M3", (0, 0), "fp32"), ("E5M2", (0, 0), "fp32")],
    "rowwise": [("E4M3", (1, 0), "fp32")] * 3,
    "mxfp8": [("E4M3", (1, 32), "ocp")] * 3,
    "naive": [("E4M3", (0, 0), "none")] * 3,
}


def by_hand(x, cast):
    """x (rows, contracted) after its cast, float64; a side of 0 is the whole axis."""
    if cast is None:
        return x.astype(np.float64)
    (dtype, largest), (rows, columns), rule = DTYPES[cast[0]], cast[1], cast[2]
    rows, columns = rows or x.shape[0], columns or x.shape[1]
    out = np.empty(x.shape, np.float64)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            piece = x[i : i + rows, j : j + columns]
            amax = np.abs(piece).max()
            if rule == "none":
                scale = np.float32(1)
            elif rule == "ocp":
                scale = np.float32(2.0 ** (np.frexp(amax)[1] - 1 - 8))
            else:
                scale = np.float32(amax) / np.float32(largest)
            if rule == "up":
                fraction, exponent = np.frexp(scale)
                scale = np.float32(2.0 ** (exponent - (fraction == 0.5)))
            codes = np.clip(piece / scale, -largest, largest).astype(dtype)
            out[i : i + rows, j : j + columns] = codes.astype(np.float64) * np.float64(scale)
    return out


def close(actual, expected, magnitude, bits=24):
    """Assert equality up to the error of float32 sums of some hundred terms and ``bits`` of the result."""
    bound = magnitude * 300 * 2.0**-24 + np.abs(expected) * 2.0**-bits
    assert actual.shape == expected.shape
    assert (np.abs(actual.detach().numpy() - expected) <= bound).all()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", [(130, 200, 150), (64, 256, 128), (5, 7, 3), (1, 130, 1)])
def test_forward_and_both_gradients_equal_operands_quantized_by_hand(name, shape):
    """Every product quantizes its operands along the axis it contracts, from high precision. The upstream
    gradient is random, with a random scale per row: one of ones would not test its quantization."""
    m, k, n = shape
    x, w = torch.randn(m, k) * torch.randn(m, 1).exp(), torch.randn(n, k) / 8
    g = torch.randn(m, n) * (3 * torch.randn(m, 1)).exp() * 1e-3
    x.requires_grad_()
    w.requires_grad_()
    y = matmul(x, w.T, name)
    y.backward(g)
    activation, weight, gradient = BY_HAND[name]
    bits = 8 if RECIPES[name].output == BF16 else 24
    X, W, G = (t.detach().numpy() for t in (x, w, g))
    for actual, a, b in (
        (y, by_hand(X, activation), by_hand(W, weight).T),
        (x.grad, by_hand(G, gradient), by_hand(W.T, weight).T),
        (w.grad, by_hand(G.T, gradient), by_hand(X.T, activation).T),
    ):
        close(actual, a @ b, np.abs(a) @ np.abs(b), bits)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "full"])
def test_8_bit_results_differ_from_full_precision_by_a_few_percent(name):
    x, w, g = torch.randn(130, 256), torch.randn(64, 256), torch.randn(130, 64)
    results = {}
    for recipe in (name, "full"):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = matmul(leaves[0], leaves[1].T, recipe)
        results[recipe] = (y, *torch.autograd.grad(y, leaves, g))
    for low, full in zip(results[name], results["full"], strict=True):
        assert 0.02 < ((low - full).norm() / full.norm()).item() < 0.08


def test_the_published_error_of_v3s_blocks():
    """512 x 512, K = 4096, randn: relative Frobenius error 3.68%."""
    a, b = torch.randn(512, 4096), torch.randn(4096, 512)
    exact = a.double() @ b.double()
    assert ((matmul(a, b, DEEPSEEK_V3) - exact).norm() / exact.norm()).item() == pytest.approx(
        0.0368, abs=2e-4
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_definition_block_by_block_agrees_with_dequantizing_first(name):
    a, b = torch.randn(70, 400, requires_grad=True), torch.randn(400, 50, requires_grad=True)
    recipe = RECIPES[name].with_(output=None)
    magnitude = a.abs() @ b.abs()
    dequantized = matmul(a, b, recipe.with_(backend="dequantize"))
    blocks = matmul(a, b, recipe.with_(backend="blocks"))
    assert ((dequantized - blocks).abs() <= 1e-6 * magnitude).all()
    g = torch.randn(70, 50)
    for one, other in zip(
        torch.autograd.grad(dequantized, (a, b), g), torch.autograd.grad(blocks, (a, b), g), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_blocks_promote_each_tile_into_float32_under_its_scales():
    """By hand: the tensor core's sum of the codes of one tile, times both scales, added to the total."""
    a, b = torch.rand(6, 300), torch.rand(300, 9)
    recipe = DEEPSEEK_V3.with_(accumulator=Accumulator.tensor_core(promote_every=128))
    qa, qb = quantize(a, E4M3, (1, 128)), quantize(b, E4M3, (128, 128))
    total = torch.zeros(6, 9)
    for i, k in enumerate(range(0, 300, 128)):
        tile = slice(k, k + 128)
        part = Accumulator.tensor_core().matmul(qa.data.float()[:, tile], qb.data.float()[tile])
        total += (part.double() * qa.scale[:, i : i + 1] * qb.scale[i]).float()
    assert torch.equal(matmul(a, b, recipe), total)
    assert not torch.equal(total, matmul(a, b, DEEPSEEK_V3))


def test_the_product_of_extreme_scales_does_not_overflow():
    """1e22 and 1e22 are in no common product, but the scales of their blocks are."""
    a, b = torch.zeros(1, 2), torch.zeros(2, 1)
    a[0, 0], b[1, 0] = 1e22, 1e22
    tiny = torch.full((1, 128), 1e-20), torch.full((128, 1), 1e-18)
    for one, other in ((a, b), tiny):
        dequantized, blocks = (
            matmul(one, other, DEEPSEEK_V3.with_(backend=how)) for how in ("dequantize", "blocks")
        )
        torch.testing.assert_close(blocks, dequantized, rtol=1e-6, atol=0)


def test_the_bf16_backend_is_exact_under_scales_of_powers_of_two():
    """Products exact, sums in float32, one rounding: within half a unit of bf16 of the float32 matmul."""
    a, b = torch.randn(100, 300), torch.randn(300, 80)
    dequantized = matmul(a, b, DEEPSEEK_V3_POW2.with_(backend="dequantize", output=None))
    fast = matmul(a, b, DEEPSEEK_V3_POW2.with_(backend="bf16"))
    assert torch.equal(fast, fast.bfloat16().float())
    close(fast, dequantized.double().numpy(), (a.abs() @ b.abs()).numpy(), bits=8)
    assert torch.equal(matmul(a, b, DEEPSEEK_V3_POW2), fast) or not multiplies_bf16_fast(a.device)
    with pytest.raises(ValueError, match="unlike deepseek-v3; use 'dequantize'"):
        DEEPSEEK_V3.with_(backend="bf16")
    codes = quantize(b, E4M3, (128, 128))  # scales in float32
    with pytest.raises(ValueError, match="not exact in bf16; use 'dequantize'"):
        matmul(a, codes, DEEPSEEK_V3_POW2.with_(backend="bf16"))


@pytest.mark.parametrize("recipe", [TENSORWISE, ROWWISE], ids=lambda recipe: recipe.name)
def test_the_hardware_matmul_agrees_with_the_emulation(recipe):
    a, b = torch.randn(64, 128, requires_grad=True), torch.randn(128, 48, requires_grad=True)
    reason = unsupported_reason(a, b, recipe.activation, recipe.weight)
    if reason:
        pytest.skip(reason)
    hard, dequantized = (
        matmul(a, b, recipe.with_(backend=backend)) for backend in ("hardware", "dequantize")
    )
    assert ((hard - dequantized).abs() <= 1e-6 * (a.abs() @ b.abs())).all()
    g = torch.randn(64, 48)
    for one, other in zip(
        torch.autograd.grad(hard, (a, b), g), torch.autograd.grad(dequantized, (a, b), g), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_unsupported_hardware_is_refused_with_the_reason():
    a = torch.randn(128, 128)
    with pytest.raises(ValueError, match=r"'hardware' does not support .*: a CPU supports one scale per"):
        matmul(a, a, DEEPSEEK_V3.with_(backend="hardware"))
    with pytest.raises(ValueError, match=r"does not support scales for blocks \(1, 32\) with \(1, 32\)"):
        matmul(a, a, MXFP8.with_(backend="hardware"))
    with pytest.raises(ValueError, match="a size is zero"):
        matmul(a[:0], a, TENSORWISE.with_(backend="hardware"))
    with pytest.raises(ValueError, match="plain tensors that the recipe casts"):
        matmul(a, a, FULL.with_(backend="hardware"))


def test_the_gradient_is_not_cast_to_unscaled_8_bits():
    """Trap: autograd through ``x.to(float8).float()`` casts the gradient too, and small ones become 0."""
    x, w = torch.randn(8, 128, requires_grad=True), torch.randn(128, 8)
    g = torch.full((8, 8), 1e-6) * torch.randn(8, 8)
    matmul(x, w, DEEPSEEK_V3).backward(g)
    assert ((x.grad - g @ w.T).norm() / (g @ w.T).norm()).item() < 0.06
    naive = x.detach().requires_grad_()
    (naive.to(torch.float8_e4m3fn).float() @ w).backward(g)
    assert (naive.grad == 0).all()
    unscaled = x.detach().requires_grad_()
    matmul(unscaled, w, NAIVE).backward(g)
    assert (unscaled.grad == 0).all()


def test_leading_axes_dtypes_and_empty_sizes():
    a, b = torch.randn(2, 3, 40), torch.randn(40, 6)
    for recipe in RECIPES.values():
        y = matmul(a, b, recipe)
        assert torch.equal(y, matmul(a.view(6, 40), b, recipe).view(2, 3, 6))
        assert matmul(a.bfloat16(), b, recipe).dtype == torch.bfloat16
        assert matmul(a[:0], b, recipe).shape == (0, 3, 6)
        empty = torch.zeros(4, 0, requires_grad=True)
        y = matmul(empty, torch.zeros(0, 5), recipe)
        assert torch.equal(y, torch.zeros(4, 5))
        y.sum().backward()
        assert empty.grad.shape == (4, 0)


@pytest.mark.parametrize("sizes", [[130, 0, 7, 256, 57], [0, 0, 4, 0, 0], [128, 128, 128, 128, 128]])
@pytest.mark.parametrize("name", RECIPES)
def test_grouped_is_group_by_group(name, sizes):
    rows = sum(sizes)
    a, w = torch.randn(rows, 160, requires_grad=True), torch.randn(5, 72, 160, requires_grad=True)
    g = torch.randn(rows, 72)
    for backend in ("dequantize", "blocks", *["bf16"] * (name == "deepseek-v3-pow2")):
        recipe = RECIPES[name].with_(backend=backend)
        y = grouped_matmul(a, w.mT, torch.tensor(sizes).cumsum(0), recipe)
        one_by_one = torch.cat([matmul(part, m.T, recipe) for part, m in zip(a.split(sizes), w, strict=True)])
        assert torch.equal(y, one_by_one)
        for grouped, single in zip(
            torch.autograd.grad(y, (a, w), g), torch.autograd.grad(one_by_one, (a, w), g), strict=True
        ):
            assert torch.equal(grouped, single)


def test_groups_are_multiplied_in_bf16_where_that_pays():
    """A CPU prepares its bf16 matmul again for every number of rows, which is too slow for small groups."""
    a, w, casts = (
        torch.zeros(8, 32),
        torch.zeros(2, 32, 16),
        (DEEPSEEK_V3_POW2.activation, DEEPSEEK_V3_POW2.weight),
    )
    fast = torch.bfloat16 if multiplies_bf16_fast(a.device) else torch.float32
    for recipe, work, dtype in (
        (DEEPSEEK_V3_POW2, 2**24, fast),
        (DEEPSEEK_V3_POW2, 2**24 - 1, torch.float32),
        (DEEPSEEK_V3_POW2.with_(backend="bf16"), 1, torch.bfloat16),
        (DEEPSEEK_V3_POW2.with_(backend="blocks"), 2**30, None),
    ):
        assert dequantized_dtype(a, w, *casts, recipe, work) == dtype
    a, w = torch.randn(1024, 256), torch.randn(2, 256, 128)  # 2^24 for each group
    y = grouped_matmul(a, w, [512, 1024], DEEPSEEK_V3_POW2)
    if fast == torch.bfloat16:
        assert torch.equal(y, grouped_matmul(a, w, [512, 1024], DEEPSEEK_V3_POW2.with_(backend="bf16")))


def test_weights_stored_as_codes_multiply_like_their_originals():
    a, b = torch.randn(9, 300), torch.randn(200, 300)
    for recipe in (DEEPSEEK_V3, DEEPSEEK_V3_POW2, TENSORWISE, ROWWISE, MXFP8, NAIVE):
        for backend in ("auto", "blocks"):
            how = recipe.with_(backend=backend)
            codes = recipe.weight.quantize(b, -1)
            torch.testing.assert_close(matmul(a, codes.mT, how), matmul(a, b.T, how), rtol=1e-5, atol=1e-5)


def test_casts_of_one_operand_only():
    """Weights in 8 bits, activations in float32."""
    recipe = Recipe("weights only", weight=Cast(E4M3, (128, 128)))
    a, b = torch.randn(20, 200), torch.randn(200, 30)
    expected = a @ quantize(b, E4M3, (128, 128)).dequantize()
    for backend in ("dequantize", "blocks"):
        torch.testing.assert_close(
            matmul(a, b, recipe.with_(backend=backend)), expected, rtol=1e-5, atol=1e-4
        )


def test_output_is_rounded_where_the_recipe_says():
    a, b = torch.randn(20, 64), torch.randn(64, 30)
    y = matmul(a, b, DEEPSEEK_V3.with_(output=BF16))
    assert torch.equal(y, matmul(a, b, DEEPSEEK_V3).bfloat16().float())
    y = matmul(a, b, DEEPSEEK_V3.with_(output=E4M3))
    assert torch.equal(y, y.to(torch.float8_e4m3fn).float())


def test_full_is_torchs_matmul():
    a, w = torch.randn(30, 64), torch.randn(20, 64)
    assert torch.equal(matmul(a, w.T, "full"), F.linear(a, w))


def test_bad_input_is_refused():
    a = torch.ones(4, 8)
    with pytest.raises(ValueError, match="unknown recipe 'fp8'; use one of full, deepseek-v3"):
        matmul(a, a.T, "fp8")
    with pytest.raises(ValueError, match=r"a is \(4, 8\) and b is \(4, 8\)"):
        matmul(a, a, "full")
    with pytest.raises(ValueError, match=r"\(E, K, N\)"):
        grouped_matmul(a, a.T, [4], "full")
    with pytest.raises(TypeError, match=r"b must be a tensor of floats, not torch.int64"):
        matmul(a, a.T.long(), "full")
    with pytest.raises(ValueError, match="backend must be one of auto, dequantize"):
        DEEPSEEK_V3.with_(backend="cuda")
    with pytest.raises(ValueError, match="sums in float32; use 'blocks'"):
        DEEPSEEK_V3.with_(accumulator=Accumulator.bf16(), backend="dequantize")
    with pytest.raises(ValueError, match="block must be"):
        Cast(E4M3, (0, 128))
    with pytest.raises(ValueError, match="scale must be one of"):
        Cast(E4M3, (1, 128), "log2")
    for ends in ([2], [2, 3], [3, 2, 4], [1, 2, 5]):
        with pytest.raises(ValueError, match="must be one for each of the 3 matrices"):
            grouped_matmul(a, torch.ones(3, 8, 2), ends, "full")
