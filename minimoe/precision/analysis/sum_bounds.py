"""How large the error of an accumulator's sum can be: what ``bounds`` knows of accumulators.

Dimensions: M, N, K of a product, K contracted.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.formats import BF16, FP16, FP32, Format
from minimoe.precision.tensor_core import AT_ONCE

Kind = Literal["deterministic", "probabilistic"]

U32 = FP32.unit_roundoff

TINY = FP32.min_subnormal  # below min_normal no float32 is rounded by more than half of it


def gamma(n: float, u: float) -> float:
    """n u / (1 - n u): what n relative errors of at most u can come to. Infinite from n u = 1 on."""
    return n * u / (1 - n * u) if n * u < 1 else math.inf


def gamma_probabilistic(n: float, u: float, lam: float) -> float:
    """exp(lam sqrt(n) u + n u² / (1 - u)) - 1: what n independent relative errors of at most u with mean 0
    exceed with probability 2 exp(-lam² (1 - u)² / 2) at most (Higham and Mary 2019, theorem 2.4)."""
    exponent = lam * math.sqrt(n) * u + n * u * u / (1 - u)
    return math.expm1(exponent) if exponent < 700 else math.inf


class Model:
    """What is assumed of roundings, for a result of so many elements, each a sum of ``depth`` products."""

    def __init__(self, kind: Kind, failure: float, elements: int, depth: int) -> None:
        self.random = kind == "probabilistic"
        # Half of failure for the operands, half for the sums: fewer than 8 (K + 1) chains of roundings each.
        self.of_operands, self.of_sums = (
            math.sqrt(2 * math.log(4 * max(elements, 1) * events / failure))
            for events in (1, 8 * (depth + 1))
        )

    def gamma(self, n: float, u: float) -> float:
        """n roundings in turn, each of at most u."""
        certain = gamma(n, u)
        return min(certain, gamma_probabilistic(n, u, self.of_sums / (1 - u))) if self.random else certain


def sums_of_codes(
    a_MK: Tensor, b_KN: Tensor, formats: tuple[Format, Format], accumulator: Accumulator, model: Model
) -> tuple[Tensor, Tensor]:
    """From codes' magnitudes, float64: the sums of their products (M, N), and how far the accumulator's sums
    of the codes can be from exact."""
    depth = a_MK.shape[1]
    every = min(accumulator.promote_every or depth, depth)
    error = a_MK.new_zeros(len(a_MK), b_KN.shape[1])
    for start in range(0, depth, every):
        a, b = a_MK[:, start : start + every], b_KN[start : start + every]
        if accumulator.kind == "fp32":
            error = error + model.gamma(len(b), U32) * (a @ b) + len(b) * TINY
        elif accumulator.kind == "tensor_core":
            error = error + _tensor_core(a, b, formats, accumulator.fraction_bits)
        else:
            error = error + _one_after_another(a @ b, len(b), accumulator, model)
    sums = a_MK @ b_KN
    promotions = -(-depth // every) - 1  # the first is no addition
    return sums, error + model.gamma(promotions, U32) * (sums + error)


def _one_after_another(sums: Tensor, n: int, accumulator: Accumulator, model: Model) -> Tensor:
    """n additions, each rounded to 16 bits.

    To nearest: n u, gamma without its denominator, for every n (Rump, BIT 52, 2012. The proof needs only that
    an addition errs by no more than what it adds, so that the products need not fit 16 bits.) At random an
    addition errs by up to 2 u.
    """
    fmt = {"fp16": FP16, "bf16": BF16}[accumulator.kind]
    u = fmt.unit_roundoff + 2.0**-50  # the exact sum is rounded to float64 before
    relative = n * u if accumulator.rounding == "nearest" else model.gamma(n, 2 * u)
    error = relative * sums + n * fmt.min_subnormal
    # A partial sum can be no larger than this; beyond fp16's largest it becomes infinite.
    return error.masked_fill(sums + error > fmt.max, torch.inf)


def _tensor_core(a_MK: Tensor, b_KN: Tensor, formats: tuple[Format, Format], fraction_bits: int) -> Tensor:
    """In one step each product and the sum so far lose less than 2^(E - f), where 2^E is no more than the
    largest of them, and the new sum loses less than 2^-f of itself. Cutting makes nothing larger, so that
    the sum so far is no more than that of the magnitudes. (Blanchard, Higham, Lopez, Mary, Pranesh, SIAM J.
    Sci. Comput. 42(3), 2020, have it for block FMAs that round; here terms are lined up and cut off.)"""
    cut, cut_sum = 2.0**-fraction_bits, 2.0 ** -min(fraction_bits, FP32.mantissa_bits)
    # Exponents count from the format's smallest one, as if subnormal factors were normal.
    high_MK, high_KN = (
        torch.where(x > 0, x.clamp_min(fmt.min_normal), 0.0)
        for x, fmt in zip((a_MK, b_KN), formats, strict=True)
    )
    sums = error = a_MK.new_zeros(len(a_MK), b_KN.shape[1])
    for start in range(0, len(b_KN), AT_ONCE):
        k = slice(start, start + AT_ONCE)
        # The largest product is no more than their sum, and than that of the largest factors.
        largest = torch.minimum(
            high_MK[:, k] @ high_KN[k], high_MK[:, k].amax(1)[:, None] * high_KN[k].amax(0)
        )
        terms = len(b_KN[k]) + (start > 0)
        error = error + terms * cut * torch.maximum(largest, sums)
        sums = sums + a_MK[:, k] @ b_KN[k]
        error = error + cut_sum * sums
    return error
