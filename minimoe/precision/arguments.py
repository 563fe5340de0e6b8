"""The arguments of this package's functions: their types and their validation."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from minimoe.precision.formats import Format

Rounding = Literal["nearest", "zero", "stochastic"]
Overflow = Literal["saturate", "inf", "nan"]
ScaleRule = Literal["fp32", "pow2", "ocp", "pow2_nearest", "pow2_down", "none"]
Block = tuple[int | None, int | None]
"""(rows, columns) of the last two axes that share a scale, None for the whole axis."""


def check_choice(name: str, value: object, literal: Any) -> None:
    """Raises ValueError for a value that is not one of a Literal type's."""
    if value not in get_args(literal):
        raise ValueError(f"{name} must be one of {', '.join(get_args(literal))}, not {value!r}")


def check_floats(min_bits: int = 8, **tensors: object) -> None:
    """Raises TypeError, with the argument's name, for anything but a tensor of floats."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or not x.is_floating_point() or 8 * x.itemsize < min_bits:
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            width = f" of {min_bits} bits or more" if min_bits > 8 else ""
            raise TypeError(f"{name} must be a tensor of floats{width}, not {kind}; convert it first")


def check_rounding(x: Tensor, fmt: Format, rounding: str, overflow: str) -> None:
    """Raises TypeError or ValueError for invalid arguments of ``round_to``."""
    check_floats(16, x=x)
    check_choice("rounding", rounding, Rounding)
    check_choice("overflow", overflow, Overflow)
    if (overflow == "inf" and not fmt.has_infinity) or (overflow == "nan" and not fmt.has_nan):
        raise ValueError(
            f"{fmt} has no {'infinity' if overflow == 'inf' else 'NaN'}; use overflow='saturate'"
        )
    info, step = torch.finfo(x.dtype), 2.0**-fmt.mantissa_bits
    # The dtype must have the format's largest number, or the format a wider range and finer steps (then
    # rounding changes nothing at the upper end).
    if not (step <= info.eps if fmt.max > info.max else step >= info.eps):
        raise ValueError(
            f"{x.dtype} cannot hold all numbers of {fmt} (max {fmt.max:g}, smallest {fmt.min_subnormal:g}); "
            "pass x.float(), or x.double() for formats wider than float32"
        )


def check_scaling(block: Block | None, rule: str) -> None:
    """Raises ValueError for an unknown rule, or a block that is not two positive sides."""
    check_choice("scale", rule, ScaleRule)
    sides: object = (None, None) if block is None else block
    if not isinstance(sides, tuple) or len(sides) != 2 or not all(_is_side(side) for side in sides):
        raise ValueError(
            f"block must be (rows, columns), each at least 1, or None for the whole axis; not {block!r}"
        )


def _is_side(side: object) -> bool:
    return side is None or (type(side) is int and side >= 1)


def check_quantization(x: Tensor, fmt: Format, block: Block | None, rule: str) -> None:
    """Raises TypeError or ValueError for invalid arguments of ``quantize``."""
    if fmt.bits > 8 or not fmt.signed:
        raise ValueError(f"quantize takes signed formats of at most 8 bits, not {fmt} ({fmt.bits} bits)")
    check_floats(16, x=x)
    check_scaling(block, rule)


def check_operands(a: Tensor, b: Any, b_ndim: int = 2) -> None:
    """Raises TypeError for operands that are not floats, ValueError for shapes that do not match.

    Args:
        b: a tensor or ``Quantized``; (K, N), or a stack (E, K, N) if ``b_ndim`` is 3.
    """
    check_floats(a=a, **({} if hasattr(b, "scale_codes") else {"b": b}))
    if a.ndim < 2 or len(b.shape) != b_ndim or a.shape[-1] != b.shape[-2]:
        expected = "(K, N)" if b_ndim == 2 else "(E, K, N)"
        raise ValueError(
            f"a is {tuple(a.shape)} and b is {tuple(b.shape)}; pass a (..., M, K) and b {expected} of equal K"
        )
