"""Scales: the number that a block's elements are divided by before rounding, from their largest magnitude.

``fp32``   amax / max: the block's largest magnitude becomes the format's largest number.
``pow2``   the same, rounded up to a power of two. Up, so that nothing exceeds the format's range; a power of
           two, so that scaling itself is exact (DeepSeek-V3.1 and MX store it as E8M0).
``ocp``    2^(floor(log2 amax) - exponent of max), MX's own rule: amax may exceed the range, and saturate.
``none``   1, no scaling: gradients underflow to zero.
``pow2_nearest`` and ``pow2_down`` show the cost of rounding a scale in another direction.

All are exact: they read the exponent's bits, because a float logarithm just below a power of two rounds up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minimoe.precision.arguments import Block, ScaleRule
from minimoe.precision.formats import Format

_EXPONENT_MASK = 0x7F800000  # of a float32
_MANTISSA_MASK = 0x007FFFFF
_SQRT2_MANTISSA = 0x3504F3  # from the mantissa of sqrt(2) on, the next power of two is nearer
_MIN_SCALE = 2.0**-126  # the smallest normal float32


def block_amax(x: Tensor, fmt: Format, block: Block | None) -> Tensor:
    """The largest finite magnitude per block, float32. NaN where one is not finite and ``fmt`` has no NaN."""
    magnitude = x.abs()
    magnitude = torch.where(magnitude < torch.inf, magnitude, 0.0 if fmt.has_nan else torch.nan)
    if block is None:
        amax = (magnitude.amax() if x.numel() else x.new_zeros(())).view((1,) * x.ndim)
    else:
        amax = magnitude
        for axis in range(-min(x.ndim, 2), 0):
            side = block[axis] or max(x.shape[axis], 1)
            padding = (0, 0) * (-1 - axis) + (0, -x.shape[axis] % side)
            amax = F.pad(amax, padding).unflatten(axis, (-1, side)).amax(axis)
    return amax.double().clamp_max(torch.finfo(torch.float32).max).float()


def scale_of(amax: Tensor, fmt: Format, rule: ScaleRule) -> Tensor:
    """The scales for amax (float32, not negative), same shape; 1 where amax is 0, NaN where it is NaN, and at
    least 2^-126 (the smallest normal float32), so that a tiny amax does not give a scale of 0."""
    if rule == "none":
        return torch.ones_like(amax).masked_fill_(amax.isnan(), torch.nan)
    if rule == "fp32":
        scale = (amax / fmt.max).clamp_min_(_MIN_SCALE)
    else:
        scale = _power_of_two(amax, fmt, rule).clamp_min_(_MIN_SCALE).masked_fill_(amax.isnan(), torch.nan)
    return scale.masked_fill_(amax == 0, 1.0)


def _power_of_two(amax: Tensor, fmt: Format, rule: ScaleRule) -> Tensor:
    """0 or a subnormal number where the power is too small, arbitrary where amax is NaN."""
    if rule == "ocp":
        return (amax.view(torch.int32) & _EXPONENT_MASK).view(torch.float32) / 2.0**fmt.max_exponent
    bits = (amax / fmt.max).view(torch.int32)
    if rule == "pow2":
        # amax / max cannot round down to a power of two that it exceeds: the next float above max * 2^k is
        # more than half a step above it, because max is less than twice a power of two.
        bits = bits + _MANTISSA_MASK
    elif rule == "pow2_nearest":
        bits = bits + (_MANTISSA_MASK + 1 - _SQRT2_MANTISSA)
    return (bits & _EXPONENT_MASK).view(torch.float32)


def spread(scale: Tensor, block: Block | None, shape: torch.Size) -> Tensor:
    """Repeat one scale per block to one per number of a tensor of this shape (or what broadcasts to it)."""
    block = block or (None, None)
    for axis in range(-min(len(shape), 2), 0):
        if (side := block[axis]) and side > 1:
            scale = scale.repeat_interleave(side, axis).narrow(axis, 0, shape[axis])
    return scale
