"""A comparison as data: what is compared with what, at which shape, and who builds it.

Dimensions of shapes: T tokens, D model width, H expert width, E experts, K experts a token; M, N, K of a
product, K contracted; B batch, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from minimoe.tools.timing import Peaks, Task

Suite = Literal["moe", "fp8", "distill"]


class WrongResult(ValueError):
    """The compared do not compute the same; their times would say nothing."""


@dataclass(frozen=True)
class Cost:
    """What one run of a task cannot do without."""

    flops: float
    bytes: float
    """read and written if everything is read and written once"""
    dtype: str = "float32"
    """that the arithmetic is done in: whose peak it is held to"""

    def seconds(self, peaks: Peaks) -> float:
        """The roofline's."""
        return peaks.seconds(self.flops, self.bytes, self.dtype)

    def bound(self, peaks: Peaks) -> Literal["arithmetic", "bytes"]:
        """Which of the two takes longer."""
        return "arithmetic" if self.seconds(peaks) > self.bytes / peaks.bandwidth else "bytes"


@dataclass(frozen=True)
class Built:
    """A case on a device, ready to run."""

    check: Callable[[], None]
    """raises WrongResult or AssertionError where the compared do not compute the same"""
    tasks: Mapping[str, Task]
    """by name; none where memory alone is compared"""
    costs: Mapping[str, Cost]
    memory: Callable[[], Mapping[str, int]] = dict
    """bytes by task: kept for the backward pass, or held, as the group says"""


@dataclass(frozen=True)
class Case:
    """Tasks that do the same work in different ways. The first of ``baselines`` is *the* baseline; others
    are what the candidates are compared with, too."""

    suite: Suite
    group: str
    tasks: tuple[str, ...]
    baselines: tuple[str, ...]
    shape: Mapping[str, int]
    build: Callable[["Case", torch.device], Built]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.baselines or not set(self.baselines) < set(self.tasks):
            raise ValueError(f"baselines {self.baselines} must be some of the tasks {self.tasks}, not all")

    @property
    def baseline(self) -> str:
        return self.baselines[0]

    @property
    def key(self) -> str:
        """What tells it from the others, for people and for records."""
        shape = " ".join(f"{letter}={size}" for letter, size in self.shape.items())
        return f"{self.suite} · {self.group} · {shape} · {self.dtype}"
