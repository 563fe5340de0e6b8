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

import math
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

    @torch.no_grad()
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
            a_MK, b_KN: (..., M, K) and (..., K, N) floats that are numbers of ``formats`` (not checked). No
                gradient passes.
            formats: of a and b. The tensor core lines up by their exponents, which it knows to be at least
                the format's smallest; and they say whether products fit into float32.
            generator: of stochastic rounding, see ``round_to``.
            compiled: run the tensor core's steps through torch.compile: the same bits about six times faster,
                after up to ten seconds of compiling in each process. Results of less than 128 x 128 numbers
                are left as they are; all are, with a warning, where there is no C++ compiler.

        A sum beyond fp16's 65504 becomes infinite, as it would; NaN and infinities pass through.

        Raises:
            ValueError: shapes that do not fit, or formats too wide for the tensor core.
            TypeError: not floats.
        """
        _check(a_MK, b_KN)
        if isinstance(generator, int):  # one stream for all additions: a seed would start each of them anew
            generator = torch.Generator().manual_seed(generator)
        lead = torch.broadcast_shapes(a_MK.shape[:-2], b_KN.shape[:-2])
        y = a_MK.new_empty(*lead, a_MK.shape[-2], b_KN.shape[-1], dtype=torch.float32)
        a_BMK, b_BKN, y_BMN = (
            x.expand(*lead, *x.shape[-2:]).reshape(math.prod(lead), *x.shape[-2:]) for x in (a_MK, b_KN, y)
        )
        with torch.autocast(
            a_MK.device.type, enabled=False
        ):  # it would make the matmuls in here 16 bits wide
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
                total_MN += self._rounded(a, b, formats, generator)
        return total_MN

    def _rounded(self, a_MK: Tensor, b_KN: Tensor, formats: tuple[Format, Format], generator) -> Tensor:
        """s = round(s + a_k b_k), k after k, each rounded once."""
        fmt, dtype = _16_BITS[self.kind]
        # Two numbers of t bits may be added in 2 t + 2 bits before the sum is rounded to t (Figueroa, SIGNUM
        # Newsletter 30(3), 1995): float32's 24 do for fp16's 11, if products have no more than t bits either.
        # Their exponents must be FP8's, so that sums too small to be normal in fp16 are exact.
        narrow = sum(f.mantissa_bits + 1 for f in formats) <= fmt.mantissa_bits + 1
        narrow = narrow and all(f.exponent_bits <= 5 for f in formats)
        carrier = torch.float32 if narrow else torch.float64
        add = torch.add if narrow else _add_to_odd
        a_MK, b_KN = a_MK.to(carrier), b_KN.to(carrier)
        sum_MN = a_MK.new_zeros(len(a_MK), b_KN.shape[1])
        for a_M, b_N in zip(a_MK.T, b_KN, strict=True):
            sum_MN = add(sum_MN, a_M[:, None] * b_N)
            if narrow and self.rounding == "nearest":
                sum_MN = sum_MN.to(dtype).to(carrier)
            else:
                sum_MN = round_to(sum_MN, fmt, rounding=self.rounding, overflow="inf", generator=generator)
        return sum_MN.float()


def _add_to_odd(s: Tensor, p: Tensor) -> Tensor:
    """s + p in float64; where that is not exact, of its two neighbours the one with an odd last bit.

    The exact sum can be a hair beside the middle of two 16-bit numbers (p halfway, s tiny). float64 rounds it
    onto the middle, where a second rounding goes to even, maybe to the wrong side. An odd last bit is never
    in the middle, and on the right side of it (Boldo and Melquiond, IEEE Trans. Comput. 57(4), 2008).
    """
    total = s + p
    back = total - s
    lost = (s - (total - back)) + (p - back)  # exact (Knuth's two-sum); NaN where the total is not finite
    beside = torch.nextafter(total, torch.full_like(total, torch.inf).copysign(lost))
    even = total.view(torch.int64) & 1 == 0
    return torch.where((lost.abs() > 0) & even, beside, total)


def _check(a: Tensor, b: Tensor) -> None:
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a tensor of floats, not {kind}; convert it first")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"a is {tuple(a.shape)} and b {tuple(b.shape)}; give (..., M, K) and (..., K, N)")
