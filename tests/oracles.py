"""What independent packages say about number formats: ml_dtypes' types and gfloat's descriptions."""

import ml_dtypes
import numpy as np
from gfloat import Domain, FormatInfo

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
    Format,
)

ML_DTYPES = {
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2: ml_dtypes.float8_e5m2,
    E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    E8M0: ml_dtypes.float8_e8m0fnu,
    BF16: ml_dtypes.bfloat16,
    E3M2: ml_dtypes.float6_e3m2fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E2M1: ml_dtypes.float4_e2m1fn,
}
# widths that no package has a name for, with each kind of special codes
PAIRS = [
    Format("E5M6", 5, 6),
    Format("E2M5", 2, 5),
    Format("E3M4", 3, 4),
    Format("E10M4", 10, 4),
    Format("E3M4FN", 3, 4, "fn"),
    Format("E1M6FN", 1, 6, "fn"),
    Format("E1M6FNUZ", 1, 6, "fnuz"),
    Format("E6M1FNUZ", 6, 1, "fnuz"),
    Format("E1M6FINITE", 1, 6, "finite"),
    Format("E4M0FINITE", 4, 0, "finite"),
    Format("E5M0SCALE", 5, 0, "scale"),
]
LISTED = [fmt for fmt in [*FORMATS.values(), *PAIRS] if fmt.bits <= 20]
FLOATING = [fmt for fmt in LISTED if fmt.exponent_bits]


def gfloat_info(fmt: Format) -> FormatInfo:
    """gfloat's description of the format, from its own parameters."""
    e, m, specials = fmt.exponent_bits, fmt.mantissa_bits, fmt.specials
    if e == 0:  # MX's INT8: whole numbers over 2^(m - 1)
        return FormatInfo(
            fmt.name, m + 1, m + 1, bias=0, is_signed=True, domain=Domain.Finite, has_nz=False,
            num_high_nans=0, has_subnormals=True, is_twos_complement=True,
        )  # fmt: skip
    return FormatInfo(
        fmt.name,
        k=e + m + (specials != "scale"),
        precision=m + 1,
        bias=2 ** (e - 1) - (specials != "fnuz"),
        is_signed=specials != "scale",
        domain=Domain.Extended if specials == "ieee" else Domain.Finite,
        has_nz=specials in ("ieee", "fn", "finite"),
        num_high_nans={"ieee": 2**m - 1, "fn": 1, "scale": 1}.get(specials, 0),
        has_subnormals=specials != "scale",
        is_twos_complement=False,
    )


def same_bits(actual, expected):
    """Assert equal numbers, -0 distinct from 0, and NaN (of any bits) in the same positions."""
    np.testing.assert_array_equal(actual, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual)[number], np.signbit(expected)[number])
