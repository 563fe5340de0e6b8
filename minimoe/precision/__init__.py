"""Numbers in 8 bits, answers in 32.

``formats`` says what few bits can say and ``rounding`` brings numbers there. Nothing in here knows of data,
loops or files.
"""

from minimoe.precision.formats import (
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
    as_format,
)
from minimoe.precision.rounding import round_to

__all__ = [
    "BF16",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E4M3FNUZ",
    "E5M2",
    "E5M2FNUZ",
    "E8M0",
    "FORMATS",
    "FP16",
    "FP32",
    "INT8",
    "TF32",
    "Format",
    "as_format",
    "round_to",
]
