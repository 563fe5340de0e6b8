"""Accumulators against mmaemu's model of Hopper's tensor core, its definition step by step in float64, and
exact fractions rounded one by one."""

import warnings
from fractions import Fraction

import pytest
import torch

from minimoe.precision import BF16, E2M1, E4M3, E5M2, FP16, FP32, Accumulator, Format, round_to, tensor_core
from minimoe.precision.tensor_core import OUTPUT_TILE, PRODUCTS_PER_STEP

mmaemu = pytest.importorskip("mmaemu")

CASES = {
    "uniform": lambda shape, fmt: torch.rand(shape),
    "randn": lambda shape, fmt: torch.randn(shape),
    "randn + 1": lambda shape, fmt: torch.randn(shape) + 1,
    "every code": lambda shape, fmt: (
        fmt.values[torch.randint(0, 2**fmt.bits, shape)].float().nan_to_num(0, 0, 0)
    ),
    "subnormal": lambda shape, fmt: torch.randn(shape) * 2 * fmt.min_subnormal,
    "mostly zero": lambda shape, fmt: torch.randn(shape) * (torch.rand(shape) > 0.9),
    "nothing": lambda shape, fmt: torch.zeros(shape),
}


def outlier(shape, fmt):
    x = torch.randn(shape) * 0.01
    x.view(-1)[-1] = fmt.max
    return x


def cancelling(shape, fmt):
    """Every second number nearly cancels the one before it."""
    x = torch.randn(shape)
    x[..., 1::2] = -x[..., ::2][..., : x[..., 1::2].shape[-1]] * 1.1
    return x


CASES |= {"outlier": outlier, "cancelling": cancelling}


def hopper(a_MK, b_NK, formats, fraction_bits=13):
    """mmaemu's instruction-level model: its ``hopper`` preset, or one with other fraction bits."""
    from mmaemu.model.chain import dot
    from mmaemu.model.presets import HOPPER, Preset

    preset = HOPPER
    if fraction_bits != HOPPER.frac:
        preset = Preset("other", 32, fraction_bits, min(fraction_bits, 23), HOPPER.min_exp, False, 128)
    a, b = (x.to(fmt.dtype) for x, fmt in zip((a_MK, b_NK), formats, strict=True))
    shape = (len(a), len(b), a.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the preset with other bits is not validated on hardware
        return dot(a[:, None].expand(shape).contiguous(), b[None].expand(shape).contiguous(), preset=preset)


def bits(x):
    return x.contiguous().view(torch.int32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "formats", [(E4M3, E4M3), (E5M2, E4M3), (E5M2, E5M2)], ids=lambda pair: "x".join(map(str, pair))
)
def test_the_tensor_core_is_mmaemus_hopper_to_the_bit(case, formats):
    for m, k, n in ((5, 100, 7), (1, 33, 1), (16, 256, 16), (3, 1, 2), (2, 4096, 3)):
        a = round_to(CASES[case]((m, k), formats[0]), formats[0])
        b = round_to(CASES["randn" if case == "cancelling" else case]((n, k), formats[1]), formats[1])
        if case == "cancelling":
            b[:, 1::2] = b[:, ::2][:, : b[:, 1::2].shape[1]]
        ours = Accumulator.tensor_core().matmul(a, b.T, formats=formats)
        assert torch.equal(bits(ours), bits(hopper(a, b, formats)))


@pytest.mark.parametrize("fraction_bits", [1, 4, 10, 16, 17, 20, 24, 40])
def test_any_number_of_fraction_bits(fraction_bits):
    for case in ("randn", "every code", "outlier"):
        a, b = (round_to(CASES[case]((6, 200), E4M3), E4M3) for _ in range(2))
        ours = Accumulator.tensor_core(fraction_bits).matmul(a, b.T)
        assert torch.equal(bits(ours), bits(hopper(a, b, (E4M3, E4M3), fraction_bits)))


def by_definition(a_MK, b_KN, formats, fraction_bits):
    """Step by step in float64, where everything here is exact."""

    def exponent(x, least):
        return torch.where(x == 0, -torch.inf, (torch.frexp(x).exponent - 1).clamp_min(least).double())

    def cut(x, unit):
        return torch.trunc(x / unit) * unit

    sum_MN = torch.zeros(len(a_MK), b_KN.shape[1], dtype=torch.float64)
    for a, b in zip(a_MK.double().split(32, 1), b_KN.double().split(32), strict=True):
        factors = (exponent(x, fmt.min_exponent) for x, fmt in zip((a[:, :, None], b), formats, strict=True))
        largest = torch.maximum(sum(factors).amax(1), exponent(sum_MN, -1000)).clamp_min(-132)
        unit = torch.exp2(largest - fraction_bits)
        sum_MN = cut(a[:, :, None] * b, unit[:, None]).sum(1) + cut(sum_MN, unit)
        own = exponent(sum_MN, -1000).clamp_min(-132)  # of 0: any
        sum_MN = cut(sum_MN, torch.exp2(own - min(fraction_bits, 23))) + 0.0
    return sum_MN.float()


WIDE = Format("E5M6", 5, 6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "formats",
    [(E4M3, E4M3), (E4M3, E5M2), (FP16, FP16), (E2M1, E4M3), (WIDE, E4M3)],
    ids=lambda pair: "x".join(map(str, pair)),
)
def test_the_tensor_core_is_its_definition_to_the_bit(case, formats):
    """Also for formats that mmaemu does not support, and results of more than one tile."""
    for fraction_bits, shape in ((1, (3, 70, 5)), (13, (2, 257, 300)), (16, (270, 33, 2)), (23, (3, 90, 4))):
        m, k, n = shape
        a, b = (
            round_to(CASES[case](size, fmt), fmt) for size, fmt in zip(((m, k), (k, n)), formats, strict=True)
        )
        ours = Accumulator.tensor_core(fraction_bits).matmul(a, b, formats=formats)
        assert torch.equal(bits(ours), bits(by_definition(a, b, formats, fraction_bits)))


@pytest.mark.compile
@pytest.mark.parametrize("formats", [(E4M3, E4M3), (E5M2, E4M3)], ids=lambda pair: "x".join(map(str, pair)))
def test_compiled_steps_have_the_same_bits(formats):
    """Full tiles and parts of tiles; the second format pair gets its exponents from a matmul in float64."""
    core = Accumulator.tensor_core(promote_every=64)
    for m, k, n in ((OUTPUT_TILE, 96, OUTPUT_TILE), (300, 130, 140)):
        a, b = (
            round_to(CASES["every code"](size, fmt), fmt)
            for size, fmt in zip(((m, k), (k, n)), formats, strict=True)
        )
        eager, compiled = (core.matmul(a, b, formats=formats, compiled=c) for c in (False, True))
        assert torch.equal(bits(eager), bits(compiled))
    a[0, 5], b[7, 1] = torch.nan, torch.inf
    compiled = core.matmul(a, b, formats=formats, compiled=True)
    torch.testing.assert_close(compiled, core.matmul(a, b, formats=formats), rtol=0, atol=0, equal_nan=True)


def test_small_results_are_not_compiled(monkeypatch):
    def fail():
        raise AssertionError("compiled")

    monkeypatch.setattr(tensor_core, "_compiled_step", fail)
    a = torch.ones(127, 64)
    assert (Accumulator.tensor_core().matmul(a, a.T, compiled=True) == 64).all()
    with pytest.raises(AssertionError, match="compiled"):
        Accumulator.tensor_core().matmul(torch.ones(128, 64), torch.ones(64, 128), compiled=True)


def test_without_a_compiler_the_same_bits(monkeypatch):
    monkeypatch.setattr(tensor_core.shutil, "which", lambda name: None)
    tensor_core._compiled_step.cache_clear()
    a, b = round_to(torch.randn(128, 64), E4M3), round_to(torch.randn(64, 128), E4M3)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler"):
        slow = Accumulator.tensor_core().matmul(a, b, compiled=True)
    tensor_core._compiled_step.cache_clear()
    assert torch.equal(slow, Accumulator.tensor_core().matmul(a, b))


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "tensor_core"])
def test_promotion_restarts_the_sum_in_float32(kind):
    a, b = round_to(torch.rand(8, 3000), E4M3), round_to(torch.rand(3000, 9), E4M3)
    make = getattr(Accumulator, kind)
    promoted, unpromoted = make(promote_every=128).matmul(a, b), make()
    by_hand = torch.zeros(8, 9)
    for k in range(0, 3000, 128):
        by_hand += unpromoted.matmul(a[:, k : k + 128], b[k : k + 128])
    assert torch.equal(promoted, by_hand)
    assert not torch.equal(promoted, unpromoted.matmul(a, b))


def largest_error(accumulator, a, b):
    """Largest relative error, and the share of results that are too low. The float64 product of E4M3
    numbers is exact in any order up to K = 171,196."""
    exact = a.double() @ b.double()
    error = (accumulator.matmul(a, b).double() - exact) / exact
    return error.abs().max().item(), (error < 0).double().mean().item()


def test_what_14_bits_lose_and_promotion_saves():
    """V3, section 3.3.2, and the published model's figures at K = 4096: positive sums come out low, by up to
    8% (uniform), 4% (randn + 1); with promotion below 0.1%, whatever K."""
    promoted = {}
    for k in (1024, 4096, 8192):
        a, b = round_to(torch.rand(64, k), E4M3), round_to(torch.rand(k, 64), E4M3)
        promoted[k] = largest_error(Accumulator.tensor_core(promote_every=128), a, b)[0]
        lost, low = largest_error(Accumulator.tensor_core(), a, b)
        assert low == 1.0
        if k == 4096:
            assert 0.06 < lost < 0.09
            assert largest_error(Accumulator.fp32(), a, b)[0] < 1e-6
    assert all(3e-4 < error < 9e-4 for error in promoted.values())
    assert promoted[8192] < 1.5 * promoted[1024]
    a, b = round_to(torch.randn(64, 4096) + 1, E4M3), round_to(torch.randn(4096, 64) + 1, E4M3)
    assert 0.025 < largest_error(Accumulator.tensor_core(), a, b)[0] < 0.05
    assert 1e-4 < largest_error(Accumulator.tensor_core(promote_every=128), a, b)[0] < 3e-4


def nearest(exact: Fraction, fmt: Format) -> Fraction:
    """The number of fmt nearest to a fraction, ties to even: for normal numbers, from the definition."""
    if exact == 0:
        return exact
    exponent = 0
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, fmt.min_exponent) - fmt.mantissa_bits)
    return round(exact / unit) * unit  # Python's round is to even


@pytest.mark.parametrize("accumulator", [Accumulator.fp16(), Accumulator.bf16()], ids=str)
@pytest.mark.parametrize(
    "formats", [(E4M3, E5M2), (E5M2, E5M2), (WIDE, E4M3), (FP16, FP16), (BF16, BF16)],
    ids=lambda pair: "x".join(map(str, pair)),
)  # fmt: skip
def test_16_bit_sums_are_the_exact_ones_rounded_once(accumulator, formats):
    """Numbers of very different size, for which an addition that is rounded twice would be wrong."""
    sizes = torch.randint(-12, 5, (2, 60)) if accumulator.format is FP16 else torch.randint(-12, 12, (2, 60))
    a, b = (round_to(torch.randn(60) * 2.0**size, fmt) for size, fmt in zip(sizes, formats, strict=True))
    for length in (2, 3, 60):
        total = Fraction(0)
        for x, y in zip(a[:length].tolist(), b[:length].tolist(), strict=True):
            total = nearest(total + Fraction(x) * Fraction(y), accumulator.format)
        ours = accumulator.matmul(a[None, :length], b[:length, None], formats=formats)
        assert Fraction(ours.item()) == total


@pytest.mark.parametrize(
    ("formats", "tiny"), [((WIDE, E4M3), 2.0**-23), ((BF16, BF16), 2.0**-60), ((BF16, BF16), 3 * 2.0**-53)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_halfway_plus_a_tiny_term(formats, tiny, sign):
    """Trap: 261/128 is the midpoint of two bf16 numbers, and a tiny term decides. float64 rounds 2^-60 beside
    it to the midpoint, and 3 * 2^-53 lies between two float64 numbers, one of them the midpoint."""
    a = torch.tensor([[sign * tiny * 2.0**9, 9 / 8]], dtype=torch.float64)
    b = torch.tensor([[2.0**-9], [29 / 16]], dtype=torch.float64)
    ours = Accumulator.bf16().matmul(a, b, formats=formats)
    assert ours.item() * 128 == (262 if sign > 0 else 260)


@pytest.mark.parametrize(
    ("accumulator", "zero_mean", "positive"),
    [(Accumulator.fp16(), (1.5, 6), (160, 200)), (Accumulator.bf16(), (1.2, 6), (190, 198))],
    ids=["fp16", "bf16"],
)
def test_16_bit_sums_in_units_of_roundoff(accumulator, zero_mean, positive):
    """The largest error at K = 4096 in units of u times the sum of magnitudes. Published: 3.1 and 2.0 where
    terms cancel; 183 and 194 where they do not and the sum stagnates."""
    for draw, (low, high) in ((torch.randn, zero_mean), (torch.rand, positive)):
        a, b = round_to(draw(32, 4096), E4M3), round_to(draw(4096, 32), E4M3)
        error = (accumulator.matmul(a, b).double() - a.double() @ b.double()).abs()
        units = error / (a.abs().double() @ b.abs().double()) / accumulator.format.unit_roundoff
        assert low < units.max() < high


@pytest.mark.parametrize("formats", [(E4M3, E4M3), (FP16, FP16)], ids=["narrow", "wide"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_fp16_sums_of_full_range_overflow(formats, rounding):
    """Trap: 448 * 448 is beyond 65504. bf16 has the range but not the precision."""
    a = torch.tensor([[448.0, 448.0, 1.0]])
    fp16 = Accumulator.fp16(rounding)
    assert fp16.matmul(a, torch.tensor([[-448.0], [0.0], [1.0]]), formats=formats).item() == -torch.inf
    for last in (448.0, -448.0):  # an infinite sum stays infinite
        b = torch.tensor([[448.0], [last], [1.0]])
        assert fp16.matmul(a, b, formats=formats).item() == torch.inf
    assert Accumulator.bf16().matmul(a[:, :2], a[:, :2].T, formats=formats).item() == 401408.0


def test_stochastic_sums_do_not_stagnate():
    a, b = round_to(torch.rand(16, 2048), E4M3), round_to(torch.rand(2048, 16), E4M3)
    exact = a.double() @ b.double()
    sums = Accumulator.bf16("stochastic").matmul(a, b, generator=1)
    nearest, stochastic = (
        ((y - exact).abs() / exact).mean() for y in (Accumulator.bf16().matmul(a, b), sums)
    )
    assert stochastic < nearest / 5
    assert torch.equal(sums, Accumulator.bf16("stochastic").matmul(a, b, generator=1))
    assert not torch.equal(sums, Accumulator.bf16("stochastic").matmul(a, b, generator=2))


def test_a_seed_gives_fresh_noise_to_every_addition():
    """After a promotion and in the next matrix of a batch, too."""
    a, b = round_to(torch.rand(4, 32), E4M3), round_to(torch.rand(32, 4), E4M3)
    once = Accumulator.bf16("stochastic").matmul(a, b, generator=3)
    twice = Accumulator.bf16("stochastic", promote_every=32).matmul(
        torch.cat((a, a), 1), torch.cat((b, b)), generator=3
    )
    assert not torch.equal(twice, once + once)
    first, second = Accumulator.bf16("stochastic").matmul(torch.stack((a, a)), b, generator=3)
    assert torch.equal(first, once)
    assert not torch.equal(second, once)


EVERY = [
    Accumulator.fp32(),
    Accumulator.fp32(promote_every=7),
    Accumulator.fp16(promote_every=16),
    Accumulator.bf16(),
    Accumulator.tensor_core(),
    Accumulator.tensor_core(20, promote_every=64),
]


@pytest.mark.parametrize("accumulator", EVERY, ids=str)
def test_outputs_are_independent_of_each_other(accumulator):
    a, b = round_to(torch.randn(9, 70), E4M3), round_to(torch.randn(70, 5), E4M3)
    whole = accumulator.matmul(a, b)
    exact = a.double() @ b.double()
    assert (whole - exact).norm() < 0.05 * exact.norm()
    if accumulator.kind != "fp32":  # whose order is torch's
        assert torch.equal(accumulator.matmul(a[3:5], b[:, 1:4]), whole[3:5, 1:4])
    stacked = accumulator.matmul(torch.stack((a, -a)), b)
    torch.testing.assert_close(stacked, torch.stack((whole, -whole)))
    assert torch.equal(accumulator.matmul(a[:, :0], b[:0]), torch.zeros(9, 5))
    assert accumulator.matmul(a[:0], b).shape == (0, 5)


@pytest.mark.parametrize("accumulator", EVERY, ids=str)
def test_neither_autocast_nor_gradients_nor_strides_matter(accumulator):
    a, b = round_to(torch.randn(9, 70), E4M3), round_to(torch.randn(70, 5), E4M3)
    y = accumulator.matmul(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bits(accumulator.matmul(a.requires_grad_(), b)), bits(y))
    assert torch.equal(bits(accumulator.matmul(a, b)), bits(y))
    turned = accumulator.matmul(a.T.contiguous().T.double(), b.T.contiguous().T.bfloat16())
    torch.testing.assert_close(turned, y, rtol=0, atol=1e-5 if accumulator.kind == "fp32" else 0)
    assert accumulator.matmul(a.expand(2, 1, 9, 70), b.expand(3, 70, 5)).shape == (2, 3, 9, 5)


@pytest.mark.parametrize("accumulator", EVERY, ids=str)
def test_infinities_and_nan_propagate(accumulator):
    a, b = torch.ones(3, 40), torch.ones(40, 3)
    a[0, 5], b[7, 1] = torch.nan, torch.inf
    y = accumulator.matmul(a, b)
    assert y[0].isnan().all()
    assert y[1:, 1].isinf().all()
    assert torch.equal(y[1:, ::2], torch.full((2, 2), 40.0))


def test_bad_input_is_refused():
    with pytest.raises(
        ValueError, match=rf"promote_every \(100\) must be a positive multiple of {PRODUCTS_PER_STEP}"
    ):
        Accumulator.tensor_core(promote_every=100)
    with pytest.raises(ValueError, match=r"promote_every \(0\) must be at least 1"):
        Accumulator.fp16(promote_every=0)
    with pytest.raises(ValueError, match=r"fraction_bits \(41\) must be 1 to 40"):
        Accumulator.tensor_core(41)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(4, 5\)"):
        Accumulator.fp32().matmul(torch.ones(2, 3), torch.ones(4, 5))
    with pytest.raises(TypeError, match=r"a must be a tensor of floats, not torch.int64"):
        Accumulator.fp32().matmul(torch.ones(2, 3).long(), torch.ones(3, 5))
    with pytest.raises(ValueError, match="up to FP16, not FP32"):
        Accumulator.tensor_core().matmul(torch.ones(2, 3), torch.ones(3, 5), formats=(FP32, E4M3))
