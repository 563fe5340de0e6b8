"""Number formats of few bits: sign, exponent and mantissa, and which codes mean infinity or NaN.

A format with e exponent bits and m mantissa bits has the values

    (-1)^s * 2^(max(E, 1) - bias) * (min(E, 1) + M / 2^m)         E, M the integers in its two fields

From ``min_normal`` up, neighbors are 2^-m apart relative to their power of two; below it (the subnormal
numbers, E = 0) all are ``min_subnormal`` apart. Formats differ in the meaning of their last codes:

``ieee``    the highest exponent is infinity and NaN (E5M2, bf16, fp16)
``fn``      finite: the code with all bits set is NaN, there is no infinity (E4M3FN)
``fnuz``    finite, and the code of -0 is NaN; the bias is larger by one (AMD's variants)
``finite``  every code is a number (FP6, FP4, INT8)
``scale``   powers of two, unsigned and without zero; all bits set is NaN (E8M0)

Sources: OCP OFP8 1.0 (E4M3, E5M2), OCP MX 1.0 (E8M0, FP6, FP4, INT8), IEEE 754 (fp16),
Micikevicius et al., arXiv 2209.05433.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

Specials = Literal["ieee", "fn", "fnuz", "finite", "scale"]


@dataclass(frozen=True)
class Format:
    """A number format: the widths of its two fields and the meaning of its special codes.

    ``Format("E5M6", 5, 6)`` is V3's format for the output of attention. Without exponent bits the numbers are
    integers: ``Format("INT8", 0, 7, "finite")`` is -127 … 127 (-128 is unused).

    Raises:
        ValueError: negative widths, a format without numbers or beyond float64, or unknown ``specials``.
    """

    name: str = field(compare=False)
    exponent_bits: int
    mantissa_bits: int
    specials: Specials = "ieee"

    def __post_init__(self) -> None:
        e, m, specials = self.exponent_bits, self.mantissa_bits, self.specials
        if specials not in get_args(Specials):
            raise ValueError(f"specials must be one of {', '.join(get_args(Specials))}, not {specials!r}")
        if not 0 <= e <= 10 or not 0 <= m <= 50 or e + m == 0:
            raise ValueError(
                f"{self.name}: {e} exponent and {m} mantissa bits; use 0 to 10 and 0 to 50, not both 0 "
                "(float64, in which numbers are rounded, must hold every value)"
            )
        min_e = {"ieee": 2, "fn": 1, "fnuz": 1, "finite": 0, "scale": 1}[specials]
        needs_mantissa = specials in ("ieee", "fn")  # for the codes of NaN
        if e < min_e or (needs_mantissa and m == 0) or (specials == "scale" and m):
            raise ValueError(f"{self.name}: {e} exponent and {m} mantissa bits are invalid for {specials!r}")

    @property
    def signed(self) -> bool:
        return self.specials != "scale"

    @property
    def bits(self) -> int:
        """Bits per number."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        half = 2 ** (self.exponent_bits - 1) if self.exponent_bits else 1 - self.mantissa_bits
        return half - (self.exponent_bits > 0 and self.specials != "fnuz")

    @property
    def min_exponent(self) -> int:
        """log2 of ``min_normal``."""
        return (0 if self.specials == "scale" else 1) - self.bias

    @property
    def min_normal(self) -> float:
        """The smallest number with a full mantissa."""
        return 2.0**self.min_exponent

    @property
    def min_subnormal(self) -> float:
        """The smallest positive number (``min_normal`` for a ``scale``, which has no subnormals)."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    @property
    def max(self) -> float:
        """The largest finite number."""
        e, m = self.exponent_bits, self.mantissa_bits
        if e == 0:
            return 2.0**m - 1
        top = 2**e - 1 - self.bias - (self.specials in ("ieee", "scale"))
        return 2.0**top * (2 - 2.0**-m * (2 if self.specials == "fn" else 1))

    @property
    def max_exponent(self) -> int:
        """The exponent of ``max``."""
        return math.frexp(self.max)[1] - 1

    @property
    def unit_roundoff(self) -> float:
        """u = 2^-(m+1), half the distance from 1 to the next number. Rounding a normal number to nearest has
        a relative error of at most u / (1 + u)."""
        return 2.0 ** -(self.mantissa_bits + 1)

    @property
    def has_infinity(self) -> bool:
        return self.specials == "ieee"

    @property
    def has_nan(self) -> bool:
        return self.specials != "finite"

    @property
    def dtype(self) -> torch.dtype | None:
        """torch's dtype with these codes, or None."""
        return _DTYPES.get(self)

    @cached_property
    def values(self) -> Tensor:
        """(2^bits,) float64: the number that each code stands for.

        Raises:
            ValueError: more than 2^20 codes.
        """
        if self.bits > 20:
            raise ValueError(f"{self.name} has 2^{self.bits} codes, too many to list")
        e, m = self.exponent_bits, self.mantissa_bits
        code = torch.arange(2**self.bits)
        if e == 0:  # integers are in two's complement, as in MX; the lowest has no positive counterpart
            value = (code - (code >> m) * 2**self.bits).double()
            value[2**m] = torch.nan
            return value
        exponent, mantissa, all_set = (code >> m) % 2**e, code % 2**m, 2 ** (e + m) - 1
        if self.specials == "scale":
            value = torch.ldexp(torch.ones(len(code), dtype=torch.float64), exponent - self.bias)
            return value.masked_fill(code == all_set, torch.nan)
        value = torch.ldexp((exponent > 0) + mantissa.double() / 2**m, exponent.clamp_min(1) - self.bias)
        if self.specials == "ieee":
            value[exponent == 2**e - 1] = torch.nan
            value[(exponent == 2**e - 1) & (mantissa == 0)] = torch.inf
        if self.specials == "fn":
            value[code & all_set == all_set] = torch.nan
        value = torch.where(code > all_set, -value, value)  # the sign is the highest bit
        return value.masked_fill(code == all_set + 1, torch.nan) if self.specials == "fnuz" else value

    def __str__(self) -> str:
        return self.name


E4M3 = Format("E4M3", 4, 3, "fn")
E5M2 = Format("E5M2", 5, 2)
E4M3FNUZ = Format("E4M3FNUZ", 4, 3, "fnuz")
E5M2FNUZ = Format("E5M2FNUZ", 5, 2, "fnuz")
E8M0 = Format("E8M0", 8, 0, "scale")
BF16 = Format("BF16", 8, 7)
FP16 = Format("FP16", 5, 10)
TF32 = Format("TF32", 8, 10)
FP32 = Format("FP32", 8, 23)
E3M2 = Format("E3M2", 3, 2, "finite")
E2M3 = Format("E2M3", 2, 3, "finite")
E2M1 = Format("E2M1", 2, 1, "finite")
INT8 = Format("INT8", 0, 7, "finite")

FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (E4M3, E5M2, E4M3FNUZ, E5M2FNUZ, E8M0, BF16, FP16, TF32, FP32, E3M2, E2M3, E2M1, INT8)
}
"""The named formats. E3M2 and E2M3 are the two FP6 formats, E2M1 is FP4."""

_DTYPES = {
    E4M3: torch.float8_e4m3fn,
    E5M2: torch.float8_e5m2,
    E4M3FNUZ: torch.float8_e4m3fnuz,
    E5M2FNUZ: torch.float8_e5m2fnuz,
    E8M0: torch.float8_e8m0fnu,
    BF16: torch.bfloat16,
    FP16: torch.float16,
    FP32: torch.float32,
}


def as_format(fmt: Format | str) -> Format:
    """A Format unchanged, or one of ``FORMATS`` by its name in any case.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(fmt, Format):
        return fmt
    if isinstance(fmt, str) and fmt.upper() in FORMATS:
        return FORMATS[fmt.upper()]
    raise ValueError(
        f"unknown format {fmt!r}; use one of {', '.join(FORMATS)}, or define a Format(name, e, m)"
    )
