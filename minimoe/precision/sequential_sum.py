"""[evidence] Sums kept in 16 bits: the running sum rounded to fp16 or bf16 after every addition.

Shows stagnation: a term smaller than half a unit of the sum's last place adds nothing.

Dimensions: M, N of a product, K contracted.
"""

import torch
from torch import Tensor

from minimoe.precision.arguments import Rounding
from minimoe.precision.formats import BF16, Format
from minimoe.precision.rounding import round_to


def sequential_sum(
    a_MK: Tensor, b_KN: Tensor, fmt: Format, rounding: Rounding, formats: tuple[Format, Format],
    generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """s = round(s + a_k b_k) for each k in turn, rounded once -> (M, N) float32; ``formats`` of a and b."""
    # The sum of two numbers of t bits may be rounded to 2 t + 2 bits before it is rounded to t (Figueroa,
    # SIGNUM Newsletter 30(3), 1995): float32's 24 suffice for fp16's 11 if products have no more than 11 bits
    # either. Their exponents must be FP8's, so that sums too small to be normal in fp16 are exact.
    narrow = sum(f.mantissa_bits + 1 for f in formats) <= fmt.mantissa_bits + 1
    narrow = narrow and all(f.exponent_bits <= 5 for f in formats)
    wide = torch.float32 if narrow else torch.float64
    add = torch.add if narrow else _add_to_odd
    a_MK, b_KN = a_MK.to(wide), b_KN.to(wide)
    sum_MN = a_MK.new_zeros(len(a_MK), b_KN.shape[1])
    for a_M, b_N in zip(a_MK.T, b_KN, strict=True):
        sum_MN = add(sum_MN, a_M[:, None] * b_N)
        if narrow and rounding == "nearest":
            sum_MN = sum_MN.to(torch.bfloat16 if fmt == BF16 else torch.float16).to(wide)
        else:
            sum_MN = round_to(sum_MN, fmt, rounding=rounding, overflow="inf", generator=generator)
    return sum_MN.float()


def _add_to_odd(s: Tensor, p: Tensor) -> Tensor:
    """s + p in float64, rounded to odd: where inexact, the neighbor whose last bit is odd.

    The exact sum can be very close to the midpoint of two 16-bit numbers (p at the midpoint, s tiny). float64
    rounds it to the midpoint, and a second rounding then goes to even, maybe to the wrong side. A number with
    an odd last bit is never a midpoint, and on the right side of it (Boldo and Melquiond, IEEE Trans. Comput.
    57(4), 2008).
    """
    total = s + p
    back = total - s
    lost = (s - (total - back)) + (p - back)  # exact (Knuth's two-sum); NaN where the total is not finite
    neighbor = torch.nextafter(total, torch.full_like(total, torch.inf).copysign(lost))
    even = total.view(torch.int64) & 1 == 0
    return torch.where((lost.abs() > 0) & even, neighbor, total)
