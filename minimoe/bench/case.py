"""[evidence] A benchmark case as data: the compared tasks, their shape, and the function that builds them.

Dimensions of shapes: T tokens, D model width, H expert width, E experts, K experts per token; M, N, K of a
matmul (K contracted); B batch, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from minimoe.tools.timing import Peaks, Task

Suite = Literal["moe", "fp8", "distill"]


class WrongResult(ValueError):
    """The compared tasks do not compute the same, so their times are not comparable."""


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes that one run of a task needs at least."""

    flops: float
    bytes: float
    """memory traffic if everything is read and written once"""
    dtype: str = "float32"
    """of the arithmetic, for the peak"""

    def seconds(self, peaks: Peaks) -> float:
        """The roofline's lower bound."""
        return peaks.seconds(self.flops, self.bytes, self.dtype)

    def bound(self, peaks: Peaks) -> Literal["compute", "memory"]:
        """Which of the two sets the lower bound."""
        return "compute" if self.seconds(peaks) > self.bytes / peaks.bandwidth else "memory"


@dataclass(frozen=True)
class BuiltCase:
    """A case on a device, ready to run."""

    check: Callable[[], None]
    """raises WrongResult or AssertionError if the tasks do not compute the same"""
    tasks: Mapping[str, Task]
    """by name; empty if only memory is compared"""
    work: Mapping[str, Work]
    memory: Callable[[], Mapping[str, int]] = dict
    """bytes by task: kept for the backward pass, or held, depending on the group"""


@dataclass(frozen=True)
class Case:
    """Tasks that do the same work in different ways. The first of ``baselines`` is *the* baseline; candidates
    are compared with the others, too."""

    suite: Suite
    group: str
    tasks: tuple[str, ...]
    baselines: tuple[str, ...]
    shape: Mapping[str, int]
    build: Callable[["Case", torch.device], BuiltCase]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.baselines or not set(self.baselines) < set(self.tasks):
            raise ValueError(f"baselines {self.baselines} must be some of the tasks {self.tasks}, not all")

    @property
    def baseline(self) -> str:
        return self.baselines[0]

    @property
    def key(self) -> str:
        """A unique name, for people and for records."""
        shape = " ".join(f"{letter}={size}" for letter, size in self.shape.items())
        return f"{self.suite} · {self.group} · {shape} · {self.dtype}"
