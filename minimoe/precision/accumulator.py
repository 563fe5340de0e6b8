"""Accumulation: how the sum of many products is kept between the multiplier and the result.

``fp32``         in float32, in torch's order
``fp16, bf16``   sequentially, rounded to 16 bits after each addition
``tensor_core``  as in Hopper's FP8 tensor core: 32 products and the running sum are aligned to the largest,
                 truncated to ``fraction_bits``, and so is the result ("about 14 bits", V3, section 3.3.2;
                 Khattak and Mikaitis, arXiv 2512.07004)

``promote_every=128`` adds the running sum to a float32 total after every 128 products and restarts it at 0:
V3's remedy. float32 alone is real arithmetic; the others are emulated.

Dimensions: M, N of a product, K contracted.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minimoe.precision.arguments import check_floats
from minimoe.precision.formats import BF16, E4M3, FP16, FP32, Format
from minimoe.precision.sequential_sum import sequential_sum
from minimoe.precision.tensor_core import MAX_FRACTION_BITS, PRODUCTS_PER_STEP, tensor_core_sum

AccumulatorKind = Literal["fp32", "fp16", "bf16", "tensor_core"]

Rounding16 = Literal["nearest", "stochastic"]


@dataclass(frozen=True)
class Accumulator:
    """One way to keep sums; create it with ``fp32()``, ``fp16()``, ``bf16()`` or ``tensor_core()``.

    Raises:
        ValueError: an invalid number of bits, promotion interval or rounding.
    """

    kind: AccumulatorKind = "fp32"
    fraction_bits: int = 0
    promote_every: int | None = None
    rounding: Rounding16 = "nearest"

    def __post_init__(self) -> None:
        every, is_core = self.promote_every, self.kind == "tensor_core"
        if every is not None and (every < 1 or (is_core and every % PRODUCTS_PER_STEP)):
            step = f"a positive multiple of {PRODUCTS_PER_STEP}" if is_core else "at least 1"
            raise ValueError(f"promote_every ({every}) must be {step}")
        if is_core and not 1 <= self.fraction_bits <= MAX_FRACTION_BITS:
            raise ValueError(f"fraction_bits ({self.fraction_bits}) must be 1 to {MAX_FRACTION_BITS}")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f"rounding must be nearest or stochastic, not {self.rounding!r}")

    @staticmethod
    def fp32(promote_every: int | None = None) -> "Accumulator":
        return Accumulator("fp32", promote_every=promote_every)

    @staticmethod
    def fp16(rounding: Rounding16 = "nearest", promote_every: int | None = None) -> "Accumulator":
        return Accumulator("fp16", promote_every=promote_every, rounding=rounding)

    @staticmethod
    def bf16(rounding: Rounding16 = "nearest", promote_every: int | None = None) -> "Accumulator":
        return Accumulator("bf16", promote_every=promote_every, rounding=rounding)

    @staticmethod
    def tensor_core(fraction_bits: int = 13, promote_every: int | None = None) -> "Accumulator":
        return Accumulator("tensor_core", fraction_bits, promote_every)

    @property
    def format(self) -> Format | None:
        """The format that each partial sum is rounded to; None for the tensor core, which has its own."""
        return {"fp32": FP32, "fp16": FP16, "bf16": BF16}.get(self.kind)

    @torch.no_grad()
    def matmul(
        self, a_MK: Tensor, b_KN: Tensor, *, formats: tuple[Format, Format] = (E4M3, E4M3),
        generator: torch.Generator | int | None = None, compiled: bool = False,
    ) -> Tensor:  # fmt: skip
        """a_MK @ b_KN with sums kept this way -> (..., M, N) float32, without a gradient.

        Args:
            a_MK, b_KN: (..., M, K) and (..., K, N) floats that are numbers of ``formats`` (not checked).
            formats: of a and b. The tensor core aligns by exponents, which are at least the format's smallest
                one; for 16-bit sums, the formats decide whether products fit float32.
            generator: for stochastic rounding, see ``round_to``.
            compiled: run the tensor core's steps through torch.compile: the same bits about six times faster,
                after up to ten seconds of compilation per process. Results of fewer than 128 x 128 numbers
                are not compiled; nor is anything, with a warning, without a C++ compiler.

        A sum beyond fp16's 65504 becomes infinite, as in hardware; NaN and infinities propagate.

        Raises:
            ValueError: shapes that do not match, or formats too wide for the tensor core.
            TypeError: operands that are not floats.
        """
        check_floats(a=a_MK, b=b_KN)
        if a_MK.ndim < 2 or b_KN.ndim < 2 or a_MK.shape[-1] != b_KN.shape[-2]:
            raise ValueError(
                f"a is {tuple(a_MK.shape)} and b {tuple(b_KN.shape)}; pass (..., M, K) and (..., K, N)"
            )
        if isinstance(generator, int):  # one stream for all additions, not the same noise for each
            generator = torch.Generator().manual_seed(generator)
        lead = torch.broadcast_shapes(a_MK.shape[:-2], b_KN.shape[:-2])
        y = a_MK.new_empty(*lead, a_MK.shape[-2], b_KN.shape[-1], dtype=torch.float32)
        a_BMK, b_BKN, y_BMN = (
            x.expand(*lead, *x.shape[-2:]).reshape(math.prod(lead), *x.shape[-2:]) for x in (a_MK, b_KN, y)
        )
        with torch.autocast(a_MK.device.type, enabled=False):  # it would run these matmuls in 16 bits
            for a, b, out in zip(a_BMK, b_BKN, y_BMN, strict=True):
                out.copy_(self._sum(a, b, formats, generator, compiled))
        return y

    def _sum(
        self, a_MK: Tensor, b_KN: Tensor, formats: tuple[Format, Format], generator, compiled: bool
    ) -> Tensor:
        if self.kind == "tensor_core":
            return tensor_core_sum(a_MK, b_KN, self.fraction_bits, formats, self.promote_every, compiled)
        total_MN = a_MK.new_zeros(len(a_MK), b_KN.shape[1], dtype=torch.float32)
        every = self.promote_every or max(1, len(b_KN))
        for a, b in zip(a_MK.split(every, 1), b_KN.split(every), strict=True):
            if self.kind == "fp32":
                total_MN += a.float() @ b.float()
            else:
                fmt = FP16 if self.kind == "fp16" else BF16
                total_MN += sequential_sum(a, b, fmt, self.rounding, formats, generator)
        return total_MN
