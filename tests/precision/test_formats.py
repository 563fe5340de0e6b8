"""Number formats against ml_dtypes, gfloat, torch and numpy: the value of every code, and the properties."""

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import decode_ndarray
from oracles import FLOATING, LISTED, ML_DTYPES, gfloat_info, same_bits

from minimoe.precision import (
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
    as_format,
)


@pytest.mark.parametrize("fmt", FLOATING, ids=str)
def test_the_value_of_every_code_is_gfloats(fmt):
    expected = decode_ndarray(gfloat_info(fmt), np.arange(2**fmt.bits))
    same_bits(fmt.values.numpy(), expected)


@pytest.mark.parametrize("fmt", ML_DTYPES, ids=str)
def test_the_value_of_every_code_is_ml_dtypes(fmt):
    dtype = ML_DTYPES[fmt]
    codes = np.arange(2**fmt.bits, dtype=np.uint16 if fmt.bits > 8 else np.uint8)
    with np.errstate(invalid="ignore"):  # numpy warns of bf16's signalling NaNs
        same_bits(fmt.values.numpy(), codes.view(dtype).astype(np.float64))


@pytest.mark.parametrize("fmt", [fmt for fmt in LISTED if fmt.dtype is not None], ids=str)
def test_the_value_of_every_code_is_torchs(fmt):
    codes = torch.arange(2**fmt.bits).to(torch.int16 if fmt.bits > 8 else torch.uint8)
    same_bits(fmt.values.numpy(), codes.view(fmt.dtype).double().numpy())


def test_int8_is_the_integers_of_mx_without_the_lowest():
    """gfloat divides by 64, as in MX; the code of -128 is unused here."""
    theirs = decode_ndarray(gfloat_info(INT8), np.arange(256)) * 64
    assert theirs.min() == theirs[128] == -128
    theirs[128] = np.nan
    np.testing.assert_array_equal(INT8.values.numpy(), theirs)
    assert (INT8.max, INT8.min_subnormal, INT8.bits) == (127, 1, 8)


@pytest.mark.parametrize("fmt", FLOATING, ids=str)
def test_properties_equal_gfloats(fmt):
    info = gfloat_info(fmt)
    assert (fmt.bits, fmt.bias, fmt.signed) == (info.k, info.bias, info.is_signed)
    assert fmt.max == info.max
    assert fmt.min_normal == 2.0**fmt.min_exponent == info.smallest_normal
    assert fmt.min_subnormal == info.smallest
    assert fmt.unit_roundoff == info.eps / 2
    assert (fmt.has_infinity, fmt.has_nan) == (info.num_infs > 0, info.num_nans > 0)


@pytest.mark.parametrize("fmt", ML_DTYPES, ids=str)
def test_properties_equal_ml_dtypes(fmt):
    info = ml_dtypes.finfo(ML_DTYPES[fmt])
    assert (fmt.exponent_bits, fmt.mantissa_bits, fmt.bits) == (info.nexp, info.nmant, info.bits)
    assert (fmt.max, fmt.min_normal) == (float(info.max), float(info.smallest_normal))
    assert fmt.min_subnormal == float(info.smallest_subnormal)
    assert fmt.unit_roundoff == float(info.eps) / 2


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS.values() if fmt.dtype is not None], ids=str)
def test_properties_equal_torchs(fmt):
    info = torch.finfo(fmt.dtype)
    assert (fmt.max, fmt.min_normal, fmt.bits) == (info.max, info.smallest_normal, info.bits)
    if fmt != E5M2FNUZ:  # for which torch 2.13 reports 2^-3, with 2 bits of mantissa
        assert fmt.unit_roundoff == info.eps / 2


@pytest.mark.parametrize("fmt", LISTED, ids=str)
def test_properties_follow_from_the_list_of_values(fmt):
    values = fmt.values
    finite = values[values.isfinite()]
    assert len(values) == 2**fmt.bits
    assert fmt.max == finite.max()
    assert fmt.min_subnormal == finite[finite > 0].min()
    assert fmt.has_infinity == values.isinf().any()
    if fmt.exponent_bits:  # the unused code of integers is listed as NaN, but is not one
        assert fmt.has_nan == values.isnan().any()
    assert fmt.signed == (finite < 0).any()
    if fmt.exponent_bits and fmt.min_normal <= 1:  # u is half the distance from 1 to its neighbor
        above = finite[finite > 1].min()
        assert fmt.unit_roundoff == (above - 1) / 2


@pytest.mark.parametrize(
    ("fmt", "largest", "least", "n_codes"),
    [
        (E4M3, 448, 2**-9, 256),  # OCP OFP8 1.0, tables 1 and 2
        (E5M2, 57344, 2**-16, 256),
        (E4M3FNUZ, 240, 2**-10, 256),  # arXiv 2206.02915
        (E5M2FNUZ, 57344, 2**-17, 256),
        (E8M0, 2.0**127, 2.0**-127, 256),  # OCP MX 1.0, section 5.4
        (E3M2, 28, 2**-4, 64),
        (E2M3, 7.5, 2**-3, 64),
        (E2M1, 6, 0.5, 16),
        (FP16, 65504, 2.0**-24, 65536),
    ],
    ids=str,
)
def test_the_published_properties(fmt, largest, least, n_codes):
    assert (fmt.max, fmt.min_subnormal, 2**fmt.bits) == (largest, least, n_codes)


def test_wide_formats_equal_numpys():
    """FP32 has too many codes to list; TF32 has FP32's range and FP16's steps."""
    info = np.finfo(np.float32)
    assert (FP32.max, FP32.min_normal, FP32.min_subnormal) == (info.max, info.tiny, info.smallest_subnormal)
    assert FP32.unit_roundoff == info.eps / 2
    assert (TF32.min_normal, TF32.unit_roundoff) == (info.tiny, np.finfo(np.float16).eps / 2)
    assert TF32.max == np.array(0x7F7FE000, np.uint32).view(np.float32)  # the last 13 bits cleared
    with pytest.raises(ValueError, match=r"FP32 has 2\^32 codes, too many to list"):
        FP32.values  # noqa: B018


def test_formats_are_equal_by_their_fields_and_found_by_name():
    assert Format("other", 4, 3, "fn") == E4M3
    assert Format("E4M3", 4, 3) != E4M3
    assert len({E4M3, Format("other", 4, 3, "fn"), E5M2}) == 2
    assert as_format("e4m3fnuz") is E4M3FNUZ
    assert as_format(E5M2) is E5M2
    assert str(E5M2) == "E5M2"
    assert all(name == fmt.name and as_format(name) is fmt for name, fmt in FORMATS.items())
    assert Format("other", 4, 3, "fn").dtype == torch.float8_e4m3fn
    assert Format("E4M3", 4, 3).dtype is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 3), "-1 exponent and 3 mantissa bits; use 0 to 10 and 0 to 50"),
        ((4, -1), "4 exponent and -1 mantissa"),
        ((0, 0, "finite"), "0 exponent and 0 mantissa bits.*not both 0"),
        ((11, 3), "11 exponent and 3 mantissa.*float64"),
        ((8, 51), "8 exponent and 51 mantissa"),
        ((1, 6), "1 exponent and 6 mantissa bits are invalid for 'ieee'"),  # infinity would be the only value
        ((5, 0), "are invalid for 'ieee'"),  # no mantissa bit to tell NaN from infinity
        ((4, 0, "fn"), "4 exponent and 0 mantissa bits are invalid for 'fn'"),
        ((0, 7, "fn"), "are invalid for 'fn'"),
        ((0, 7, "fnuz"), "are invalid for 'fnuz'"),
        ((8, 1, "scale"), "are invalid for 'scale'"),
        ((0, 7, "scale"), "are invalid for 'scale'"),
        ((4, 3, "fin"), "specials must be one of ieee, fn, fnuz, finite, scale, not 'fin'"),
    ],
)
def test_invalid_formats_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Format("mine", *arguments)


@pytest.mark.parametrize("name", ["E9M9", "", 8, None])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown format .*; use one of E4M3, .*, INT8, or define a Format"):
        as_format(name)
