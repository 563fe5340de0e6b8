"""Blocks, scales and 8-bit storage, against numpy in float64, block by block."""

import math
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from minimoe.precision import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0,
    FP16,
    INT8,
    Quantized,
    blockwise,
    decode,
    encode,
    fake_quantize,
    quantize,
    round_to,
)
from minimoe.precision.scales import scale_of

EIGHT_BITS = [E4M3, E5M2, E4M3FNUZ, E5M2FNUZ, E3M2, E2M3, E2M1, INT8]
BLOCKS = [None, (1, 128), (128, 128), (128, 1), (1, 32), (1, None), (None, 1), (None, None), (3, 5)]
SCALES = ["fp32", "pow2", "ocp", "none", "pow2_nearest", "pow2_down"]


def blocks_of(x, block):
    """(rows, columns) slices of each block of a matrix."""
    rows, columns = (side or size for side, size in zip(block, x.shape, strict=True))
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            yield slice(i, i + rows), slice(j, j + columns)


def numpy_scale(amax, fmt, rule):
    """From the definition, with logarithms exact by frexp."""
    if rule == "none" or amax == 0:
        return 1.0
    fraction, exponent = math.frexp(amax)
    if rule == "ocp":
        return max(2.0 ** (exponent - 1 - (math.frexp(fmt.max)[1] - 1)), 2.0**-126)
    scale = float(np.float32(np.float32(amax) / np.float32(fmt.max)))
    fraction, exponent = math.frexp(scale)  # fraction in [1/2, 1)
    power = {
        "fp32": scale,
        "pow2": 2.0 ** (exponent if fraction > 0.5 else exponent - 1),
        "pow2_down": 2.0 ** (exponent - 1),
        "pow2_nearest": 2.0 ** (exponent if fraction > math.sqrt(0.5) else exponent - 1),
    }[rule]
    return max(power, 2.0**-126)


@pytest.mark.parametrize("block", BLOCKS[1:])
@pytest.mark.parametrize("rule", SCALES)
def test_quantize_equals_numpy_block_by_block(block, rule):
    """Ragged edges included: 130 x 259 is a multiple of no block."""
    x = torch.randn(130, 259) * torch.randn(130, 259).exp()
    for fmt in (E4M3, E5M2, E2M1):
        q = quantize(x, fmt, block, rule)
        expected = np.empty(x.shape, np.float32)
        scales = []
        for i, j in blocks_of(x, block):
            piece = x[i, j].numpy()
            scale = np.float32(numpy_scale(float(np.abs(piece).max()), fmt, rule))
            scales.append(scale)
            dtype = {
                E4M3: ml_dtypes.float8_e4m3fn,
                E5M2: ml_dtypes.float8_e5m2,
                E2M1: ml_dtypes.float4_e2m1fn,
            }
            scaled = np.clip(piece / scale, -fmt.max, fmt.max)
            expected[i, j] = scaled.astype(dtype[fmt]).astype(np.float32) * scale
        np.testing.assert_array_equal(q.dequantize().numpy(), expected)
        np.testing.assert_array_equal(q.scale.flatten().numpy(), np.array(scales))
        assert q.data.dtype == (fmt.dtype or torch.uint8)


@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("shape", [(300, 200), (3, 130, 257), (77,), (2, 3, 128, 128), (), (0, 5), (4, 0)])
def test_fake_quantize_equals_quantize_and_dequantize(fmt, shape):
    """Both are round_to under the scales."""
    x = torch.randn(shape) * 3
    for block in BLOCKS:
        for rule in ("fp32", "pow2", "ocp"):
            q = quantize(x, fmt, block, rule)
            assert q.shape == x.shape
            assert torch.equal(q.dequantize(), fake_quantize(x, fmt, block, rule))
            scale = q.spread_scale().expand(x.shape) if x.numel() else torch.ones(shape)
            assert torch.equal(q.dequantize(), round_to(x / scale, fmt) * scale)
            assert torch.equal(
                fake_quantize(x, fmt, block, rule, torch.bfloat16), q.dequantize(torch.bfloat16)
            )


@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("shape", [(130, 200), (3, 130, 57), (2, 3, 64, 128), (77,), (), (0, 5), (4, 0)])
def test_the_chunked_way_on_a_cpu_equals_the_definition(monkeypatch, fmt, shape):
    """Codes, scales and numbers, in chunks larger and smaller than a matrix, a row of blocks and a block."""
    for dtype, rule, chunk in ((torch.float32, "fp32", 1 << 10), (torch.bfloat16, "ocp", 1 << 17)):
        monkeypatch.setattr(blockwise, "CHUNK", chunk)
        x = (torch.randn(shape) * 3).to(dtype)
        for block in BLOCKS:
            with monkeypatch.context() as patch:
                fast = quantize(x, fmt, block, rule), fake_quantize(x, fmt, block, rule)
                patch.setattr(sys.modules[quantize.__module__], "quantize_chunks", lambda *arguments: None)
                slow = quantize(x, fmt, block, rule), fake_quantize(x, fmt, block, rule)
            assert torch.equal(fast[0].data.view(torch.uint8), slow[0].data.view(torch.uint8))
            assert torch.equal(fast[0].scale, slow[0].scale)
            assert torch.equal(fast[1], slow[1])


def test_leading_axes_have_blocks_of_their_own_and_no_block_is_one_scale():
    x = torch.stack((torch.randn(40, 40), 1000 * torch.randn(40, 40)))
    assert quantize(x, E4M3, (128, 128)).scale.shape == (2, 1, 1)
    assert quantize(x, E4M3, (None, None)).scale.shape == (2, 1, 1)
    assert quantize(x, E4M3).scale.shape == (1, 1, 1)
    assert quantize(x, E4M3).scale.item() == x.abs().max() / 448
    assert quantize(x[0, 0], E4M3, (1, 32)).scale.shape == (2,)
    each = torch.stack([fake_quantize(part, E4M3, (16, 24)) for part in x])
    assert torch.equal(fake_quantize(x, E4M3, (16, 24)), each)
    assert torch.equal(fake_quantize(x.mT, E4M3, (24, 16)), each.mT)


def test_storage_is_8_bits_and_counts_its_scales():
    x = torch.randn(256, 512)
    assert quantize(x, E4M3, (1, 128)).nbytes == 256 * 512 + 4 * 256 * 4
    assert quantize(x, E4M3, (128, 128)).nbytes == 256 * 512 + 4 * 2 * 4
    mx = quantize(x, E4M3, (1, 32), "ocp")
    assert mx.nbytes == 256 * 512 + 256 * 16  # a scale is one byte of E8M0
    assert mx.scale_codes.dtype == torch.float8_e8m0fnu
    assert quantize(x, E2M1, (1, 32), "ocp").data.dtype == torch.uint8


def test_transposed_codes_dequantize_to_the_transpose():
    x = torch.randn(200, 300)
    for block in BLOCKS:
        q = quantize(x, E4M3, block)
        assert torch.equal(q.mT.dequantize(), q.dequantize().T)
        assert torch.equal(q.mT.scale, q.scale.mT)
        assert q.mT.block == (block and block[::-1])


@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_codes_decode_to_their_values_and_back(fmt):
    codes = torch.arange(2**fmt.bits, dtype=torch.uint8)
    expected = fmt.values.float()
    torch.testing.assert_close(decode(codes, fmt), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(decode(codes, fmt).signbit()[~expected.isnan()], expected.signbit()[~expected.isnan()])
    if fmt.dtype:
        torch.testing.assert_close(
            decode(codes.view(fmt.dtype), fmt), expected, rtol=0, atol=0, equal_nan=True
        )
    real = ~expected.isnan()
    again = encode(expected[real], fmt).view(torch.uint8)
    torch.testing.assert_close(decode(again, fmt), expected[real], rtol=0, atol=0)


@pytest.mark.compile
def test_decode_compiles_to_the_same():
    codes = torch.arange(256, dtype=torch.uint8)
    for fmt in (E4M3, E5M2):
        compiled = torch.compile(lambda codes, fmt=fmt: decode(codes, fmt), fullgraph=True)
        torch.testing.assert_close(compiled(codes), fmt.values.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.compile
def test_quantize_compiles_to_the_same():
    x = torch.randn(128, 256)
    x[3, 5] = torch.inf
    compiled = torch.compile(lambda x: fake_quantize(x, E4M3, (1, 128)), fullgraph=True)
    torch.testing.assert_close(compiled(x), fake_quantize(x, E4M3, (1, 128)), rtol=0, atol=0, equal_nan=True)


# Traps


def test_a_block_of_zeros_has_scale_1_and_stays_zero():
    """Trap: 448 / 0, and padding with rows of zeros, give NaN in some implementations."""
    x = torch.randn(4, 256)
    x[1] = 0
    x[2, :128] = 0
    for rule in SCALES:
        q = quantize(x, E4M3, (1, 128), rule)
        assert (q.scale[1] == 1).all()
        assert q.scale[2, 0] == 1
        assert torch.equal(q.dequantize()[1], torch.zeros(256))


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_one_infinity_or_nan_does_not_affect_the_other_127(fmt, bad):
    """Trap: an infinite amax gives an infinite scale, and makes all others in the block 0."""
    x = torch.randn(2, 256)
    clean = quantize(x, fmt, (1, 128))
    x[0, 3] = bad
    q = quantize(x, fmt, (1, 128))
    others = torch.arange(256) != 3
    y = q.dequantize()
    assert not y[0, 3].isfinite()
    x[0, 3] = 0
    assert torch.equal(y[0, others], quantize(x, fmt, (1, 128)).dequantize()[0, others])
    assert torch.equal(y[1], clean.dequantize()[1])
    assert torch.equal(fake_quantize(x, fmt, (1, 128))[1], y[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_keep_infinities_and_nan(dtype):
    x = torch.randn(2, 256).bfloat16().to(dtype)
    x[0, 3], x[1, 7] = torch.inf, torch.nan
    for block in (None, (1, 128)):
        expected = fake_quantize(x.float(), E4M3, block)
        torch.testing.assert_close(fake_quantize(x, E4M3, block), expected, rtol=0, atol=0, equal_nan=True)
    huge = torch.full((1, 128), 1e300, dtype=torch.float64)
    assert (quantize(huge, E4M3).data.float() == 448).all()


def test_a_format_without_nan_says_so_in_the_scale():
    x = torch.randn(2, 64)
    x[0, 40] = torch.nan
    for fmt in (E2M1, E3M2, INT8):
        for rule in ("fp32", "ocp", "none"):
            q = quantize(x, fmt, (1, 32), rule)
            assert q.scale.isnan().tolist() == [[False, True], [False, False]]
            assert q.dequantize()[0, 32:].isnan().all()
            assert q.dequantize()[0, :32].isfinite().all()


@pytest.mark.parametrize("amax", [1e-4, 1e-10, 1e-30, 2.0**-118, 2.0**-126, 1e-42, 2.0**-149])
def test_tiny_blocks_keep_what_float32_can_hold(amax):
    """Trap: 448 / amax overflows below 1.3e-36; a minimum of 1e-4 for amax ruins gradients."""
    x = torch.linspace(-amax, amax, 128)
    for rule in ("fp32", "pow2", "ocp"):
        y = fake_quantize(x, E4M3, (1, 128), rule)
        assert y.isfinite().all()
        if amax >= 448 * 2.0**-126:
            assert ((y - x).abs() <= amax / 15).all()
            assert y.abs().max() > 0.8 * amax
        else:  # the scale is 2^-126: the smallest step is the format's smallest number times that
            assert ((y - x).abs() <= x.abs() / 17 + 2.0**-136).all()


@pytest.mark.parametrize("amax", [1e30, 3e38])
def test_huge_blocks_do_not_overflow_while_scaling(amax):
    x = torch.linspace(-1, 1, 128) * amax
    y = fake_quantize(x, E4M3, (1, 128))
    assert ((y - x).abs() <= amax / 16)[y.isfinite()].all()
    assert quantize(x, E4M3, (1, 128)).data.float().isfinite().all()


def test_power_of_two_scales_round_up_just_above_a_power():
    """Trap: rounded down, the block's largest number saturates; floor(log2) is wrong just below a power."""
    for exponent in range(-110, 110):
        exact = torch.tensor([448 * 2.0**exponent])
        above, below = exact.nextafter(torch.tensor(torch.inf)), exact.nextafter(torch.tensor(0.0))
        assert scale_of(exact, E4M3, "pow2").item() == 2.0**exponent
        assert scale_of(above, E4M3, "pow2").item() == 2.0 ** (exponent + 1)
        assert scale_of(below, E4M3, "pow2").item() == 2.0**exponent
        assert scale_of(torch.tensor([2.0**exponent]).nextafter(torch.tensor([0.0])), E4M3, "ocp").item() == (
            2.0 ** max(exponent - 1 - 8, -126)
        )
    x = torch.randn(1000, 128)
    assert (quantize(x, E4M3, (1, 128), "pow2").data.float().abs() <= 448).all()
    assert (x.abs().amax(1) <= 448 * quantize(x, E4M3, (1, 128), "pow2").scale[:, 0]).all()


def test_scales_are_never_zero_dimensional():
    """Trap: a 0-dim float32 scale does not promote a bf16 tensor."""
    q = quantize(torch.randn(4, 8).bfloat16(), E4M3)
    assert q.scale.shape == (1, 1)
    assert q.dequantize().dtype == torch.float32


def test_requantizing_along_the_other_axis():
    """Trap: with scales that are powers of two it costs (almost) nothing, with float32 scales decibels."""
    x = torch.randn(256, 256)

    def loss(rule):
        once = fake_quantize(x, E4M3, (1, 128), rule)
        twice = fake_quantize(once, E4M3, (128, 1), rule)
        return (10 * torch.log10((once - x).square().sum() / (twice - x).square().sum())).item()

    assert abs(loss("pow2")) < 0.01
    assert loss("fp32") < -2


def test_bf16_and_float64_are_rounded_once():
    x = torch.randn(64, 128)
    assert torch.equal(
        fake_quantize(x.bfloat16(), E4M3, (1, 128)), fake_quantize(x.bfloat16().float(), E4M3, (1, 128))
    )
    # 1.0625 is the midpoint of 1 and 1.125; float32 drops the tail, and the tie goes down.
    x64 = torch.tensor([[448.0, 1.0625 + 1e-12]], dtype=torch.float64)
    assert fake_quantize(x64, E4M3).tolist() == [[448.0, 1.125]]
    assert fake_quantize(x64.float(), E4M3).tolist() == [[448.0, 1.0]]


def test_nothing_depends_on_strides_or_pieces():
    """Larger than a chunk, and as a view of a transpose and of a slice."""
    x = torch.randn(700, 900)
    for block in BLOCKS:
        y = fake_quantize(x, E4M3, block)
        assert torch.equal(fake_quantize(x.T.contiguous().T, E4M3, block), y)
        assert torch.equal(fake_quantize(torch.cat((x, x), 1)[:, :900], E4M3, block), y)


def test_signal_to_noise_of_gaussians():
    """The published figures in dB, to 0.15: any wrong scale or rounding is further off."""
    x = torch.randn(1024, 1024)

    def decibels(fmt, block=None, rule="fp32"):
        error = fake_quantize(x, fmt, block, rule) - x
        return (-10 * torch.log10(error.square().sum() / x.square().sum())).item()

    for expected, *how in (
        (31.54, E4M3),
        (31.80, E4M3, (1, 128)),
        (31.55, E4M3, (128, 128)),
        (31.5, E4M3, (1, 128), "pow2"),
        (26.8, E4M3, (1, 128), "pow2_nearest"),
        (16.8, E4M3, (1, 128), "pow2_down"),
        (30.7, E4M3, (1, 32), "ocp"),
        (31.5, E4M3, (1, 32), "pow2"),
        (18.8, E2M1, (1, 32), "ocp"),
        (43.8, INT8, (1, 128)),
        (25.6, E5M2),
    ):
        assert decibels(*how) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("block", [(0, 128), (-1, 1), (1, 2, 3), (1.5, 2), 128, "tile", (True, 1)])
def test_invalid_blocks_are_refused(block):
    with pytest.raises(ValueError, match="block must be"):
        quantize(torch.ones(4, 4), E4M3, block)


def test_bad_input_is_refused():
    x = torch.ones(4, 4)
    with pytest.raises(ValueError, match="unknown format 'e4m4'; use one of E4M3"):
        quantize(x, "e4m4")
    with pytest.raises(ValueError, match=r"at most 8 bits, not FP16 \(16 bits\)"):
        quantize(x, FP16)
    with pytest.raises(ValueError, match="signed formats"):
        quantize(x, E8M0)
    with pytest.raises(ValueError, match="scale must be one of fp32, pow2"):
        quantize(x, E4M3, scale="log")
    with pytest.raises(TypeError, match=r"not torch.int64"):
        quantize(x.long(), E4M3)
    with pytest.raises(TypeError, match=r"not torch.float8_e4m3fn"):
        quantize(x.to(torch.float8_e4m3fn), E4M3)
    with pytest.raises(TypeError, match="codes of E4M3"):
        decode(x.bfloat16(), E4M3)
    with pytest.raises(ValueError, match="at most 8"):
        decode(x, FP16)
    with pytest.raises(ValueError, match="at most 8"):
        encode(x, FP16)


def test_codes_converted_to_bf16_are_refused():
    q = quantize(torch.randn(4, 4), E4M3)
    with pytest.raises(TypeError, match="codes of E4M3 are"):
        Quantized(q.data.bfloat16(), q.scale_codes, E4M3, None).dequantize()
