"""[evidence] Error bounds of an accumulator's sums.

Dimensions: M, N, K of a product, K contracted.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.formats import BF16, FP16, FP32, Format
from minimoe.precision.tensor_core import PRODUCTS_PER_STEP

BoundKind = Literal["deterministic", "probabilistic"]

U32 = FP32.unit_roundoff
TINY = FP32.min_subnormal  # below min_normal no float32 is rounded by more than half of it


def gamma(n: float, u: float) -> float:
    """n u / (1 - n u), a bound on the product of n relative errors of at most u. Infinite from n u = 1 on."""
    return n * u / (1 - n * u) if n * u < 1 else math.inf


def gamma_probabilistic(n: float, u: float, lam: float) -> float:
    """exp(lam sqrt(n) u + n u² / (1 - u)) - 1, which n independent relative errors of at most u with mean 0
    exceed with probability 2 exp(-lam² (1 - u)² / 2) at most (Higham and Mary 2019, theorem 2.4)."""
    exponent = lam * math.sqrt(n) * u + n * u * u / (1 - u)
    return math.expm1(exponent) if exponent < 700 else math.inf


class RoundingModel:
    """What is assumed of rounding errors, for ``n_outputs`` results, each a sum of ``depth`` products."""

    def __init__(self, kind: BoundKind, failure: float, n_outputs: int, depth: int) -> None:
        self.probabilistic = kind == "probabilistic"
        # Half of failure for the operands, half for the sums: fewer than 8 (K + 1) chains of roundings each.
        self.operand_lambda, self.sum_lambda = (
            math.sqrt(2 * math.log(4 * max(n_outputs, 1) * events / failure))
            for events in (1, 8 * (depth + 1))
        )

    def gamma(self, n: float, u: float) -> float:
        """A bound for n successive roundings, each of at most u."""
        certain = gamma(n, u)
        if not self.probabilistic:
            return certain
        return min(certain, gamma_probabilistic(n, u, self.sum_lambda / (1 - u)))


def sums_of_codes(
    a_MK: Tensor, b_KN: Tensor, formats: tuple[Format, Format], accumulator: Accumulator, model: RoundingModel
) -> tuple[Tensor, Tensor]:
    """From the codes' magnitudes, float64: the sums of their products (M, N), and a bound on the error of the
    accumulator's sums."""
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
            error = error + _sequential(a @ b, len(b), accumulator, model)
    sums = a_MK @ b_KN
    n_additions = -(-depth // every) - 1  # the first promotion adds to 0, which is exact
    return sums, error + model.gamma(n_additions, U32) * (sums + error)


def _sequential(sums: Tensor, n: int, accumulator: Accumulator, model: RoundingModel) -> Tensor:
    """n additions, each rounded to 16 bits.

    To nearest: n u, gamma without its denominator, for every n (Rump, BIT 52, 2012. The proof needs only that
    the error of an addition is at most the term added, so the products need not fit 16 bits.) Stochastically,
    the error of an addition is at most 2 u.
    """
    fmt = {"fp16": FP16, "bf16": BF16}[accumulator.kind]
    u = fmt.unit_roundoff + 2.0**-50  # the exact sum is rounded to float64 before
    relative = n * u if accumulator.rounding == "nearest" else model.gamma(n, 2 * u)
    error = relative * sums + n * fmt.min_subnormal
    # No partial sum is larger than this; beyond fp16's largest number it becomes infinite.
    return error.masked_fill(sums + error > fmt.max, torch.inf)


def _tensor_core(a_MK: Tensor, b_KN: Tensor, formats: tuple[Format, Format], fraction_bits: int) -> Tensor:
    """In one step each product and the running sum lose less than 2^(E - f), where 2^E is at most the largest
    of them, and the new sum loses less than 2^-f of itself. Truncation makes nothing larger, so the running
    sum is at most that of the magnitudes. (Blanchard, Higham, Lopez, Mary, Pranesh, SIAM J. Sci. Comput.
    42(3), 2020, for block FMAs that round; here terms are aligned and truncated.)"""
    cut_term, cut_sum = 2.0**-fraction_bits, 2.0 ** -min(fraction_bits, FP32.mantissa_bits)
    # Exponents are at least the format's smallest one, as if subnormal factors were normal.
    high_MK, high_KN = (
        torch.where(x > 0, x.clamp_min(fmt.min_normal), 0.0)
        for x, fmt in zip((a_MK, b_KN), formats, strict=True)
    )
    sums = error = a_MK.new_zeros(len(a_MK), b_KN.shape[1])
    for start in range(0, len(b_KN), PRODUCTS_PER_STEP):
        k = slice(start, start + PRODUCTS_PER_STEP)
        # The largest product is at most the sum of all, and at most the product of the largest factors.
        largest = torch.minimum(
            high_MK[:, k] @ high_KN[k], high_MK[:, k].amax(1)[:, None] * high_KN[k].amax(0)
        )
        n_terms = len(b_KN[k]) + (start > 0)
        error = error + n_terms * cut_term * torch.maximum(largest, sums)
        sums = sums + a_MK[:, k] @ b_KN[k]
        error = error + cut_sum * sums
    return error
