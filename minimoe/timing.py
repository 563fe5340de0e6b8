"""Honest measurement: the compared take turns, the median counts, the device is waited for.

On a shared machine an absolute time means little and a ratio within one run a good deal.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def interleaved_seconds(
    tasks: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int = 7, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of each task over ``rounds`` in which all take turns (A B A B …)."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(warmup + rounds):
        for name, task in tasks.items():
            synchronize(device)
            start = time.perf_counter()
            task()
            synchronize(device)
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
