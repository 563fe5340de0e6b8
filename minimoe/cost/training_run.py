"""Cost of a training run: from FLOPs and model FLOPs utilization (MFU) to GPU-hours, days and dollars."""

import math
from dataclasses import dataclass

from minimoe.cost.architecture import Architecture
from minimoe.cost.parameters import training_flops


@dataclass(frozen=True)
class Accelerator:
    """A GPU by its datasheet; peaks are of dense matmuls, in FLOP/s."""

    name: str
    float32: float
    """without TF32"""
    bf16: float
    fp8: float | None
    memory: float
    """bytes"""
    bandwidth: float
    """of that memory, in bytes per second"""
    source: str


# The H800 is an H100 with slower NVLink; its matmul peaks are the same.
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
class TrainingCost:
    """Cost of one training run. Research, failed runs, data and salaries are not included."""

    tokens: float
    flops: float
    hours: float
    """GPU-hours"""
    price: float
    """dollars per GPU-hour"""

    @property
    def dollars(self) -> float:
        return self.hours * self.price

    def days(self, gpus: int) -> float:
        return self.hours / gpus / 24


def training_cost(a: Architecture, tokens: float, *, peak: float, mfu: float, price: float) -> TrainingCost:
    """GPU-hours = FLOPs / (peak * MFU), with the peak in FLOP/s.

    Raises:
        ValueError: tokens, peak or price is not positive, or the MFU not in (0, 1].
    """
    for name, value in (("tokens", tokens), ("peak", peak), ("price", price)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} ({value}) must be above 0 and finite")
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu ({mfu}) must be above 0 and at most 1")
    flops = training_flops(a) * tokens
    return TrainingCost(tokens, flops, flops / (peak * mfu) / 3600, price)


def mfu(a: Architecture, tokens: float, hours: float, peak: float) -> float:
    """Model FLOPs utilization that published GPU-hours imply: the share of the peak."""
    return training_flops(a) * tokens / (hours * 3600 * peak)


@dataclass(frozen=True)
class PublishedRun:
    """A training run as its authors report it."""

    tokens: float
    hours: dict[str, float]
    """GPU-hours by stage; the first is pre-training"""
    accelerator: str
    gpus: int
    price: float
    """dollars per GPU-hour"""
    flops: float | None
    """of pre-training, if stated"""
    source: str

    @property
    def pretraining(self) -> float:
        """GPU-hours of pre-training."""
        return next(iter(self.hours.values()))

    @property
    def total_hours(self) -> float:
        return sum(self.hours.values())

    @property
    def dollars(self) -> float:
        return self.total_hours * self.price

    @property
    def days(self) -> float:
        """Of pre-training, on all GPUs at once."""
        return self.pretraining / self.gpus / 24

    def mfu(self, a: Architecture) -> float:
        """Share of the GPUs' bf16 peak that the hours of pre-training imply."""
        return mfu(a, self.tokens, self.pretraining, ACCELERATORS[self.accelerator].bf16)
