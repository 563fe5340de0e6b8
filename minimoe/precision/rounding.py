"""``round_to``: the value that a number becomes in few bits, as a plain float tensor.

One way for every format: divide by the distance between neighbours (a power of two, so exact), round to a
whole number, multiply again. The distance comes from the bits of the exponent, held at the format's smallest
one, which makes subnormals right without a case of their own.

Nothing here depends on how a version of torch casts to 8 bits: casts disagree on overflow (NaN up to torch
2.11, saturation after it, and of infinities too), and float64 to 8 bits rounds twice.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from minimoe.precision.counter_rng import draw_key, uniform_at
from minimoe.precision.formats import Format, as_format

Rounding = Literal["nearest", "zero", "stochastic"]

Overflow = Literal["saturate", "inf", "nan"]

# exponent field's mask and width of the mantissa field, in the integer of the same width
_FLOATS = {
    torch.float32: (torch.int32, 0x7F800000, 23, 127),
    torch.float64: (torch.int64, 0x7FF0000000000000, 52, 1023),
}


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
        rounding: ``nearest``, ties to even (without mantissa bits, as E8M0, to the larger, as IEEE 754 has
            it); ``zero``, towards zero; ``stochastic``, up or down with the probability that makes the mean
            right (to 2^-24 for float32, exact above the subnormals).
        overflow: what becomes of finite numbers that round beyond the largest, ``fmt.max``: that number,
            infinity or NaN. Beyond is from where rounding reaches the next number there would be: for E4M3
            480, to nearest from above 464, toward zero from 480, at random for some numbers above 448.
        generator: of ``stochastic``: a seed, or a generator of which one number is drawn.
        positions: of ``stochastic``: int64 that broadcasts to x, each element's place in the whole; by
            default 0, 1, … in x's order. Equal key and place mean equal noise: pieces of a tensor rounded
            with their places in the whole are the pieces of the whole rounded at once.

    Non-finite numbers are no overflow: NaN stays NaN, an infinity stays one where the format has it and is
    NaN where not, whatever ``overflow`` says; saturation would hide that a computation diverged. (The tensor
    can say NaN though FP6, FP4 and INT8 have no code for it.) -0 stays -0, save in formats without it.
    For E8M0, which has neither sign nor zero, negative numbers are NaN and 0 is the smallest power.

    The gradient is passed straight through, as if nothing had been rounded; x outside ±max included.

    Raises:
        TypeError: x is not a tensor of real floating-point numbers.
        ValueError: an unknown format, rounding or overflow; ``overflow`` asks for what the format does not
            have; x's dtype cannot hold the numbers of ``fmt``; places that do not fit.
    """
    fmt = as_format(fmt)
    _check(x, fmt, rounding, overflow)
    noise = None
    if rounding == "stochastic":
        noise = _noise(x, _carrier(x.dtype, fmt), generator, positions)
    if x.requires_grad:
        return _StraightThrough.apply(x, fmt, rounding, overflow, noise)
    return _round(x, fmt, rounding, overflow, noise)


def _round(x: Tensor, fmt: Format, rounding: Rounding, overflow: Overflow, noise: Tensor | None) -> Tensor:
    wide = x.to(_carrier(x.dtype, fmt))
    spacing = _spacing(wide, fmt)
    steps = wide / spacing
    if rounding == "nearest":
        steps = steps.round()  # torch's is to even
    elif rounding == "zero" or noise is None:
        steps = steps.trunc()
    else:
        low = steps.abs().floor()
        steps = (low + (noise < steps.abs() - low)).copysign(wide)  # a sum with the noise would itself round
    result = _limit(steps * spacing, wide, fmt, overflow)
    return result.to(x.dtype)


def _spacing(x: Tensor, fmt: Format) -> Tensor:
    """The distance between neighbours of ``fmt`` around each element, a power of two."""
    integer, mask, mantissa_bits, bias = _FLOATS[x.dtype]
    exponent = (x.view(integer) & mask).clamp_min((bias + fmt.min_exponent) << mantissa_bits)
    return (exponent - (fmt.mantissa_bits << mantissa_bits)).view(x.dtype)


def _limit(rounded: Tensor, x: Tensor, fmt: Format, overflow: Overflow) -> Tensor:
    """Overflow, infinities and what else the format cannot say."""
    if overflow == "saturate":
        result = rounded.clamp(-fmt.max, fmt.max)
    else:
        beyond = torch.inf if overflow == "inf" else torch.nan
        result = torch.where(rounded.abs() > fmt.max, torch.full_like(rounded, beyond).copysign(x), rounded)
    result = torch.where(x.isinf(), x if fmt.has_infinity else torch.nan, result)
    if fmt.specials == "fnuz" or fmt.exponent_bits == 0:
        result = torch.where(result == 0, 0.0, result)  # whole numbers in two's complement have no -0 either
    if fmt.specials == "scale":
        result = torch.where(x < 0, torch.nan, result.clamp_min(fmt.min_normal))
    return result


def _noise(
    x: Tensor, dtype: torch.dtype, generator: torch.Generator | int | None, positions: Tensor | None
) -> Tensor:
    if positions is None:
        positions = torch.arange(x.numel(), device=x.device).view(x.shape)
    elif positions.dtype != torch.int64 or not _fits(positions.shape, x.shape):
        raise ValueError(
            f"positions are {positions.dtype} {tuple(positions.shape)}; give int64 that broadcasts to the "
            f"shape of x, {tuple(x.shape)}"
        )
    return uniform_at(positions, draw_key(generator, x.device), dtype)


def _fits(small: torch.Size, shape: torch.Size) -> bool:
    """Whether a tensor of the one shape broadcasts to the other."""
    pairs = zip(reversed(small), reversed(shape), strict=False)
    return len(small) <= len(shape) and all(a in (1, b) for a, b in pairs)


def _carrier(dtype: torch.dtype, fmt: Format) -> torch.dtype:
    """The dtype to compute in: float32 where the smallest spacing is a normal number of it."""
    return torch.float32 if fmt.exponent_bits < 8 and dtype != torch.float64 else torch.float64


def _check(x: Tensor, fmt: Format, rounding: str, overflow: str) -> None:
    if not isinstance(x, Tensor) or x.dtype not in (*_FLOATS, torch.bfloat16, torch.float16):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"round_to takes float64, float32, bfloat16 or float16, not {kind}; convert it first")
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding must be one of {', '.join(get_args(Rounding))}, not {rounding!r}")
    if overflow not in get_args(Overflow):
        raise ValueError(f"overflow must be one of {', '.join(get_args(Overflow))}, not {overflow!r}")
    if (overflow == "inf" and not fmt.has_infinity) or (overflow == "nan" and not fmt.has_nan):
        raise ValueError(
            f"{fmt} has no {'infinity' if overflow == 'inf' else 'NaN'}; use overflow='saturate'"
        )
    if not _holds(x.dtype, fmt):
        raise ValueError(
            f"{x.dtype} cannot hold all numbers of {fmt} (max {fmt.max:g}, smallest {fmt.min_subnormal:g}); "
            "pass x.float(), or x.double() for formats wider than float32"
        )


def _holds(dtype: torch.dtype, fmt: Format) -> bool:
    """Whether rounding a number of ``dtype`` always ends at one. Small numbers do; at the upper end the
    format's largest number must be one of ``dtype``, unless it lies beyond and rounding changes nothing."""
    info = torch.finfo(dtype)
    finer = 2.0**-fmt.mantissa_bits <= info.eps
    coarser = 2.0**-fmt.mantissa_bits >= info.eps
    return finer if fmt.max > info.max else coarser


class _StraightThrough(torch.autograd.Function):
    """Rounding has slope 0 almost everywhere; the convention is to let the gradient pass as it is."""

    @staticmethod
    def forward(ctx, x, fmt, rounding, overflow, noise):
        return _round(x, fmt, rounding, overflow, noise)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None, None, None
