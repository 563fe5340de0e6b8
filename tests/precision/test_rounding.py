"""round_to against ml_dtypes, gfloat, torch and a search through the list of values in numpy; and the
statistics of stochastic rounding. The lists of values are compared with others' in test_formats.py."""

import math
import shutil
from fractions import Fraction

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from oracles import FLOATING, ML_DTYPES, PAIRS, gfloat_info, same_bits

from minimoe.precision import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0,
    FORMATS,
    FP16,
    FP32,
    INT8,
    TF32,
    Format,
    round_to,
)
from minimoe.precision.counter_rng import uniform_at

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of signalling NaNs
needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)
ALL = [*FORMATS.values(), *PAIRS]
IN_FLOAT32 = [fmt for fmt in ALL if fmt.exponent_bits < 9]
LISTED = [fmt for fmt in ALL if fmt.bits <= 20]


def patterns(start, stop, step=1):
    """float32 numbers by their bit patterns."""
    return np.arange(start, stop, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def inputs():
    """All of bf16, all of fp16, and every 16381st of float32, as float32."""
    codes = np.arange(2**16, dtype=np.uint32)
    half = codes.astype(np.uint16).view(np.float16).astype(np.float32)
    return np.concatenate(((codes << 16).view(np.float32), half, patterns(0, 2**32, 16381)))


def rounded(x, fmt, **options):
    return round_to(torch.from_numpy(x), fmt, **options).numpy()


def search(x, fmt, rounding="nearest"):
    """The rounded magnitude by search in the sorted list of values; inf beyond the largest."""
    values = fmt.values[fmt.values.isfinite()].unique().numpy()
    grid = values[values >= 0]
    top = grid[-1] + max(2.0 ** (math.frexp(fmt.max)[1] - 1 - fmt.mantissa_bits), fmt.min_subnormal)
    grid = np.append(grid, top)
    a = np.abs(x.astype(np.float64)).clip(grid[0], grid[-1])  # a scale has no number below its smallest
    low = (np.searchsorted(grid, a, side="right") - 1).clip(0, len(grid) - 2)
    below, above = grid[low], grid[low + 1]
    if rounding == "zero":
        up = a == above
    else:
        # In order of size the codes of the magnitudes count from 0, so an odd index is an odd mantissa. With
        # no mantissa both are even, and IEEE 754 takes the larger.
        odd = low % 2 == 1 if fmt.mantissa_bits else below > 0
        up = (a - below > above - a) | ((a - below == above - a) & odd)
    result = np.where(up, above, below)
    return np.where(result > fmt.max, np.inf, result)


def expected(x, fmt, rounding="nearest"):
    """round_to with saturation, from ``search``."""
    result = np.copysign(np.minimum(search(np.nan_to_num(x), fmt, rounding), fmt.max), x)
    result[np.isnan(x)] = np.nan
    result[np.isinf(x)] = x[np.isinf(x)] if fmt.specials == "ieee" else np.nan
    if fmt.specials == "scale":
        result[x < 0] = np.nan
        result[x == 0] = fmt.min_normal
    if fmt.specials == "fnuz" or fmt.exponent_bits == 0:
        result[result == 0] = 0.0
    return result


@pytest.mark.parametrize("rounding", ["nearest", "zero"])
@pytest.mark.parametrize("fmt", LISTED, ids=str)
def test_every_half_precision_number_and_many_floats_equal_a_search(fmt, rounding):
    x = inputs()
    reference = expected(x, fmt, rounding)
    same_bits(rounded(x.astype(np.float64), fmt, rounding=rounding), reference)
    if fmt in IN_FLOAT32:
        same_bits(rounded(x, fmt, rounding=rounding), reference.astype(np.float32))


@pytest.mark.parametrize("rounding", ["nearest", "zero"])
@pytest.mark.parametrize("fmt", [*FLOATING, FP32, INT8], ids=str)
def test_every_half_precision_number_and_many_floats_equal_gfloat(fmt, rounding):
    x = inputs().astype(np.float64)
    x = x[np.isfinite(x) & ((x > 0) | fmt.signed)]  # gfloat refuses NaN where the format has none
    if fmt.specials == "scale":
        x = x[x >= fmt.min_normal]  # gfloat lets these go below
    if fmt.mantissa_bits == 0:
        x = x[np.abs(np.frexp(x)[0]) != 0.75]  # gfloat takes ties to the even code, IEEE 754 to the larger
    mode = gfloat.RoundMode.TiesToEven if rounding == "nearest" else gfloat.RoundMode.TowardZero
    unit = 64 if fmt == INT8 else 1
    theirs = unit * gfloat.round_ndarray(gfloat_info(fmt), x / unit, mode, sat=True)
    if fmt == INT8:
        theirs = theirs.clip(-127)  # -128 is not used
    same_bits(rounded(x, fmt, rounding=rounding), theirs)


@pytest.mark.parametrize("fmt", ML_DTYPES, ids=str)
def test_many_floats_equal_ml_dtypes(fmt):
    """Every 1021st bit pattern of float32, so all exponents, 4.2 million. In ml_dtypes overflow gives
    infinity or NaN, and saturates, infinities included, where the format has neither."""
    x = patterns(0, 2**32, 1021)
    if not fmt.has_nan:
        x = x[np.isfinite(x)]
    if fmt == E8M0:
        x = x[x > 2.0**-126]  # the rest is in the next test
    overflow = "inf" if fmt.has_infinity else "nan" if fmt.has_nan else "saturate"
    theirs = x.astype(ML_DTYPES[fmt]).astype(np.float32)
    same_bits(rounded(x, fmt, overflow=overflow), theirs)


def test_small_e8m0_scales_follow_the_definition():
    """ml_dtypes 0.6 (and torch 2.13's cast) do not: they round subnormal floats just above 2^-127 up to
    2^-126. And ml_dtypes converts 0 to NaN; ours is the smallest scale."""
    bits = np.array([0x400000, 0x400001, 0x500000, 0x5FFFFF, 0x600000, 0x600001, 0x800000], np.uint32)
    x = bits.view(np.float32)
    low, high = Fraction(2) ** -127, Fraction(2) ** -126
    nearest = [low if Fraction(float(v)) - low < high - Fraction(float(v)) else high for v in x]
    same_bits(rounded(x, E8M0), np.array([float(v) for v in nearest], np.float32))
    assert rounded(x, E8M0).tolist() == [2.0**-127] * 4 + [2.0**-126] * 3
    zeros = np.array([0.0, -0.0, 1e-45, 2.0**-128], np.float32)
    assert rounded(zeros, E8M0).tolist() == [2.0**-127] * 4


@pytest.mark.slow
@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
def test_all_floats_equal_ml_dtypes_and_gfloat(fmt):
    """All 2^32 bit patterns against ml_dtypes; against gfloat, which is slower, the positive ones from a
    quarter of the smallest number to twice the largest: all that neither become 0 nor clearly overflow."""
    dtype, info = ML_DTYPES[fmt], gfloat_info(fmt)
    overflow = "inf" if fmt.has_infinity else "nan"
    low, high = np.array([fmt.min_subnormal / 4, fmt.max * 2], np.float32).view(np.uint32)
    chunk = 2**20
    for start in range(0, 2**32, chunk):
        x = patterns(start, start + chunk)
        ours = rounded(x, fmt, overflow=overflow)
        same_bits(ours, x.astype(dtype).astype(np.float32))
        if start + chunk > low and start <= high:
            same_bits(ours, gfloat.round_ndarray(info, x))


def test_all_floats_of_one_binade_equal_ml_dtypes():
    """Each of the 2^23 numbers in [16, 32): every way in which E4M3 rounds a normal number, ties included."""
    x = patterns(0x41800000, 0x42000000)
    same_bits(rounded(x, E4M3), x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize(("dtype", "fmt"), [(torch.bfloat16, BF16), (torch.float16, FP16)], ids=str)
def test_many_floats_equal_torchs_half_precision(dtype, fmt):
    x = torch.from_numpy(patterns(0, 2**32, 4093))
    same_bits(round_to(x, fmt, overflow="inf").numpy(), x.to(dtype).float().numpy())


def test_float64_to_float32_equals_numpy():
    rng = np.random.default_rng(0)
    x = rng.integers(-(2**63), 2**63, 2**20).view(np.float64)
    near = rng.standard_normal(2**20) * 2.0 ** rng.integers(
        -150, 129, 2**20
    )  # most of the above are 0 or inf
    x = np.concatenate((x, near))
    with np.errstate(over="ignore"):
        theirs = x.astype(np.float32).astype(np.float64)
    same_bits(rounded(x, FP32, overflow="inf"), theirs)


@pytest.mark.parametrize("fmt", LISTED, ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "zero", "stochastic"])
def test_numbers_of_the_format_are_unchanged(fmt, rounding):
    values = fmt.values[fmt.values.isfinite()]
    if fmt == INT8:
        values = values.where(values != 0, 0.0)  # two zeros in the list
    result = round_to(values, fmt, rounding=rounding, generator=0)
    same_bits(result.numpy(), values.numpy())


# what round_to accepts and returns


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [
        (fmt, dtype)
        for fmt in (E4M3, E5M2, E4M3FNUZ, E5M2FNUZ, E8M0, E3M2, E2M3, E2M1, INT8, TF32)
        for dtype in (torch.bfloat16, torch.float16)
        if not (fmt == E8M0 and dtype == torch.float16)  # too narrow; refused, see below
    ],
    ids=str,
)
def test_half_precision_tensors_keep_their_dtype_and_result(fmt, dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    for options in ({}, {"rounding": "zero"}, {"rounding": "stochastic", "generator": 3}):
        result = round_to(x, fmt, **options)
        assert result.dtype == dtype
        same_bits(result.float().numpy(), round_to(x.float(), fmt, **options).numpy())


def test_float64_is_rounded_once():
    """Via float32, as in torch 2.13's cast, a number beside a tie becomes the tie and goes to even."""
    x = torch.tensor([1 + 2**-4 + 2**-40, 1 + 3 * 2**-4 - 2**-40, 464 + 2**-40], dtype=torch.float64)
    assert round_to(x, E4M3, overflow="nan").nan_to_num(-1).tolist() == [1.125, 1.125, -1]
    twice = round_to(x.float(), E4M3, overflow="nan")
    assert twice.tolist() == [1.0, 1.25, 448]
    same_bits(round_to(x, E4M3).numpy(), expected(x.numpy(), E4M3))


@pytest.mark.parametrize("rounding", ["nearest", "zero", "stochastic"])
def test_any_shape_and_strides(rounding):
    x = torch.randn(6, 8, 10) * 100
    options = {"rounding": rounding, "generator": 1}
    whole = round_to(x, E4M3, **options)
    before = x.clone()
    positions = torch.arange(480).view(6, 8, 10)
    views = {
        "transposed": lambda t: t.transpose(0, 2),
        "strided": lambda t: t[::2, 1::3],
        "flipped": lambda t: t.flip(1),
        "0-dim": lambda t: t[3, 2, 1],
        "empty": lambda t: t[:0],
        "expanded": lambda t: t[:, :1].expand(6, 8, 10),
    }
    for name, view in views.items():
        options["positions"] = view(positions)
        result = round_to(view(x), E4M3, **options)
        assert result.shape == view(x).shape, name
        assert torch.equal(result, view(whole)), name
    assert torch.equal(x, before)


@pytest.mark.parametrize("rounding", ["nearest", "zero", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_is_passed_straight_through(rounding, dtype):
    x = torch.tensor([0.0, 0.3, -1.7, 1e-9, 1e9, -1e9, torch.inf], dtype=dtype).requires_grad_()
    upstream = torch.randn(7, dtype=dtype)
    y = round_to(x, E4M3, rounding=rounding, generator=0)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    assert torch.equal(gradient, upstream)
    plain = round_to(x.detach(), E4M3, rounding=rounding, generator=0)
    same_bits(y.detach().float().numpy(), plain.float().numpy())
    assert plain.grad_fn is None
    with torch.no_grad():
        assert round_to(x, E4M3, rounding=rounding).grad_fn is None


@pytest.mark.parametrize(
    ("x", "fmt", "options", "error", "message"),
    [
        (torch.arange(3), E4M3, {}, TypeError, "not torch.int64; convert it first"),
        (torch.ones(2, dtype=torch.complex64), E4M3, {}, TypeError, "not torch.complex64"),
        (torch.ones(2).to(torch.float8_e5m2), E4M3, {}, TypeError, "not torch.float8_e5m2"),
        ([1.0], E4M3, {}, TypeError, "not list"),
        (np.ones(2), E4M3, {}, TypeError, "not ndarray"),
        (torch.ones(2), "E9M9", {}, ValueError, "unknown format 'E9M9'; use one of E4M3"),
        (torch.ones(2), E4M3, {"rounding": "up"}, ValueError, "nearest, zero, stochastic, not 'up'"),
        (torch.ones(2), E4M3, {"overflow": "clip"}, ValueError, "saturate, inf, nan, not 'clip'"),
        (
            torch.ones(2),
            E4M3,
            {"overflow": "inf"},
            ValueError,
            "E4M3 has no infinity; use overflow='saturate'",
        ),
        (torch.ones(2), E5M2FNUZ, {"overflow": "inf"}, ValueError, "E5M2FNUZ has no infinity"),
        (torch.ones(2), E8M0, {"overflow": "inf"}, ValueError, "E8M0 has no infinity"),
        (torch.ones(2), E2M1, {"overflow": "nan"}, ValueError, "E2M1 has no NaN; use overflow='saturate'"),
        (torch.ones(2), INT8, {"overflow": "inf"}, ValueError, "INT8 has no infinity"),
        (torch.ones(2).half(), BF16, {}, ValueError, r"float16 cannot hold.*BF16.*max 3.38953e\+38.*x.float"),
        (torch.ones(2).half(), E8M0, {}, ValueError, "float16 cannot hold all numbers of E8M0"),
        (torch.ones(2).bfloat16(), FP16, {}, ValueError, "bfloat16 cannot hold all numbers of FP16"),
        (torch.ones(2), Format("E10M4", 10, 4), {}, ValueError, "float32 cannot hold.*E10M4.*x.double"),
        (torch.ones(2), Format("E5M40", 5, 40), {}, ValueError, "float32 cannot hold.*E5M40"),
    ],
)
def test_invalid_arguments_are_refused_with_a_remedy(x, fmt, options, error, message):
    with pytest.raises(error, match=message):
        round_to(x, fmt, **options)


@pytest.mark.parametrize(
    "positions",
    [
        torch.arange(4, dtype=torch.int32),
        torch.arange(4.0),
        torch.arange(3),
        torch.zeros(4, 2, dtype=torch.int64),
        torch.zeros(2, 3, 4, dtype=torch.int64),
    ],
)
def test_invalid_positions_are_refused(positions):
    with pytest.raises(ValueError, match=r"positions are torch.*pass int64 that broadcasts.*\(3, 4\)"):
        round_to(torch.ones(3, 4), E4M3, rounding="stochastic", positions=positions)


# overflow, infinities, NaN, zeros


@pytest.mark.parametrize(
    ("fmt", "tie", "overflows"),
    [
        (E4M3, 464.0, False),  # 448 is 14 steps of 32, even: the tie stays
        (E5M2, 61440.0, True),
        (E4M3FNUZ, 248.0, True),
        (E5M2FNUZ, 61440.0, True),
        (E8M0, 1.5 * 2.0**127, True),
        (FP16, 65520.0, True),
        (BF16, (2 - 2.0**-8) * 2.0**127, True),
        (TF32, (2 - 2.0**-11) * 2.0**127, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_nearest_overflow_begins_at_the_tie_beyond_the_largest(fmt, tie, overflows, dtype):
    tie = torch.tensor(tie, dtype=dtype)
    x = torch.stack((tie.nextafter(0 * tie), tie, tie.nextafter(10 * tie)))
    over = torch.tensor([False, overflows, True])
    for sign in (1, -1) if fmt.signed else (1,):
        assert (round_to(sign * x, fmt) == sign * fmt.max).all()
        for overflow, beyond in {"nan": torch.nan, "inf": sign * torch.inf}.items():
            if overflow == "nan" or fmt.has_infinity:
                wanted = torch.full_like(x, sign * fmt.max).masked_fill(over, beyond)
                same_bits(round_to(sign * x, fmt, overflow=overflow).numpy(), wanted.numpy())


def test_toward_zero_and_stochastically_overflow_begins_at_the_next_number():
    """480, which E4M3 lacks (its code is NaN). Between 448 and 480 stochastic rounding goes either way."""
    x = torch.tensor([448.0, 479.9, 480.0, 1e30])
    same_bits(
        round_to(x, E4M3, rounding="zero", overflow="nan").numpy(), np.array([448, 448, np.nan, np.nan])
    )
    assert (round_to(x, E4M3, rounding="zero") == 448).all()
    many = torch.full((4096,), 456.0)
    lost = round_to(many, E4M3, rounding="stochastic", overflow="nan", generator=0).isnan()
    assert abs(lost.double().mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4096)
    assert (round_to(many, E4M3, rounding="stochastic", generator=0) == 448).all()


@pytest.mark.parametrize("fmt", ALL, ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "zero", "stochastic"])
def test_infinities_and_nan_are_not_overflow(fmt, rounding):
    """They show that a computation diverged, and no policy hides that."""
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0], dtype=torch.float64)
    wanted = [np.nan, np.inf, -np.inf] if fmt.specials == "ieee" else [np.nan] * 3
    for overflow in ("saturate", "inf", "nan"):
        possible = {"saturate": True, "inf": fmt.has_infinity, "nan": fmt.has_nan}[overflow]
        if possible:
            result = round_to(x, fmt, rounding=rounding, overflow=overflow)
            np.testing.assert_array_equal(result[:3].numpy(), wanted)
            assert result[3].isfinite()


@pytest.mark.parametrize("rounding", ["nearest", "zero", "stochastic"])
def test_zeros_keep_their_sign_where_the_format_has_two(rounding):
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    for fmt in (E4M3, E5M2, E3M2, E2M3, E2M1, FP16):
        result = round_to(x, fmt, rounding=rounding, generator=0)
        assert (result == 0).all()
        assert result.signbit().tolist() == [False, True, False, True]
    for fmt in (E4M3FNUZ, E5M2FNUZ, INT8):
        result = round_to(x, fmt, rounding=rounding, generator=0)
        assert (result == 0).all()
        assert not result.signbit().any()


def test_scales_have_neither_sign_nor_zero():
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, -1.0, -1e30, 1.4999999, 1.5, 2.9999998, 3.0, 3e38])
    wanted = [2.0**-127] * 3 + [torch.nan] * 3 + [1.0, 2.0, 2.0, 4.0, 2.0**127]
    np.testing.assert_array_equal(round_to(x, E8M0).numpy(), np.array(wanted, np.float32))


# stochastic rounding


def error_bound(p, n):
    """Five standard deviations of a mean of n draws that are 1 with probability p."""
    return 5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("fmt", "low", "high"),
    [
        (E4M3, 1.0, 1.125),
        (E4M3, 0.0, 2.0**-9),
        (E5M2, -96.0, -112.0),
        (INT8, 3.0, 4.0),
        (E8M0, 4.0, 8.0),
        (BF16, 1.0, 1 + 2.0**-7),
    ],
    ids=str,
)
def test_both_neighbors_occur_with_the_right_probability(fmt, low, high, dtype):
    n = 1 << 18
    for p in (1 / 2, 1 / 4, 15 / 16, 1 / 1024):
        x = torch.full((n,), low + p * (high - low), dtype=dtype)  # exact, in float32 too
        result = round_to(x, fmt, rounding="stochastic", generator=int(1024 * p))
        assert set(result.unique().tolist()) == {low, high}
        assert abs((result == high).double().mean() - p) < error_bound(p, n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_over_keys_is_the_number(dtype):
    """Each position separately, over 3000 keys; the error is at most half a step times five deviations."""
    x = torch.randn(256, dtype=dtype)
    n = 3000
    mean = torch.stack([round_to(x, E4M3, rounding="stochastic", generator=key) for key in range(n)]).mean(0)
    low, high = neighbors(x.numpy(), E4M3)
    p = (np.abs(x.numpy()) - low) / np.where(high > low, high - low, 1)
    bound = (high - low) * (5 * np.sqrt(p * (1 - p) / n) + 5 / n)
    assert (np.abs(np.abs(mean.numpy()) - np.abs(x.numpy())) < bound).all()


def neighbors(x, fmt):
    """The magnitudes of the format around each."""
    low = search(x, fmt, "zero")
    grid = np.unique(np.abs(fmt.values[fmt.values.isfinite()].numpy()))
    return low, np.where(low == np.abs(x), low, grid[(np.searchsorted(grid, low) + 1).clip(0, len(grid) - 1)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fmt", [E4M3, E5M2FNUZ, E2M1, FP16, Format("E5M6", 5, 6)], ids=str)
def test_up_is_exactly_when_the_noise_is_below_the_fraction(fmt, dtype):
    """The definition in float64, from the noise at each position; so the results are neighbors only."""
    x = torch.randn(1 << 16, dtype=dtype) * 2.0 ** torch.randint(-12, 3, (1 << 16,))
    x = x.clamp(-fmt.max, fmt.max)
    key = torch.tensor(11)
    noise = uniform_at(torch.arange(len(x)), key, dtype).double().numpy()
    low, high = neighbors(x.numpy(), fmt)
    fraction = (x.abs().double().numpy() - low) / np.where(high > low, high - low, 1)
    wanted = np.where(noise < fraction, high, low)
    result = round_to(x, fmt, rounding="stochastic", generator=11).double().numpy()
    np.testing.assert_array_equal(np.abs(result), wanted)
    assert (np.signbit(result) == x.signbit().numpy())[result != 0].all()
    assert 0.1 < (np.abs(result) > np.abs(x.numpy())).mean() < 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_equal_to_the_fraction_goes_down(dtype):
    """Otherwise numbers of the format, whose fraction is 0, would change where the noise is 0. Below E4M3's
    smallest number, 2^-9, every noise is also a possible fraction; the next larger fraction goes up."""
    x = uniform_at(torch.arange(4096), torch.tensor(3), dtype) * 2.0**-9
    options = {"rounding": "stochastic", "generator": 3}
    assert (round_to(x, E4M3, **options) == 0).all()
    assert (round_to(x.nextafter(torch.ones_like(x)), E4M3, **options) == 2.0**-9).all()


def splitmix64(seed, position):
    """Steele, Lea and Flood's generator: its ``position``-th number, in integers modulo 2^64."""
    z = (seed + position * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_noise_is_splitmix64():
    """Its counter is the position xor a scrambled key: the same bits on all devices."""
    assert splitmix64(1234567, 1) == 6457827717110365317  # published
    assert splitmix64(1234567, 2) == 3203168211198807973
    positions = [0, 1, 2, 77, 2**31, 2**40 + 3, 2**63 - 1]
    for key in (0, 1, -1, 1 << 40, -(2**63)):
        whole = [splitmix64(0, position ^ splitmix64(key, 1)) for position in positions]
        for dtype, bits in {torch.float32: 24, torch.float64: 53}.items():
            noise = uniform_at(torch.tensor(positions), torch.tensor(key), dtype)
            assert noise.tolist() == [(z >> (64 - bits)) / 2**bits for z in whole]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_uniform_and_uncorrelated_over_positions_and_keys(dtype):
    bits = 24 if dtype == torch.float32 else 53
    n = 1 << 18
    noise = torch.stack([uniform_at(torch.arange(n), torch.tensor(key), dtype) for key in (0, 1, 2, -5)])
    assert noise.dtype == dtype
    assert noise.min() >= 0
    assert noise.max() < 1
    whole = (noise.double() * 2.0**bits).long()
    assert torch.equal(whole.double(), noise.double() * 2.0**bits)
    for shift in (0, 8, bits - 8):  # 256 cells: chi-square has mean 255 and deviation sqrt(510)
        for row in whole:
            counts = torch.bincount((row >> shift) % 256, minlength=256)
            chi = float((counts - n / 256).square().sum() / (n / 256))
            assert abs(chi - 255) < 6 * math.sqrt(510)
    centred = noise.double() - 0.5
    lagged = [(row[lag:] * row[:-lag]).mean() for row in centred for lag in (1, 2, 3, 64, 4096)]
    across = [(centred[i] * centred[j]).mean() for i in range(4) for j in range(i)]
    assert max(abs(float(c)) * 12 for c in lagged + across) < 5 / math.sqrt(n)  # variance 1/12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_in_any_order_tiling_layout_and_number_of_threads(dtype):
    x = torch.randn(64, 4096, dtype=dtype)
    where = torch.arange(x.numel()).view(x.shape)

    def rounded_at(t, positions=None):
        return round_to(t, E4M3, rounding="stochastic", generator=5, positions=positions)

    whole = rounded_at(x)
    assert torch.equal(rounded_at(x, where), whole)
    assert torch.equal(rounded_at(x.t().contiguous().t()), whole)  # position by index, not by memory
    assert torch.equal(rounded_at(x.t(), where.t()), whole.t())
    order = torch.randperm(x.numel()).view(x.shape)
    assert torch.equal(rounded_at(x.view(-1)[order], order), whole.view(-1)[order])
    tiles = [rounded_at(x[i : i + 16, j : j + 1024], where[i : i + 16, j : j + 1024])
             for i in range(0, 64, 16) for j in range(0, 4096, 1024)]  # fmt: skip
    rows = [torch.cat(tiles[i : i + 4], 1) for i in range(0, 16, 4)]
    assert torch.equal(torch.cat(rows), whole)
    torch.set_num_threads(2)
    assert torch.equal(rounded_at(x), whole)
    for few in (torch.tensor(7), where[:, :1], where[:1]):  # equal positions have equal noise
        assert torch.equal(rounded_at(x, few), rounded_at(x, few.expand(x.shape)))


def test_the_key_decides_and_a_generator_advances_by_one_draw():
    x = torch.rand(1000)

    def rounded_with(generator):
        return round_to(x, E4M3, rounding="stochastic", generator=generator)

    assert torch.equal(rounded_with(1), rounded_with(1))
    assert (rounded_with(1) != rounded_with(2)).sum() > 200
    assert (rounded_with(1) != rounded_with(1 << 40)).sum() > 200
    first, second = (torch.Generator().manual_seed(9) for _ in range(2))
    pair = rounded_with(first), rounded_with(first)
    assert (pair[0] != pair[1]).sum() > 200
    assert torch.equal(pair[0], rounded_with(second))
    torch.randint(2**63 - 1, (), generator=second)
    assert torch.equal(first.get_state(), second.get_state())
    state = torch.get_rng_state()
    rounded_with(3)
    round_to(x, E4M3)
    assert torch.equal(torch.get_rng_state(), state)  # with a seed, or to nearest, nothing is drawn
    default = rounded_with(None)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    assert torch.equal(rounded_with(None), default)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_updates_survive_stochastic_rounding_only(dtype):
    """1 + 1000 * 0.001 in bf16, whose step above 1 is 0.0078: to nearest nothing is ever added (Gupta et
    al., arXiv 1502.02551). Stochastically one addition has a standard deviation of at most half a step."""
    n = 4096
    nearest, random = torch.ones(2, n, dtype=dtype)
    for step in range(1000):
        nearest = round_to(nearest + 1e-3, BF16)
        random = round_to(random + 1e-3, BF16, rounding="stochastic", generator=step)
    assert (nearest == 1).all()
    assert abs(random.double().mean() - 2) < 5 * 2**-8 * math.sqrt(1000 / n)
    assert 0 < random.double().std() < 2**-8 * math.sqrt(1000)


# traps


def test_rounding_twice_is_not_rounding_once():
    """float32 to bf16 to E4M3: the first rounding moves a number beside a tie onto it, the second to the
    wrong side. With bf16's 4 additional bits 1 in 16 lands on a tie, and half of these are wrong: 3.1%."""
    x = torch.randn(1 << 20)
    changed = (round_to(round_to(x, BF16), E4M3) != round_to(x, E4M3)).double().mean()
    assert abs(changed - 1 / 32) < 0.001


def test_powers_of_two_come_from_bits_and_not_from_logarithms():
    """Just below 2^k the logarithm rounds up to k, for almost all k. To nearest this is harmless, as the
    number goes to 2^k anyway; but toward zero and stochastically its lower neighbor is then a step off."""
    k = torch.arange(-126, 128)
    x = torch.ldexp(torch.ones(len(k)), k).nextafter(torch.tensor(0.0))
    assert (x.log2().floor() != k - 1).sum() > 200
    lower = round_to(x, TF32, rounding="zero").double()
    normal = k > -126  # below the smallest normal number steps do not halve
    power = torch.ldexp(torch.ones(len(k), dtype=torch.float64), k)
    assert torch.equal(lower[normal], power[normal] * (1 - 2.0**-11))
    assert torch.equal(round_to(x, TF32).double(), power)


def test_overflow_does_not_depend_on_torchs_cast():
    """torch's cast of 1000 and of infinity to E4M3 is NaN up to 2.11 and 448 later; here ``overflow``
    decides. The sign of a NaN may be lost or kept, so NaNs are compared as NaNs."""
    x = torch.tensor([1000.0, torch.inf, torch.nan])
    assert round_to(x, E4M3).nan_to_num(-1).tolist() == [448, -1, -1]
    assert round_to(x, E4M3, overflow="nan").isnan().all()
    codes = {int(round_to(nan, E4M3).to(torch.float8_e4m3fn).view(torch.uint8)) & 0x7F
             for nan in (torch.tensor(torch.nan), -torch.tensor(torch.nan))}  # fmt: skip
    assert codes == {0x7F}


@needs_compiler
@pytest.mark.compile
def test_compiled_gives_the_same_bits():
    """In one graph; also with a dynamic shape, from the second shape on. (Sums and products of arange are
    then folded into exact integers: a hash of positions that starts with one fails to compile.)"""

    def each(x):
        return (
            round_to(x, E4M3),
            round_to(x, E5M2, overflow="inf"),
            round_to(x, E4M3, rounding="stochastic", generator=7),
        )

    torch._dynamo.reset()
    compiled = torch.compile(each, fullgraph=True)
    for shape in [(4096,), (1000,), (77,), (30, 5)]:
        x = torch.randint(-(2**31), 2**31, shape).int().view(torch.float32)
        x = x.where(torch.rand(shape) < 0.5, torch.randn(shape) * 100)
        for actual, wanted in zip(compiled(x), each(x), strict=True):
            same_bits(actual.numpy(), wanted.numpy())


@needs_compiler
@pytest.mark.compile
def test_compiled_gradients_pass_straight_through():
    torch._dynamo.reset()
    x = (torch.randn(100) * 1000).requires_grad_()
    upstream = torch.randn(100)
    compiled = torch.compile(lambda x: round_to(x, E4M3) * 2, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(x), x, upstream)
    assert torch.equal(gradient, 2 * upstream)
