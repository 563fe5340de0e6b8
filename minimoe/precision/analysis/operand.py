"""One operand of a product before and after its cast, in float64: what ``error`` and ``bounds`` look at."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minimoe.precision.codec import decode
from minimoe.precision.formats import FP32, Format
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Cast


class Operand(NamedTuple):
    """(M, K) or (K, N), whichever the operand is."""

    given: Tensor  # float64: what came in
    meaning: Tensor  # float64: what the codes mean, code * scale not rounded
    scale: Tensor  # float64, one a number (a view that repeats)
    fmt: Format
    side: int | None  # how many numbers of the contracted axis share a scale, None: all

    def saturated(self) -> Tensor:
        """bool: beyond the largest number, from where rounding reaches the next there would be."""
        fmt = self.fmt
        step = max(2.0 ** (math.frexp(fmt.max)[1] - 1 - fmt.mantissa_bits), fmt.min_subnormal)
        return self.given.abs() >= (fmt.max + step / 2) * self.scale

    def underflowed(self) -> Tensor:
        """bool: below the smallest number with a full mantissa. Of whole numbers: below 1."""
        least = self.fmt.min_normal if self.fmt.exponent_bits else self.fmt.min_subnormal
        return self.given.abs() < least * self.scale


def cast_operand(x: Tensor | Quantized, cast: Cast | None, contracted: int) -> Operand:
    """x, contracted along its axis -1 or -2, as a product sees it. Without a cast it becomes float32 (which
    counts as a format without a scale); ``Quantized`` is what its codes mean."""
    if isinstance(x, Tensor):
        x = x.detach()
        if cast is None:
            one = torch.ones((), dtype=torch.float64, device=x.device)
            return Operand(x.double(), x.float().double(), one.expand(x.shape), FP32, None)
        codes = cast.quantize(x, contracted)
    else:
        codes = x
    scale = codes.spread_scale().double().expand(codes.shape)
    meaning = decode(codes.data, codes.fmt).double() * scale
    given = x.double() if isinstance(x, Tensor) else meaning
    return Operand(given, meaning, scale, codes.fmt, (codes.block or (None, None))[contracted + 2])


def exact_product(a_MK: Tensor, b_KN: Tensor | Quantized) -> Tensor:
    """a_MK @ b_KN of the numbers as given -> (..., M, N), float64."""
    return a_MK.detach().double() @ cast_operand(b_KN, None, -2).given
