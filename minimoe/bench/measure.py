"""[evidence] Measuring a case: check the results first, then time the tasks, and make the records.

A case is built and timed twice, with all other cases in between (``runner``), so that a ratio caused by a
slow minute or by a tensor's place in memory is detected: its two halves differ (``timing.Ratio.drift``).
Every round also times the same small matmul, the reference; if that is slower than usual in the run, other
processes were active, and all of the case's ratios are marked noisy.
"""

import functools
import gc
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from minimoe.bench.case import BuiltCase, Case, Work
from minimoe.tools.timing import Peaks, Timing, measure
from minimoe.version import __version__

REFERENCE = "reference matmul"

REFERENCE_SIZE = 384  # a millisecond or two on a CPU

SLOWED = 0.15  # slowdown of the reference matmul above which ratios are noisy

Measurement = dict[str, Any]  # one of a case's two measurements, as plain data


@dataclass(frozen=True)
class Effort:
    """How long to measure a case, each time."""

    rounds: int = 25
    budget: float = 3.0
    """seconds after which no further round begins, once there are six"""
    shortest: float = 1e-3
    """seconds; shorter tasks are repeated within a round"""
    warmup: int = 2


QUICK, FULL, ONCE = Effort(25, 0.8), Effort(), Effort(1, 0.0, 0.0, 0)


def time_case(case: Case, device: torch.device, effort: Effort, *, check: bool = True) -> Measurement:
    """Build a case, check that it is right, then time it.

    Raises:
        WrongResult, AssertionError: the tasks do not compute the same.
    """
    torch.manual_seed(0)
    built = case.build(case, device)
    if check:
        built.check()
    return time_built(case, built, device, effort)


def time_built(case: Case, built: BuiltCase, device: torch.device, effort: Effort) -> Measurement:
    """Seconds of every round, and work and memory of every task."""
    timing = Timing({}, torch.get_num_threads())
    memory = dict(built.memory())
    if built.tasks:
        gc.collect()  # so that garbage of earlier cases is not collected during this one
        a, b = torch.randn(2, REFERENCE_SIZE, REFERENCE_SIZE, device=device)
        tasks = {name: built.tasks[name] for name in case.tasks} | {REFERENCE: lambda: a @ b}
        timing = measure(tasks, device, **asdict(effort))
    return {
        "case": case.key,
        "threads": timing.threads,
        "seconds": {name: values for name, values in timing.seconds.items() if name != REFERENCE},
        "reference": timing.median(REFERENCE) if built.tasks else None,
        "work": {name: asdict(work) for name, work in built.work.items()},
        "memory": memory,
    }


def measure_case(
    case: Case, device: torch.device, effort: Effort, peaks: Peaks, *, repeats: int = 2
) -> list[dict[str, Any]]:
    """Check and time a case, and return its records."""
    measurements = [time_case(case, device, effort, check=repeat == 0) for repeat in range(repeats)]
    return case_records(case, device, measurements, peaks, usual_reference(measurements))


def usual_reference(measurements: Iterable[Measurement]) -> float:
    """Median seconds of the reference matmul over a run; 0 if nothing was timed."""
    seconds = [m["reference"] for m in measurements if m["reference"]]
    return statistics.median(seconds) if seconds else 0.0


def case_records(
    case: Case, device: torch.device, measurements: Sequence[Measurement], peaks: Peaks, usual: float = 0.0
) -> list[dict[str, Any]]:
    """A plain dictionary per task, all with the same keys; None for what was not measured.

    ``seconds`` is the median, with its ``quartiles``; ``ratio`` is the time over the baseline's, round by
    round, with its confidence interval from ``low`` to ``high``; ``against`` has the same for every baseline.
    ``share_of_peak`` is the roofline's time over the measured one, and ``bound`` what sets it;
    ``predicted_ratio`` is the roofline's. ``slowed`` is the slowdown of the reference matmul against its
    ``usual`` seconds.
    """
    first = measurements[0]
    timing = functools.reduce(Timing.then, [Timing(m["seconds"], m["threads"]) for m in measurements])
    work, memory = {name: Work(**fields) for name, fields in first["work"].items()}, first["memory"]
    references = [m["reference"] for m in measurements if usual and m["reference"]]
    slowed = max((reference / usual - 1 for reference in references), default=0.0)
    about = {
        "suite": case.suite,
        "group": case.group,
        "baseline": case.baseline,
        "shape": dict(case.shape),
        "dtype": case.dtype,
        "device": device.type,
        "threads": timing.threads,
        "minimoe": __version__,
        "torch": torch.__version__,
        "slowed": slowed,
    }
    records = []
    for name in case.tasks:
        against = {
            baseline: _ratio(timing, name, baseline, slowed)
            | {
                "predicted": work[name].seconds(peaks) / work[baseline].seconds(peaks) if work else None,
                "memory": memory[name] / memory[baseline] if memory else None,
            }
            for baseline in case.baselines
        }
        ratio = against[case.baseline].copy()
        ratio["predicted_ratio"], ratio["memory_ratio"] = ratio.pop("predicted"), ratio.pop("memory")
        speed = _speed(timing, name, work, peaks, case.shape.get("T"))
        records.append(about | {"task": name, "memory": memory.get(name), "against": against} | ratio | speed)
    return records


def _ratio(timing: Timing, name: str, baseline: str, slowed: float) -> dict[str, Any]:
    if not timing.seconds:
        return dict.fromkeys(("ratio", "low", "high", "drift", "noisy"))
    ratio = timing.ratio(name, baseline)
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "drift": ratio.drift,
            "noisy": ratio.noisy or slowed > SLOWED}  # fmt: skip


def _speed(
    timing: Timing, name: str, work: dict[str, Work], peaks: Peaks, tokens: int | None
) -> dict[str, Any]:
    if not timing.seconds:
        return dict.fromkeys((
            "rounds", "seconds", "quartiles", "flops", "bytes", "gflops_per_second", "gb_per_second", "bound",
            "share_of_peak", "tokens_per_second",
        ))  # fmt: skip
    seconds, least = timing.median(name), work[name]
    return {
        "rounds": len(timing.seconds[name]),
        "seconds": seconds,
        "quartiles": list(timing.quartiles(name)),
        "flops": least.flops,
        "bytes": least.bytes,
        "gflops_per_second": least.flops / seconds / 1e9,
        "gb_per_second": least.bytes / seconds / 1e9,
        "bound": least.bound(peaks),
        "share_of_peak": least.seconds(peaks) / seconds,
        "tokens_per_second": tokens and tokens / seconds,
    }
