"""[evidence] One operand of a product before and after its cast, in float64, for error analysis."""

from typing import NamedTuple

import torch
from torch import Tensor

from minimoe.precision.codec import decode
from minimoe.precision.formats import FP32, Format
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Cast


class Operand(NamedTuple):
    """An operand (M, K) or (K, N)."""

    original: Tensor  # float64
    dequantized: Tensor  # float64: code * scale, not rounded
    scale: Tensor  # float64, one per number (an expanded view)
    fmt: Format
    side: int | None  # how many numbers along the contracted axis share a scale, None: all

    def saturated(self) -> Tensor:
        """bool: beyond the largest number, from where rounding would reach the next one."""
        fmt = self.fmt
        step = max(2.0 ** (fmt.max_exponent - fmt.mantissa_bits), fmt.min_subnormal)
        return self.original.abs() >= (fmt.max + step / 2) * self.scale

    def underflowed(self) -> Tensor:
        """bool: below the smallest number with a full mantissa; for integer formats, below 1."""
        least = self.fmt.min_normal if self.fmt.exponent_bits else self.fmt.min_subnormal
        return self.original.abs() < least * self.scale


def cast_operand(x: Tensor | Quantized, cast: Cast | None, contracted: int) -> Operand:
    """x, contracted along its axis -1 or -2, as it enters a product. Without a cast it becomes float32 (as a
    format without a scale); the original of a ``Quantized`` is its dequantized numbers."""
    if isinstance(x, Tensor):
        x = x.detach()
        if cast is None:
            one = torch.ones((), dtype=torch.float64, device=x.device)
            return Operand(x.double(), x.float().double(), one.expand(x.shape), FP32, None)
        codes = cast.quantize(x, contracted)
    else:
        codes = x
    scale = codes.spread_scale().double().expand(codes.shape)
    dequantized = decode(codes.data, codes.fmt).double() * scale
    original = x.double() if isinstance(x, Tensor) else dequantized
    return Operand(original, dequantized, scale, codes.fmt, (codes.block or (None, None))[contracted])


def exact_product(a_MK: Tensor, b_KN: Tensor | Quantized) -> Tensor:
    """a_MK @ b_KN in float64 -> (..., M, N)."""
    return a_MK.detach().double() @ cast_operand(b_KN, None, -2).original
