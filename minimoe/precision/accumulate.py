"""How the sum of many products is kept: what a multiply-add unit does between the products and the result.

``fp32``         in float32, in torch's order
``fp16, bf16``   one after another, rounded to 16 bits after each (stagnation: what is smaller than half a
                 unit of the sum adds nothing)
``tensor_core``  as Hopper's FP8 tensor core: 32 products and the sum so far are lined up with the largest,
                 what hangs over ``fraction_bits`` is cut off, and so is the result ("about 14 bits", V3,
                 section 3.3.2; Khattak and Mikaitis, arXiv 2512.07004)

``promote_every=128`` adds the sum to a float32 total after every 128 products and begins anew: V3's remedy.

All outputs are worked on at once; only K is walked along. Dimensions: M, N of the product, K contracted.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minimoe.precision.formats import BF16, E4M3, FP16, FP32, Format
from minimoe.precision.rounding import round_to
from minimoe.precision.tensor_core import AT_ONCE, MOST_FRACTION_BITS, tensor_core_sum

Kind = Literal["fp32", "fp16", "bf16", "tensor_core"]
_16_BITS: dict[str, tuple[Format, torch.dtype]] = {
    "fp16": (FP16, torch.float16),
    "bf16": (BF16, torch.bfloat16),
}


@dataclass(frozen=True)
class Accumulator:
    """One way of keeping sums; make it with ``fp32()``, ``fp16()``, ``bf16()`` or ``tensor_core()``.

    Raises:
        ValueError: bits or a promotion interval that cannot be.
    """

    kind: Kind = "fp32"
    fraction_bits: int = 0
    promote_every: int | None = None
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        every = self.promote_every
        if every is not None and (every < 1 or (self.kind == "tensor_core" and every % AT_ONCE)):
            step = f"a positive multiple of {AT_ONCE}" if self.kind == "tensor_core" else "at least 1"
            raise ValueError(f"promote_every ({every}) must be {step}")
        if self.kind == "tensor_core" and not 1 <= self.fraction_bits <= MOST_FRACTION_BITS:
            raise ValueError(f"fraction_bits ({self.fraction_bits}) must be 1 to {MOST_FRACTION_BITS}")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f"rounding must be nearest or stochastic, not {self.rounding!r}")

    @staticmethod
    def fp32(promote_every: int | None = None) -> "Accumulator":
        return Accumulator("fp32", promote_every=promote_every)

    @staticmethod
    def fp16(
        rounding: Literal["nearest", "stochastic"] = "nearest", promote_every: int | None = None
    ) -> "Accumulator":
        return Accumulator("fp16", promote_every=promote_every, rounding=rounding)

    @staticmethod
    def bf16(
        rounding: Literal["nearest", "stochastic"] = "nearest", promote_every: int | None = None
    ) -> "Accumulator":
        return Accumulator("bf16", promote_every=promote_every, rounding=rounding)

    @staticmethod
    def tensor_core(fraction_bits: int = 13, promote_every: int | None = None) -> "Accumulator":
        return Accumulator("tensor_core", fraction_bits, promote_every)

    @property
    def format(self) -> Format | None:
        """What each partial sum is rounded to; None for the tensor core, which has no format of its own."""
        return _16_BITS[self.kind][0] if self.kind in _16_BITS else FP32 if self.kind == "fp32" else None

    def matmul(
        self,
        a_MK: Tensor,
        b_KN: Tensor,
        *,
        formats: tuple[Format, Format] = (E4M3, E4M3),
        generator: torch.Generator | int | None = None,
        compiled: bool = False,
    ) -> Tensor:
        """a_MK @ b_KN with sums kept this way -> (..., M, N) float32.

        Args:
            a_MK, b_KN: (..., M, K) and (..., K, N) floats that are numbers of ``formats`` (not checked).
            formats: of a and b. The tensor core lines up by their exponents, which it knows to be at least
                the format's smallest; and they say whether products fit into float32.
            generator: of stochastic rounding, see ``round_to``.
            compiled: run the tensor core's steps through torch.compile: the same bits several times faster,
                after seconds of compiling. Without a C++ compiler they run as they are.

        A sum beyond fp16's 65504 becomes infinite, as it would; NaN and infinities pass through.

        Raises:
            ValueError: shapes that do not fit, or formats too wide for the tensor core.
            TypeError: not floats.
        """
        _check(a_MK, b_KN)
        if a_MK.ndim > 2 or b_KN.ndim > 2:
            lead = torch.broadcast_shapes(a_MK.shape[:-2], b_KN.shape[:-2])
            a_BMK = a_MK.expand(*lead, *a_MK.shape[-2:]).flatten(0, -3)
            b_BKN = b_KN.expand(*lead, *b_KN.shape[-2:]).flatten(0, -3)
            one = [
                self.matmul(a, b, formats=formats, generator=generator, compiled=compiled)
                for a, b in zip(a_BMK, b_BKN, strict=True)
            ]
            shape = (*lead, a_MK.shape[-2], b_KN.shape[-1])
            return torch.stack(one).view(shape) if one else a_MK.new_zeros(shape, dtype=torch.float32)
        total_MN = a_MK.new_zeros(a_MK.shape[0], b_KN.shape[1], dtype=torch.float32)
        depth = a_MK.shape[1]
        every = min(self.promote_every or depth, depth)
        for start in range(0, depth, every or 1):
            a, b = a_MK[:, start : start + every], b_KN[start : start + every]
            if self.kind == "tensor_core":
                part_MN = tensor_core_sum(a, b, self.fraction_bits, formats, compiled)
            elif self.kind == "fp32":
                part_MN = a.float() @ b.float()
            else:
                part_MN = self._sequential(a, b, formats, generator)
            total_MN = part_MN if depth <= every else total_MN + part_MN
        return total_MN

    def _sequential(self, a_MK: Tensor, b_KN: Tensor, formats: tuple[Format, Format], generator) -> Tensor:
        """s = round(s + a_k b_k), k after k, each rounded once."""
        fmt, dtype = _16_BITS[self.kind]
        # Products of up to 12 bits added to a sum of up to 11 come out of float32 either exact or so much
        # smaller than the sum that neither rounding notices them. Wider ones need float64.
        narrow = sum(f.mantissa_bits + 1 for f in formats) <= 12 and all(
            f.exponent_bits <= 5 for f in formats
        )
        carrier = torch.float32 if narrow else torch.float64
        a_MK, b_KN = a_MK.to(carrier), b_KN.to(carrier)
        sum_MN = a_MK.new_zeros(len(a_MK), b_KN.shape[1])
        for a_M, b_N in zip(a_MK.T, b_KN, strict=True):
            sum_MN = torch.addcmul(sum_MN, a_M[:, None], b_N)
            if narrow and self.rounding == "nearest":
                sum_MN = sum_MN.to(dtype).to(carrier)
            else:
                sum_MN = round_to(sum_MN, fmt, rounding=self.rounding, overflow="inf", generator=generator)
                if isinstance(generator, int):
                    generator += 1  # the next addition has other noise
        return sum_MN.float()


def _check(a: Tensor, b: Tensor) -> None:
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a tensor of floats, not {kind}; convert it first")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"a is {tuple(a.shape)} and b {tuple(b.shape)}; give (..., M, K) and (..., K, N)")
