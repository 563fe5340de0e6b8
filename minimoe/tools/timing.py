"""Honest measurement: the compared take turns, medians count, the device is waited for, peaks are measured.

On a shared machine an absolute time means little and a ratio within one run a good deal. A ratio is the
median over rounds in each of which all were timed, with an interval of confidence; where that is wide, or the
later rounds say something else than the earlier ones, the ratio says of itself that it is noisy.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Task = Callable[[], object]

NOISY = 0.15  # of the ratio: an interval wider than this, from end to end, is no measurement

DRIFTING = 0.075  # nor is one whose later half of rounds is further than this part of it from the earlier


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Ratio:
    """How many times as long something took as its baseline: the median over rounds, and between what it
    lies with 95 % confidence if rounds know nothing of each other. They do: a machine has its minutes. That
    is what ``drift`` is for."""

    value: float
    low: float
    high: float
    drift: float = 0.0
    """how far the median of the later half of the rounds is from that of the earlier, as a part of that"""

    @property
    def noisy(self) -> bool:
        return self.high - self.low > NOISY * self.value or self.drift > DRIFTING


@dataclass(frozen=True)
class Timing:
    """Seconds of one run of each task, a value a round."""

    seconds: dict[str, list[float]]
    threads: int

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def quartiles(self, name: str) -> tuple[float, float]:
        """Half of the rounds lay between these; the same value twice for a single round."""
        values = self.seconds[name]
        if len(values) == 1:
            return values[0], values[0]
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, high

    def ratio(self, name: str, baseline: str) -> Ratio:
        """``name``'s time over ``baseline``'s, round by round, so that what slows a whole round cancels."""
        pairs = zip(self.seconds[name], self.seconds[baseline], strict=True)
        return median_interval([ours / theirs for ours, theirs in pairs])

    def then(self, later: "Timing") -> "Timing":
        """Both, one after the other: measured again after other things, a ratio shows whether it drifts.

        Raises:
            ValueError: other tasks, or another number of threads.
        """
        if later.threads != self.threads or later.seconds.keys() != self.seconds.keys():
            raise ValueError(
                f"{list(later.seconds)} on {later.threads} threads cannot go on "
                f"{list(self.seconds)} on {self.threads}; measure the same twice"
            )
        seconds = {name: values + later.seconds[name] for name, values in self.seconds.items()}
        return Timing(seconds, self.threads)


def median_interval(values: list[float]) -> Ratio:
    """The median and its 95 % interval from order statistics, which assume no distribution: of n values the
    true median lies between the r-th from below and from above but with probability 2 P(Bin(n, ½) < r).
    The drift is from the first half of the values, as they came, to the second."""
    ordered, n = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < n // 2:
        outside += 2 * math.comb(n, rank) / 2**n
        if outside > 0.05:
            break
        rank += 1
    first = max(rank - 1, 0)  # with fewer than 6 values the whole range, which is less sure
    value = statistics.median(ordered)
    drift = 0.0
    if n > 1:
        drift = abs(statistics.median(values[n // 2 :]) / statistics.median(values[: n // 2]) - 1)
    return Ratio(value, ordered[first], ordered[n - 1 - first], drift)


def measure(
    tasks: Mapping[str, Task],
    device: torch.device,
    *,
    rounds: int = 15,
    warmup: int = 2,
    shortest: float = 0.0,
    budget: float | None = None,
) -> Timing:
    """Time tasks that take turns.

    Every round starts with another task, so that none always follows the same neighbour.

    Args:
        rounds: turns of each that are timed; ``warmup`` of them come before and do not count.
        shortest: seconds; a task that is shorter is repeated within its turn until the turn is as long.
        budget: seconds in all after which no further round begins; six are always made (or ``rounds``).

    Raises:
        ValueError: no task, or no round.
    """
    if not tasks or rounds < 1:
        raise ValueError(f"there must be a task ({len(tasks)}) and a round ({rounds}) to measure")
    names, repeats = list(tasks), dict.fromkeys(tasks, 1)
    times: dict[str, list[float]] = {name: [] for name in tasks}
    began = time.perf_counter()
    for turn in range(warmup + rounds):
        late = budget is not None and time.perf_counter() - began > budget
        if late and turn >= warmup + min(rounds, 6):
            break
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            seconds = _timed(tasks[name], device, repeats[name])
            if turn >= warmup:
                times[name].append(seconds)
            elif shortest:
                repeats[name] = max(1, math.ceil(shortest / max(seconds, 1e-9)))
    return Timing(times, torch.get_num_threads())


def _timed(task: Task, device: torch.device, repeats: int) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        task()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def interleaved_seconds(
    tasks: Mapping[str, Task], device: torch.device, *, rounds: int = 7, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of each task over ``rounds`` in which all take turns."""
    timing = measure(tasks, device, rounds=rounds, warmup=warmup)
    return {name: timing.median(name) for name in tasks}


@dataclass(frozen=True)
class Peaks:
    """The most that this device does with so many threads: what shares of it are shares of."""

    flops: dict[str, float]
    """operations a second of a large matmul, by dtype"""
    bandwidth: float
    """bytes a second, read and written, of a large copy"""
    threads: int

    def seconds(self, flops: float, bytes_moved: float, dtype: str = "float32") -> float:
        """The roofline: no less than the arithmetic takes, and no less than the bytes take."""
        return max(flops / self.flops[dtype], bytes_moved / self.bandwidth)


def peaks(device: torch.device | str = "cpu") -> Peaks:
    """Measured when first asked for, a second or two; known afterwards, for each device and thread count."""
    return _measured_peaks(str(device), torch.get_num_threads())


@functools.cache
def _measured_peaks(name: str, threads: int) -> Peaks:
    device = torch.device(name)
    size, numbers = (8192, 1 << 28) if device.type == "cuda" else (1536, 1 << 25)
    flops = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        flops[str(dtype).removeprefix("torch.")] = (
            2 * size**3 / _shortest(functools.partial(torch.matmul, a, b), device)
        )
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _shortest(lambda: target.copy_(source), device)
    return Peaks(flops, bandwidth, threads)


def _shortest(task: Task, device: torch.device) -> float:
    """The least seconds of several: what the machine can do when nothing disturbs it."""
    return min(measure({"": task}, device, rounds=10).seconds[""])
