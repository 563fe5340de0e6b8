"""From operations to hours, cards, days and dollars, with everything that was assumed beside them."""

import math
from dataclasses import dataclass

from minimoe.cost.architecture import Architecture
from minimoe.cost.parameters import training_flops


@dataclass(frozen=True)
class Accelerator:
    """Dense matmul peaks, operations a second, as the vendor states them."""

    name: str
    float32: float
    """without TF32"""
    bf16: float
    fp8: float | None
    memory: float
    """bytes"""
    bandwidth: float
    """of that memory, bytes a second"""
    source: str


# The H800 is the H100 with a slower NVLink; its matmul peaks are the same.
_H100 = "NVIDIA H100 Tensor Core GPU datasheet, SXM5, without sparsity"

ACCELERATORS: dict[str, Accelerator] = {
    a.name: a
    for a in (
        Accelerator("h100", 67e12, 989.4e12, 1978.9e12, 80e9, 3.35e12, _H100),
        Accelerator(
            "h800", 67e12, 989.4e12, 1978.9e12, 80e9, 3.35e12, f"{_H100}; the H800 differs in NVLink"
        ),
        Accelerator(
            "h200", 67e12, 989.4e12, 1978.9e12, 141e9, 4.8e12,
            "NVIDIA H200 datasheet, SXM, without sparsity",
        ),
        Accelerator("a100", 19.5e12, 312e12, None, 80e9, 2.039e12, "NVIDIA A100 datasheet, SXM4 80 GB"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Bill:
    """What a training run takes. Research, failed runs, data and salaries are in no such bill."""

    tokens: float
    flops: float
    utilisation: float
    hours: float
    """of one card"""
    price: float
    """dollars a card and hour"""

    @property
    def dollars(self) -> float:
        return self.hours * self.price

    def days(self, cards: int) -> float:
        return self.hours / cards / 24


def bill(
    a: Architecture,
    tokens: float,
    *,
    peak: float,
    utilisation: float,
    price: float,
    context: int | None = None,
) -> Bill:
    """Hours = operations / (peak * utilisation). ``peak`` in operations a second.

    Raises:
        ValueError: tokens, peak or price is not positive, or the utilisation not in (0, 1].
    """
    for name, value in (("tokens", tokens), ("peak", peak), ("price", price)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} ({value}) must be above 0, and finite")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation ({utilisation}) must be above 0 and at most 1")
    flops = training_flops(a, context) * tokens
    return Bill(tokens, flops, utilisation, flops / (peak * utilisation) / 3600, price)


def utilisation(
    a: Architecture, tokens: float, hours: float, peak: float, context: int | None = None
) -> float:
    """The share of the peak that published hours imply."""
    return training_flops(a, context) * tokens / (hours * 3600 * peak)


@dataclass(frozen=True)
class PublishedRun:
    """What somebody says that a training run took."""

    tokens: float
    hours: dict[str, float]
    """of one card, by stage; the first is pre-training"""
    accelerator: str
    cards: int
    price: float
    """dollars a card and hour"""
    flops: float | None
    """of pre-training, where they are stated"""
    source: str

    @property
    def pretraining(self) -> float:
        """Hours of one card."""
        return next(iter(self.hours.values()))

    @property
    def total_hours(self) -> float:
        return sum(self.hours.values())

    @property
    def dollars(self) -> float:
        return self.total_hours * self.price

    @property
    def days(self) -> float:
        """Of pre-training, on all its cards at once."""
        return self.pretraining / self.cards / 24

    def utilisation(self, a: Architecture) -> float:
        """The share of the cards' bf16 peak that the hours of pre-training imply."""
        return utilisation(a, self.tokens, self.pretraining, ACCELERATORS[self.accelerator].bf16)
