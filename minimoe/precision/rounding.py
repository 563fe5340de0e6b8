"""Rounding to a number format: to nearest, toward zero or stochastically, as a plain float tensor.

The same steps serve every format: divide by the spacing (the distance between neighbors, a power of two, so
the division is exact), round to an integer, multiply again. The spacing comes from the exponent's bits,
clamped at the format's smallest exponent, which makes subnormal numbers right without a special case.

Nothing here depends on how a version of torch casts to 8 bits: casts disagree on overflow (NaN up to torch
2.11, saturation after it, infinities included), and float64 to 8 bits rounds twice.
"""

import torch
from torch import Tensor

from minimoe.precision.arguments import Overflow, Rounding, check_rounding
from minimoe.precision.counter_rng import noise_for
from minimoe.precision.formats import Format, as_format

FLOAT_LAYOUT = {
    torch.float32: (torch.int32, 0x7F800000, 23, 127),
    torch.float64: (torch.int64, 0x7FF0000000000000, 52, 1023),
}
"""dtype: integer of the same width, mask of the exponent, mantissa bits, bias."""


def round_to(
    x: Tensor,
    fmt: Format | str,
    *,
    rounding: Rounding = "nearest",
    overflow: Overflow = "saturate",
    generator: torch.Generator | int | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Round every element to a number of ``fmt``; the result has the dtype and the shape of x.

    Args:
        x: float64, float32, bfloat16 or float16; its dtype must hold the numbers of ``fmt``.
        rounding: ``nearest``, ties to even (without mantissa bits, as in E8M0, ties to the larger, as in IEEE
            754); ``zero``, toward zero; ``stochastic``, up or down with the probability that makes the mean
            right (to 2^-24 for float32, exact above the subnormals).
        overflow: what finite numbers that round beyond ``fmt.max`` become: that number, infinity or NaN. For
            E4M3, whose next number would be 480, these are numbers above 464 to nearest, from 480 on toward
            zero, and some above 448 stochastically.
        generator: for ``stochastic``: a seed, or a generator from which one number is drawn.
        positions: for ``stochastic``: int64 that broadcasts to x, by default 0, 1, … in x's order. Equal seed
            and position give equal noise, so a tensor can be rounded piece by piece with the same result.

    NaN stays NaN. An infinity stays one, or becomes NaN where the format has none, whatever ``overflow`` is:
    saturation would hide that a computation diverged. -0 stays -0 where the format has it. For E8M0, negative
    numbers become NaN and 0 the smallest power.

    The gradient passes straight through, as if nothing had been rounded, outside ±max too.

    Raises:
        TypeError: x is not a tensor of real floating-point numbers.
        ValueError: an unknown format, rounding or overflow; an ``overflow`` that the format does not have; a
            dtype that cannot hold the numbers of ``fmt``; invalid positions or seed.
    """
    fmt = as_format(fmt)
    check_rounding(x, fmt, rounding, overflow)
    noise = None
    if rounding == "stochastic":
        noise = noise_for(x, _compute_dtype(x.dtype, fmt), generator, positions)
    if x.requires_grad:
        return _StraightThrough.apply(x, fmt, rounding, overflow, noise)
    return _round(x, fmt, rounding, overflow, noise)


def _round(x: Tensor, fmt: Format, rounding: Rounding, overflow: Overflow, noise: Tensor | None) -> Tensor:
    wide = x.to(_compute_dtype(x.dtype, fmt))
    spacing = _spacing(wide, fmt)
    steps = wide / spacing
    if rounding == "nearest":
        steps = steps.round()  # ties to even
    elif rounding == "zero" or noise is None:
        steps = steps.trunc()
    else:
        low = steps.abs().floor()
        steps = (low + (noise < steps.abs() - low)).copysign(wide)  # adding the noise would itself round
    return _handle_overflow(steps * spacing, wide, fmt, overflow).to(x.dtype)


def _spacing(x: Tensor, fmt: Format) -> Tensor:
    """The distance between neighbors of ``fmt`` around each element, a power of two."""
    integer, mask, mantissa_bits, bias = FLOAT_LAYOUT[x.dtype]
    exponent = (x.view(integer) & mask).clamp_min((bias + fmt.min_exponent) << mantissa_bits)
    return (exponent - (fmt.mantissa_bits << mantissa_bits)).view(x.dtype)


def _handle_overflow(rounded: Tensor, x: Tensor, fmt: Format, overflow: Overflow) -> Tensor:
    """Overflow, infinities, and signs and zeros that the format does not have."""
    if overflow == "saturate":
        result = rounded.clamp(-fmt.max, fmt.max)
    else:
        beyond = torch.inf if overflow == "inf" else torch.nan
        result = torch.where(rounded.abs() > fmt.max, torch.full_like(rounded, beyond).copysign(x), rounded)
    result = torch.where(x.isinf(), x if fmt.has_infinity else torch.nan, result)
    if fmt.specials == "fnuz" or fmt.exponent_bits == 0:
        result = torch.where(result == 0, 0.0, result)  # nor does two's complement have a -0
    if fmt.specials == "scale":
        result = torch.where(x < 0, torch.nan, result.clamp_min(fmt.min_normal))
    return result


def _compute_dtype(dtype: torch.dtype, fmt: Format) -> torch.dtype:
    """float32 if it holds the smallest spacing as a normal number, else float64."""
    return torch.float32 if fmt.exponent_bits < 8 and dtype != torch.float64 else torch.float64


class _StraightThrough(torch.autograd.Function):
    """Rounding has slope 0 almost everywhere; by convention the gradient passes unchanged."""

    @staticmethod
    def forward(ctx, x, fmt, rounding, overflow, noise):
        return _round(x, fmt, rounding, overflow, noise)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None, None, None
