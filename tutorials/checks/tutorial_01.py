"""The exercises of tutorial 1."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from checks import Verdict, compare
from minimoe.precision import E4M3, fake_quantize, quantize, round_to

TIE = "A tie goes the wrong way: of two equally near take the even one, as round() does."


def _rounded(x: float, whole: Callable[[float], float], least: int = -6, coarser: int = 0) -> float:
    """Each wrong answer is right but for one thing."""
    step = 2.0 ** (max(math.frexp(x)[1] - 1 + coarser, least) - 3)
    return max(-448.0, min(448.0, whole(x / step) * step))


def _ties_up(x: float) -> float:
    return _rounded(x, lambda y: math.floor(y + 0.5))


def _ties_away(x: float) -> float:
    return math.copysign(_ties_up(abs(x)), x)


def _ties_down(x: float) -> float:
    return _rounded(x, lambda y: math.ceil(y - 0.5))


def _cut(x: float) -> float:
    return _rounded(x, math.trunc)


def _one_power_too_high(x: float) -> float:
    return _rounded(x, round, coarser=1)


def _no_subnormals(x: float) -> float:
    return _rounded(x, round, least=-2000)


def _no_limit(x: float) -> float:
    step = 2.0 ** (max(math.frexp(x)[1] - 1, -6) - 3)
    return round(x / step) * step


def _eighths(x: float) -> float:
    return round(x * 8) / 8


def _not_back_from_steps(x: float) -> float:
    return float(round(x / 2.0 ** (max(math.frexp(x)[1] - 1, -6) - 3)))


def _no_lower_limit(x: float) -> float:
    return min(_no_limit(x), 448.0)


def _no_sign(x: float) -> float:
    return abs(round_to(torch.tensor(x, dtype=torch.float64), E4M3).item())


def check_rounding(answer: Callable[[float], float]) -> Verdict:
    """Rounding one number to E4M3."""
    asked = (3.4, math.pi, 1.0, 0.1, 300.0, -math.pi, 2.125, 2.375, 0.01, 0.0005, -0.003)
    asked += (1000.0, -1000.0, 0.0)
    cases = [((x,), round_to(torch.tensor(x, dtype=torch.float64), E4M3).item()) for x in asked]
    return compare(
        answer,
        cases,
        praise=f"All {len(asked)} numbers come out as in the package: ties, the smallest, the largest.",
        hints=(
            (
                _eighths,
                "You round to eighths everywhere; the distance is an eighth of the power of two below |x|.",
            ),
            (_no_sign, "The sign is lost: use |x| to find the power of two only."),
            (
                _one_power_too_high,
                "Twice too coarse: frexp's exponent is one more than that of the power below |x|.",
            ),
            (_ties_away, TIE),
            (_ties_up, TIE),
            (_ties_down, TIE),
            (_no_subnormals, "Below 2^-6 neighbours come no closer: hold the exponent at -6 or above."),
            (_not_back_from_steps, "That is how many distances it is; multiply by the distance again."),
            (_no_lower_limit, "The negative numbers end as well: what is below -448 becomes -448."),
            (_no_limit, "Nothing is larger than 448: what is beyond becomes 448, or -448."),
            (_cut, "You cut instead of rounding: int() and // drop what hangs over. Take round()."),
        ),
        tolerance=1e-12,
    )


def _unscaled(x: Tensor) -> Tensor:
    return round_to(x, E4M3)


def _not_back(x: Tensor) -> Tensor:
    return round_to(x * 448 / x.abs().max(), E4M3)


def _not_a_number(x: Tensor) -> Tensor:
    scale = x.abs().max() / 448
    return round_to(x / scale, E4M3) * scale


def _inverted(x: Tensor) -> Tensor:
    scale = x.abs().max() / 448
    return round_to(x * scale, E4M3) / scale


def _signed(x: Tensor) -> Tensor:
    scale = x.max() / 448
    return round_to(x / scale, E4M3) * scale


def _to_one(x: Tensor) -> Tensor:
    scale = x.abs().max()
    return round_to(x / scale, E4M3) * scale


def check_scaling(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Rounding a tensor under a scale of its own."""
    asked = ((3 / 1024, 1 / 1024, -0.5 / 1024), (1000.0, -20.0, 3.3), (-9000.0, 1.0, 40.0), (0.0, 0.0, 0.0))
    cases = [((torch.tensor(x),), fake_quantize(torch.tensor(x), E4M3)) for x in asked]
    return compare(
        answer,
        cases,
        praise="Small numbers, large ones, negative ones and zeros come back as they should.",
        hints=(
            (_unscaled, "That is rounding without a scale."),
            (_not_back, "You divide by the scale but do not multiply by it again after rounding."),
            (_inverted, "The scale is upside down: divide by it first, multiply afterwards."),
            (_to_one, "You bring the largest number to 1. Bring it to 448, and far fewer fall below 2^-6."),
            (_signed, "The largest number is not the largest magnitude: a tensor may be negative."),
            (_not_a_number, "Zeros have scale 0, and 0 / 0 is not a number. Let their scale be 1."),
        ),
    )


EDGE = "Blocks at the edge that are not full have a scale too: round up."


def _ceil(size: int, side: int) -> int:
    return -(-size // side)


def check_bytes(answer: Callable[[int, int, int, int], int]) -> Verdict:
    """Bytes of a matrix of 8-bit numbers with its scales."""
    asked = ((256, 512, 1, 128), (256, 512, 128, 128), (100, 300, 1, 128), (130, 130, 128, 128))
    cases = [(sizes, quantize(torch.ones(sizes[:2]), E4M3, (sizes[2], sizes[3])).nbytes) for sizes in asked]
    return compare(
        answer,
        cases,
        praise="The package's tensors take as many bytes, scales and all.",
        hints=(
            (lambda m, n, h, w: m * n, "That is the numbers alone; each block has a scale as well."),
            (lambda m, n, h, w: m * n + _ceil(m, h) * _ceil(n, w), "A scale is a float32: 4 bytes, not 1."),
            (lambda m, n, h, w: m * n + 4 * (m // h) * (n // w), EDGE),
            (lambda m, n, h, w: m * n + 4 * m * n / (h * w), EDGE),
            (
                lambda m, n, h, w: m * n + 4 * _ceil(m * n, h * w),
                "Blocks end at the edge: round up how many lie side by side, and how many below each other.",
            ),
        ),
    )
