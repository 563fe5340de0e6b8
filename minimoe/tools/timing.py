"""[evidence] Timing: tasks take turns, the device is synchronized, ratios have confidence intervals.

On a shared machine absolute times mean little, but ratios within one run are meaningful. A ratio is the
median over rounds in each of which every task was timed, with a 95 % confidence interval. It is marked noisy
if the interval is wide or if later rounds disagree with earlier ones. Also measures the machine's peaks.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Task = Callable[[], object]

NOISY = 0.15  # a ratio is noisy if its interval is wider than this fraction of it

DRIFTING = 0.075  # or if the medians of its earlier and later rounds differ by more than this fraction


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Ratio:
    """A task's time relative to its baseline: the median over rounds and its 95 % confidence interval, which
    assumes independent rounds. ``drift`` shows where they are not, because the machine slowed down."""

    value: float
    low: float
    high: float
    drift: float = 0.0
    """relative difference between the medians of the later and the earlier half of the rounds"""

    @property
    def noisy(self) -> bool:
        return self.high - self.low > NOISY * self.value or self.drift > DRIFTING


@dataclass(frozen=True)
class Timing:
    """Seconds of one run of each task, one value per round."""

    seconds: dict[str, list[float]]
    threads: int

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def quartiles(self, name: str) -> tuple[float, float]:
        """First and third quartile; the same value twice for a single round."""
        values = self.seconds[name]
        if len(values) == 1:
            return values[0], values[0]
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, high

    def ratio(self, name: str, baseline: str) -> Ratio:
        """``name``'s time over ``baseline``'s, per round, so that a transient slowdown of a round cancels."""
        pairs = zip(self.seconds[name], self.seconds[baseline], strict=True)
        return median_interval([ours / theirs for ours, theirs in pairs])

    def then(self, later: "Timing") -> "Timing":
        """Both, one after the other. Measuring again after other tasks shows whether a ratio drifts.

        Raises:
            ValueError: different tasks or numbers of threads.
        """
        if later.threads != self.threads or later.seconds.keys() != self.seconds.keys():
            raise ValueError(
                f"{list(later.seconds)} on {later.threads} threads do not match {list(self.seconds)} on "
                f"{self.threads}; measure the same tasks twice"
            )
        seconds = {name: values + later.seconds[name] for name, values in self.seconds.items()}
        return Timing(seconds, self.threads)


def median_interval(values: list[float]) -> Ratio:
    """The median and its distribution-free 95 % confidence interval from order statistics: of n values the
    true median lies between the r-th lowest and the r-th highest except with probability 2 P(Bin(n, ½) < r).
    The drift is from the first half of the values, in order of time, to the second."""
    ordered, n = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < n // 2:
        outside += 2 * math.comb(n, rank) / 2**n
        if outside > 0.05:
            break
        rank += 1
    first = max(rank - 1, 0)  # with fewer than 6 values the whole range, at less confidence
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
    """Time tasks in turns.

    Every round starts with another task, so that none always follows the same one.

    Args:
        rounds: timed rounds, after ``warmup`` untimed ones.
        shortest: minimal seconds of a task's turn; shorter tasks are repeated within it.
        budget: seconds after which no further round starts; at least six rounds (or ``rounds``) are made.

    Raises:
        ValueError: no tasks or no rounds.
    """
    if not tasks or rounds < 1:
        raise ValueError(f"tasks ({len(tasks)}) and rounds ({rounds}) must be at least 1")
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
    """Median seconds of each task, timed in turns."""
    timing = measure(tasks, device, rounds=rounds, warmup=warmup)
    return {name: timing.median(name) for name in tasks}


@dataclass(frozen=True)
class Peaks:
    """Measured peak performance of a device with a number of threads."""

    flops: dict[str, float]
    """FLOP/s of a large matmul, by dtype"""
    bandwidth: float
    """bytes per second, read and written, of a large copy"""
    threads: int

    def seconds(self, flops: float, bytes_moved: float, dtype: str = "float32") -> float:
        """The roofline's lower bound: the longer of arithmetic and memory traffic."""
        return max(flops / self.flops[dtype], bytes_moved / self.bandwidth)


def peaks(device: torch.device | str = "cpu") -> Peaks:
    """Peaks of a device, measured on the first call (a second or two) and cached per number of threads."""
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
    """The least of several times: what the machine can do undisturbed."""
    return min(measure({"": task}, device, rounds=10).seconds[""])
