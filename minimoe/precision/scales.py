"""From a block's largest magnitude to its scale.

``fp32``   amax / max: the largest number of the block becomes the format's largest.
``pow2``   that, rounded up to a power of two. Up, so that nothing exceeds the format's range; a power of two,
           so that scaling itself rounds nothing (DeepSeek-V3.1 and MX store it as E8M0).
``ocp``    2^(floor(log2 amax) - exponent of max), MX's own rule: amax may exceed the range, and saturate.
``none``   1: no scaling at all. The bad example: gradients fall below the smallest number, and vanish.
``pow2_nearest`` and ``pow2_down`` are there to see what rounding a scale the wrong way costs.

All are exact: logarithms of floats just below a power of two round up, so the exponent's bits are read.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from minimoe.precision.formats import Format

Scale = Literal["fp32", "pow2", "ocp", "pow2_nearest", "pow2_down", "none"]

_EXPONENT = 0x7F800000  # the bits of a float32's exponent

_MANTISSA = 0x007FFFFF

_SMALLEST = 2.0**-126

_SQRT_HALF = 0x3504F3  # the mantissa of sqrt(2): from there on the next power of two is nearer


def scale_of(amax: Tensor, fmt: Format, scale: Scale) -> Tensor:
    """amax, float32, not negative -> the scales, float32, same shape; 1 where amax is 0, NaN where it is NaN,
    and at least 2^-126 (the smallest normal float32), so that a tiny amax does not become a scale of 0."""
    if scale == "none":
        return torch.ones_like(amax).masked_fill_(amax.isnan(), torch.nan)
    if scale == "fp32":
        result = (amax / fmt.max).clamp_min_(_SMALLEST)
    else:
        result = _power(amax, fmt, scale).clamp_min_(_SMALLEST).masked_fill_(amax.isnan(), torch.nan)
    return result.masked_fill_(amax == 0, 1.0)


def _power(amax: Tensor, fmt: Format, scale: Scale) -> Tensor:
    """The power of two; 0 or a subnormal where that is too small, nonsense where amax is NaN."""
    if scale == "ocp":
        highest = 2.0 ** (math.frexp(fmt.max)[1] - 1)
        return (amax.view(torch.int32) & _EXPONENT).view(torch.float32) / highest
    bits = (amax / fmt.max).view(torch.int32)
    if scale == "pow2":
        # amax / max cannot round down to a power of two that it exceeds: the next float above max * 2^k is
        # more than half a step above it, because max is less than twice a power of two.
        bits = bits + _MANTISSA
    elif scale == "pow2_nearest":
        bits = bits + (_MANTISSA + 1 - _SQRT_HALF)
    return (bits & _EXPONENT).view(torch.float32)


def is_power_of_two(scale: Scale) -> bool:
    return scale != "fp32"


def check_scale(scale: str) -> None:
    """Raises ValueError for an unknown rule."""
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, not {scale!r}")
