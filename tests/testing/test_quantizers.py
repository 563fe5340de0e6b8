"""check_quantizer accepts correct rounding and names the mistakes of other functions: small ones here, and
published packages where they are installed."""

import re

import gfloat
import numpy as np
import pytest
import torch
from oracles import ML_DTYPES, gfloat_info

from minimoe.precision import BF16, E4M3, E4M3FNUZ, E5M2, E8M0, FORMATS, FP16, FP32, TF32, Format, round_to
from minimoe.testing.quantizers import check_quantizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # numpy's, of signalling NaNs
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),  # gfloat's, of float32
]
EVERY = {"ties", "beside", "bf16", "fp16", "random"}  # the checks that most rounding mistakes fail


def failures(fn, fmt=E4M3, **options):
    """The report, and the names of the failed checks."""
    with pytest.raises(AssertionError) as error:
        check_quantizer(fn, fmt, **options)
    report = str(error.value)
    print(report)  # pytest shows it where a test fails
    return report, set(re.findall(r"^  (\S[^:]*): \d+ of \d+ inputs$", report, re.MULTILINE))


# what is accepted


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS.values() if fmt.bits <= 16], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "zero"])
def test_round_to_passes_under_every_policy(fmt, rounding):
    for overflow in ("saturate", "inf", "nan"):
        if {"saturate": True, "inf": fmt.has_infinity, "nan": fmt.has_nan}[overflow]:
            options = {"overflow": overflow, "rounding": rounding}
            check_quantizer(lambda x, o=options: round_to(x, fmt, **o), fmt, **options)


def test_nineteen_bits_can_be_checked():
    check_quantizer(lambda x: round_to(x, TF32), TF32)


@pytest.mark.parametrize("fmt", [fmt for fmt in ML_DTYPES if fmt != E8M0], ids=str)
def test_ml_dtypes_passes(fmt):
    """Except E8M0, where it rounds subnormal floats wrongly (test_rounding.py)."""
    overflow = "inf" if fmt.has_infinity else "nan" if fmt.has_nan else "saturate"
    check_quantizer(
        lambda x: torch.from_numpy(x.numpy().astype(ML_DTYPES[fmt]).astype(np.float32)),
        fmt,
        overflow=overflow,
        nonfinite="keep" if fmt.has_nan else "skip",  # NaN becomes 0 in FP6 and FP4
    )


@pytest.mark.parametrize("rounding", ["nearest", "zero"])
@pytest.mark.parametrize("fmt", [E4M3, E5M2, E4M3FNUZ], ids=str)
def test_gfloat_passes(fmt, rounding):
    mode = gfloat.RoundMode.TiesToEven if rounding == "nearest" else gfloat.RoundMode.TowardZero

    def quantize(x):
        return torch.from_numpy(gfloat.round_ndarray(gfloat_info(fmt), x.numpy(), mode, sat=True)).float()

    check_quantizer(quantize, fmt, rounding=rounding, nonfinite="saturate")


def test_torchs_casts_pass():
    """E4M3 with this version's policies."""
    dtype = torch.float8_e4m3fn
    saturates = torch.tensor(1000.0).to(dtype).float() == 448
    policies = {"nonfinite": "saturate"} if saturates else {"overflow": "nan"}
    check_quantizer(lambda x: x.to(dtype), E4M3, **policies)
    check_quantizer(lambda x: x.to(torch.float8_e5m2), E5M2, overflow="inf")
    check_quantizer(lambda x: x.to(torch.float8_e4m3fnuz), E4M3FNUZ, overflow="nan")
    check_quantizer(lambda x: x.to(torch.float8_e5m2fnuz), "e5m2fnuz", overflow="nan")
    check_quantizer(lambda x: x.to(torch.float16), FP16, overflow="inf")
    check_quantizer(lambda x: x.to(torch.bfloat16), BF16, overflow="inf")


def test_clamping_first_passes_and_so_does_modifying_the_argument():
    check_quantizer(lambda x: own(x.clamp(-448, 448)), E4M3, nonfinite="saturate")

    def modifying(x):
        y = own(x)
        x.fill_(7)
        return y.requires_grad_()

    check_quantizer(modifying, E4M3)


def test_zero_and_negative_numbers_are_not_checked_for_e8m0():
    check_quantizer(lambda x: torch.where(x <= 0, 7.0, round_to(x, E8M0)), E8M0)


def test_the_random_inputs_are_many_of_both_signs_and_in_range():
    """Those of the sixth check. Of 2^18, those that overflow go to another check; a seed selects them."""

    def random_inputs(seed):
        seen = []
        check_quantizer(lambda x: seen.append(x) or own(x), E4M3, seed=seed)
        return seen[5]

    x = random_inputs(0)
    in_range = x[x.abs() >= 2.0**-11]
    assert len(in_range.unique()) > 2**17 * 0.9
    assert ((in_range < 0).double().mean() - 0.5).abs() < 0.01
    assert torch.equal(random_inputs(0), x)
    assert not set(x.tolist()) >= set(random_inputs(1).tolist())


# what is not


def own(x, rounding=torch.round, exponent=lambda x: torch.frexp(x)[1] - 1):
    """E4M3, with replaceable parts."""
    step = torch.ldexp(torch.ones_like(x), exponent(x).clamp(-6, 8).int() - 3)
    y = (rounding(x / step) * step).clamp(-448, 448)
    return torch.where(x.isinf(), torch.nan, y)


def by_logarithm(x, rounding):
    return own(x, rounding, lambda x: x.abs().log2().floor().nan_to_num(0))


def half_away(x):
    """microxcaling's ``nearest``: 1.0625 rounds to 1.125. The sum is rounded too, 0.49999997 + 0.5 to 1."""
    return own(x, lambda steps: (steps.abs() + 0.5).floor().copysign(steps))


def half_down(x):
    return own(x, lambda steps: (steps.abs() - 0.5).ceil().abs().copysign(steps))


def tail_left_out(x):
    """Like a kernel that processes blocks of 16 and omits the remainder."""
    n = x.numel() // 16 * 16
    return torch.cat((own(x.reshape(-1)[:n]), x.reshape(-1)[n:])).view(x.shape)


def ignores_strides(x):
    rows = torch.empty(x.shape).stride()
    return own(x.as_strided(x.shape, rows))


def scaled(x):
    """One scale per call, as in a tensor quantizer."""
    scale = x.nan_to_num(0, 0, 0).abs().max() / 448
    return own(x / scale) * scale


INDEPENDENCE = {"independence (reversed)", "independence (split)", "independence (transposed)"}
WRONG = {
    "twice": (lambda x: own(x.bfloat16().float()), {"beside", "fp16", "random", "overflow"}),
    "half away": (half_away, {"ties", "beside", "bf16", "fp16"}),
    "half down": (half_down, {"ties", "bf16", "fp16"}),
    "truncated": (lambda x: own(x, torch.trunc), EVERY),
    "floor": (lambda x: own(x, torch.floor), {*EVERY, "symmetry"}),
    "flushed": (lambda x: own(x) * (x.abs() >= 2**-6), {"numbers", *EVERY}),
    "max 240": (lambda x: own(x.clamp(-240, 240)), {"numbers", *EVERY, "overflow", "nonfinite"}),
    "447 after": (lambda x: own(x).clamp(-447, 447), {"numbers", *EVERY, "overflow"}),
    "431 before": (lambda x: own(x.clamp(-431, 431)), {"numbers", *EVERY, "overflow", "nonfinite"}),
    "256 and more to 0": (lambda x: own(x) * (own(x).abs() <= 240), {"numbers", *EVERY, "overflow", "order"}),
    "NaN to 448": (lambda x: own(x).nan_to_num(448), {"nonfinite"}),
    "infinities to 448": (lambda x: own(x.nan_to_num(torch.nan, 448, -448)), {"nonfinite"}),
    "-0 lost": (lambda x: own(x) + 0.0, {"zeros"}),
    "480 is a number": (
        lambda x: own(x.clamp(-448, 448)).where(
            x.abs() < 464, (480 * x.sign()).where(x.isfinite(), torch.nan)
        ),
        {"overflow"},
    ),
    "overflow to NaN": (lambda x: own(x).masked_fill(x.abs() > 464, torch.nan), {"overflow"}),
    "scaled": (scaled, {"ties", "beside", "random", "overflow", "independence (split)"}),
    "at random": (
        lambda x: round_to(x, E4M3, rounding="stochastic"),
        {*EVERY, "symmetry", "order", *INDEPENDENCE},
    ),
    "tail left out": (
        tail_left_out,
        {"ties", "bf16", "fp16", "overflow", "independence (split)", "nonfinite"},
    ),
    "strides ignored": (ignores_strides, {"independence (transposed)"}),
}


def test_the_unmodified_functions_are_right():
    check_quantizer(own, E4M3)
    check_quantizer(lambda x: own(x, torch.trunc), E4M3, rounding="zero")


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_found_by_the_checks_for_it(name):
    fn, names = WRONG[name]
    assert failures(fn)[1] == names


def test_a_step_from_a_logarithm_is_found_toward_zero():
    """Just below powers of two it is twice too large. To nearest they round up to the power anyway."""
    check_quantizer(lambda x: by_logarithm(x, torch.round), E4M3)
    names = failures(lambda x: by_logarithm(x, torch.trunc), rounding="zero")[1]
    assert names >= {"beside", "order"}


def test_clamping_at_447_matters_toward_zero_only():
    check_quantizer(lambda x: own(x.clamp(-447, 447)), E4M3, nonfinite="saturate")
    names = failures(lambda x: own(x.clamp(-447, 447), torch.trunc), rounding="zero", nonfinite="saturate")[1]
    assert names == {"numbers", "bf16", "fp16", "overflow", "nonfinite"}


@pytest.mark.parametrize(("rounding", "last"), [("nearest", 464.0), ("zero", 479.99997)])
def test_overflow_one_step_too_early_or_too_late_is_found(rounding, last):
    """``last`` is the last float32 that becomes 448."""
    policy = {"overflow": "nan", "rounding": rounding}

    def overflows_above(x, last):
        return round_to(x, E4M3, rounding=rounding).masked_fill(x.abs() > last, torch.nan)

    last = torch.tensor(last)
    check_quantizer(lambda x: overflows_above(x, last), E4M3, **policy)
    for wrong in (last.nextafter(torch.tensor(0.0)), last.nextafter(torch.tensor(1e3))):
        report, names = failures(lambda x, w=wrong: overflows_above(x, w), samples=0, **policy)
        assert names == {"overflow"}
        assert "  overflow: 2 of" in report


def test_ties_between_scales_go_up():
    """To the even code, 3 would go down to 2 and 6 up to 8."""

    def to_even_code(x):
        y = round_to(x, E8M0)
        tie = (x / y == 0.75) & (y > 2.0**-126) & (y.log2() % 2 == 0)
        return torch.where(tie, y / 2, y)

    report, names = failures(to_even_code, E8M0)
    assert names == {"ties", "bf16", "fp16"}
    assert "    1.78813934e-07 (0x1.8p-23, bits 34400000) -> 1.1920929e-07, expected 2.38418579e-07" in report


def test_the_report():
    """Counts, and the three smallest inputs, positive before negative."""
    report, _ = failures(lambda x: own(x).masked_fill(x > 464, torch.nan), samples=0)
    first, second, *inputs = report.splitlines()
    assert first == "E4M3: 2 of 14 checks failed"
    assert re.fullmatch(r"  overflow: \d+ of \d+ inputs", second)
    assert inputs[0] == "    464.000031 (0x1.d00002p+8, bits 43e80001) -> nan, expected 448"
    assert inputs[3].startswith("  symmetry: ")
    report, _ = failures(lambda x: own(x).nan_to_num(448) + 0.0, samples=0)
    assert report.splitlines()[1:] == [
        "  zeros: 19075 of 38150 inputs",
        "    -0 (-0x0.0p+0, bits 80000000) -> 0, expected -0",
        "    -1.40129846e-45 (-0x1p-149, bits 80000001) -> 0, expected -0",
        "    -9.18354962e-41 (-0x1p-133, bits 80010000) -> 0, expected -0",
        "  nonfinite: 6 of 6 inputs",
        "    inf (inf, bits 7f800000) -> 448, expected nan",
        "    -inf (-inf, bits ff800000) -> 448, expected nan",
        "    nan (nan, bits 7fc00000) -> 448, expected nan",
    ]


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            lambda x: x.double(),
            r"for float32 \(25\d,\), fn returned torch.float64 .*torch.float8_e4m3fn of",
        ),
        (lambda x: x[1:], r"fn returned torch.float32 \(252,\); it must return torch.float32 or"),
        (lambda x: x.to(torch.float8_e5m2), "fn returned torch.float8_e5m2"),
        (lambda x: x.numpy(), "fn returned ndarray"),
        (lambda x: None, "fn returned NoneType"),
        (
            lambda x: x + torch.ones(3),
            r"E4M3: for float32 \(253,\), fn raised RuntimeError: .*size",
        ),
    ],
)
def test_functions_with_another_signature_are_refused(fn, message):
    with pytest.raises(AssertionError, match=message):
        check_quantizer(fn, E4M3)


@pytest.mark.parametrize(
    ("fmt", "options", "message"),
    [
        (E4M3, {"nonfinite": "clip"}, "nonfinite must be one of keep, saturate, skip, not 'clip'"),
        (E4M3, {"rounding": "stochastic"}, "rounding must be one of nearest, zero, not 'stochastic'"),
        (E4M3, {"overflow": "inf"}, "E4M3 has no infinity"),
        (FP32, {}, r"FP32 has 2\^32 codes"),
        (Format("E10M4", 10, 4), {}, "float32 cannot hold all numbers of E10M4"),
        ("E9M9", {}, "unknown format 'E9M9'"),
    ],
)
def test_unsupported_arguments_are_refused_before_fn_is_called(fmt, options, message):
    with pytest.raises(ValueError, match=message):
        check_quantizer(lambda x: 1 / 0, fmt, **options)


def test_nan_is_not_passed_where_it_is_skipped():
    def refuses(x):
        assert x.isfinite().all()
        return own(x)

    check_quantizer(refuses, E4M3, nonfinite="skip")
    with pytest.raises(AssertionError, match="fn raised AssertionError"):
        check_quantizer(refuses, E4M3)


# published packages


def test_qtorch():
    """Ties away from zero, near 0 even numbers just below them; the codes of NaN are numbers, up to 480; only
    one zero."""
    quant = pytest.importorskip("qtorch.quant")
    report, names = failures(lambda x: quant.float_quantize(x, exp=4, man=3, rounding="nearest"))
    assert names == {"ties", "beside", "bf16", "fp16", "overflow", "zeros", "nonfinite"}
    assert "nan (nan, bits 7fc00000) -> 480, expected nan" in report
    assert "464 (0x1.dp+8, bits 43e80000) -> 480, expected 448" in report


def test_unit_scaling():
    """Its 4 exponent bits are those of E4M3FNUZ, with the largest number 240; of these ties go toward zero,
    and near 0 so do numbers just above them."""
    formats = pytest.importorskip("unit_scaling.formats")
    quantise = formats.FPFormat(4, 3, rounding="nearest").quantise
    report, names = failures(quantise)
    assert names == {"numbers", *EVERY, "overflow", "nonfinite"}
    assert "numbers: 14 of 253 inputs\n    256 (0x1p+8, bits 43800000) -> 240, expected 256" in report
    names = failures(quantise, E4M3FNUZ, nonfinite="saturate")[1]
    assert names >= {"ties", "beside", "bf16", "fp16", "zeros"}
    assert names <= {*EVERY, "zeros"}  # a tie may be among the random numbers


def test_pychop():
    """Its largest number is 240 as in IEEE 754, but larger ones become 0 and, from 512 on, infinity."""
    pychop = pytest.importorskip("pychop")
    report, names = failures(pychop.Chop(exp_bits=4, sig_bits=3, rmode=1), overflow="saturate")
    assert names >= {"numbers", *EVERY, "overflow", "order", "nonfinite"}
    assert "numbers: 14 of 253 inputs\n    256 (0x1p+8, bits 43800000) -> 0, expected 256" in report
    assert "order: 2 of" in report
