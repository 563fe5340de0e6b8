"""A case measured: right first, then fast; and the records that come of it.

A case is built and timed twice, with everything else in between (``running``). So a ratio that the minute,
or the place of a tensor in memory, has made is found out: its two halves differ (``timing.Ratio.drift``).
And in every round one small product, always the same, is timed too: where it takes longer than it usually
does in the run, somebody else was at work, and all of the case's ratios are noisy.
"""

import gc
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from minimoe.bench.case import Built, Case, Cost
from minimoe.tools.timing import Peaks, Timing, measure
from minimoe.version import __version__

MACHINE = "the machine"

SLOWED = 0.15  # how much longer than usual the machine may take for the same small product

SIDE = 384  # a millisecond or two on a CPU

Turn = dict[str, Any]

"""One of a case's two measurements, as plain data."""


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


def time_case(case: Case, device: torch.device, effort: Effort, *, check: bool = True) -> Turn:
    """Build it, see that it is right, then time it: seconds of every round, bytes and costs of every task.

    Raises:
        WrongResult, AssertionError: the compared do not compute the same.
    """
    torch.manual_seed(0)
    built = case.build(case, device)
    if check:
        built.check()
    return time_built(case, built, device, effort)


def time_built(case: Case, built: Built, device: torch.device, effort: Effort) -> Turn:
    timing = Timing({}, torch.get_num_threads())
    memory = dict(built.memory())
    if built.tasks:
        gc.collect()  # what earlier cases left is not to be found in the middle of this one
        a, b = torch.randn(2, SIDE, SIDE, device=device)
        tasks = {name: built.tasks[name] for name in case.tasks} | {MACHINE: lambda: a @ b}
        timing = measure(
            tasks, device, rounds=effort.rounds, warmup=effort.warmup, shortest=effort.shortest,
            budget=effort.budget,
        )  # fmt: skip
    return {
        "case": case.key,
        "threads": timing.threads,
        "seconds": {name: values for name, values in timing.seconds.items() if name != MACHINE},
        "machine": timing.median(MACHINE) if built.tasks else None,
        "costs": {name: asdict(cost) for name, cost in built.costs.items()},
        "memory": memory,
    }


def measure_case(
    case: Case, device: torch.device, effort: Effort, peaks: Peaks, *, turns: int = 2
) -> list[dict[str, Any]]:
    """Check and time a case; its records."""
    found = [time_case(case, device, effort, check=turn == 0) for turn in range(turns)]
    return case_records(case, device, found, peaks, usual(found))


def usual(turns: Iterable[Turn]) -> float:
    """The median of the small product's seconds, which what ran before it leaves in a cache or does not; 0
    where nothing was timed."""
    found = [turn["machine"] for turn in turns if turn["machine"]]
    return statistics.median(found) if found else 0.0


def case_records(
    case: Case, device: torch.device, turns: Sequence[Turn], peaks: Peaks, normal: float = 0.0
) -> list[dict[str, Any]]:
    """A plain dictionary a task, all with the same keys; None where something was not measured.

    ``seconds`` is the median and lies between ``quartiles``; ``ratio`` is to the baseline's, round by round,
    and lies between ``low`` and ``high``; ``against`` has the same for every baseline. ``share_of_peak`` is
    the roofline's time over the measured one, ``bound`` by what; ``predicted_ratio`` is the roofline's.
    ``slowed`` is how much longer than ``normal`` the machine took for a small product meanwhile.
    """
    timing = Timing(turns[0]["seconds"], turns[0]["threads"])
    for turn in turns[1:]:
        timing = timing.then(Timing(turn["seconds"], turn["threads"]))
    costs = {name: Cost(**cost) for name, cost in turns[0]["costs"].items()}
    memory = turns[0]["memory"]
    slowed = max((turn["machine"] / normal - 1 for turn in turns if normal and turn["machine"]), default=0.0)
    return [_record(name, case, device, timing, costs, memory, peaks, slowed) for name in case.tasks]


def _record(
    name: str, case: Case, device: torch.device, timing: Timing, costs: dict[str, Cost],
    memory: dict[str, int], peaks: Peaks, slowed: float,
) -> dict[str, Any]:  # fmt: skip
    about = {
        "suite": case.suite,
        "group": case.group,
        "task": name,
        "baseline": case.baseline,
        "shape": dict(case.shape),
        "dtype": case.dtype,
        "device": device.type,
        "threads": timing.threads,
        "minimoe": __version__,
        "torch": torch.__version__,
    }
    against = {
        rival: {
            **_ratio(name, rival, timing, slowed),
            "predicted": costs[name].seconds(peaks) / costs[rival].seconds(peaks) if costs else None,
            "memory": memory[name] / memory[rival] if memory else None,
        }
        for rival in case.baselines
    }
    first = against[case.baseline]
    ratios = {key: first[key] for key in ("ratio", "low", "high", "drift", "noisy")}
    predicted = {"predicted_ratio": first["predicted"], "memory_ratio": first["memory"], "slowed": slowed}
    speed = _speed(name, case, timing, costs, peaks)
    return about | speed | ratios | predicted | {"memory": memory.get(name), "against": against}


def _ratio(name: str, rival: str, timing: Timing, slowed: float) -> dict[str, Any]:
    if not timing.seconds:
        return dict.fromkeys(("ratio", "low", "high", "drift", "noisy"))
    found = timing.ratio(name, rival)
    return {"ratio": found.value, "low": found.low, "high": found.high, "drift": found.drift,
            "noisy": found.noisy or slowed > SLOWED}  # fmt: skip


def _speed(name: str, case: Case, timing: Timing, costs: dict[str, Cost], peaks: Peaks) -> dict[str, Any]:
    if not timing.seconds:
        return dict.fromkeys((
            "rounds", "seconds", "quartiles", "flops", "bytes", "gflops_per_second", "gb_per_second", "bound",
            "share_of_peak", "tokens_per_second",
        ))  # fmt: skip
    seconds, cost = timing.median(name), costs[name]
    return {
        "rounds": len(timing.seconds[name]),
        "seconds": seconds,
        "quartiles": list(timing.quartiles(name)),
        "flops": cost.flops,
        "bytes": cost.bytes,
        "gflops_per_second": cost.flops / seconds / 1e9,
        "gb_per_second": cost.bytes / seconds / 1e9,
        "bound": cost.bound(peaks),
        "share_of_peak": cost.seconds(peaks) / seconds,
        "tokens_per_second": case.shape["T"] / seconds if "T" in case.shape else None,
    }
