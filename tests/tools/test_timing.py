"""Timing in turns, ratios and their intervals, peaks; freed memory is kept."""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from minimoe.tools import timing
from minimoe.tools.timing import Peaks, Timing, interleaved_seconds, measure, median_interval, peaks

CPU = torch.device("cpu")


def test_tasks_take_turns_and_the_median_counts(monkeypatch):
    order, now = [], [0.0]

    def task(name, costs):
        def run():
            order.append(name)
            now[0] += next(costs)

        return run

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    tasks = {"a": task("a", iter((9, 1, 50, 3))), "b": task("b", iter((9, 2, 100, 6)))}
    seconds = interleaved_seconds(tasks, CPU, rounds=3, warmup=1)
    assert order == list("abbaabba")  # no task is always first
    assert seconds == {"a": 3.0, "b": 6.0}  # the stall of 50 affects neither median


def test_ratios_are_taken_within_rounds():
    """A machine that slows down fivefold for some rounds changes both times, but not their ratio."""
    timing = Timing({"a": [1.0, 5.0, 1.0, 3.0, 5.0, 2.0], "b": [2.0, 10.0, 2.0, 6.0, 10.0, 4.0]}, 1)
    ratio = timing.ratio("b", "a")
    assert (ratio.value, ratio.low, ratio.high, ratio.noisy) == (2.0, 2.0, 2.0, False)
    assert timing.ratio("a", "b").value == 0.5
    assert timing.quartiles("a") == (1.25, 4.5)
    assert timing.median("a") == 2.5


def test_a_ratio_that_drifts_is_noisy():
    """All rounds of each half agree and the interval over all rounds is narrow; only the drift shows that the
    machine changed in between."""
    early, late = Timing({"a": [1.0] * 8, "b": [2.0] * 8}, 1), Timing({"a": [1.0] * 8, "b": [2.25] * 8}, 1)
    assert not early.ratio("b", "a").noisy
    assert not late.ratio("b", "a").noisy
    both = early.then(late)
    assert both.seconds["b"] == [2.0] * 8 + [2.25] * 8
    ratio = both.ratio("b", "a")
    assert ratio.high - ratio.low < timing.NOISY * ratio.value
    assert (ratio.drift, ratio.noisy) == (0.125, True)
    assert late.then(early).ratio("b", "a").drift == pytest.approx(1 - 2 / 2.25)
    within = early.then(Timing({"a": [1.0] * 8, "b": [2.1] * 8}, 1)).ratio("b", "a")
    assert (within.drift, within.noisy) == (pytest.approx(0.05), False)


def test_only_timings_of_the_same_tasks_can_be_joined():
    one = Timing({"a": [1.0]}, 1)
    for other in (Timing({"b": [1.0]}, 1), Timing({"a": [1.0]}, 2)):
        with pytest.raises(ValueError, match="measure the same tasks twice"):
            one.then(other)


@pytest.mark.parametrize(("n", "rank"), [(5, 1), (6, 1), (8, 1), (9, 2), (15, 4), (20, 6), (25, 8)])
def test_the_median_s_interval_matches_published_tables(n, rank):
    """Ranks of the 95 % interval from tables of order statistics (the binomial of Conover's table A3). With 5
    values no interval reaches 95 %, and the whole range is used."""
    found = median_interval([float(i) for i in range(1, n + 1)][::-1])
    assert (found.low, found.high) == (rank, n + 1 - rank)
    assert found.value == (n + 1) / 2
    inside = sum(math.comb(n, k) for k in range(rank, n - rank + 1)) / 2**n
    assert inside >= 0.95 or n < 6


def test_the_interval_s_coverage():
    draws = torch.rand(2000, 15, generator=torch.Generator().manual_seed(0)).exp()
    found = [median_interval(row.tolist()) for row in draws]
    covered = sum(i.low <= math.exp(0.5) <= i.high for i in found) / len(found)
    assert 0.95 <= covered < 0.98  # 0.965 in theory


def test_a_ratio_with_a_wide_interval_is_noisy():
    assert median_interval([1.0, 1.3] * 8).noisy
    assert not median_interval([1.0, 1.1] * 8).noisy
    assert not median_interval([1.0] * 14 + [9.0]).noisy  # a single stall


def test_short_tasks_are_repeated_and_the_budget_is_kept(monkeypatch):
    now, calls = [0.0], {"short": 0, "long": 0}

    def task(name, seconds):
        def run():
            calls[name] += 1
            now[0] += seconds

        return run

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    tasks = {"short": task("short", 0.25), "long": task("long", 4.0)}
    found = measure(tasks, CPU, rounds=20, warmup=1, shortest=1.0, budget=30.0)
    assert found.seconds == {"short": [0.25] * 6, "long": [4.0] * 6}
    assert calls == {"short": 1 + 6 * 4, "long": 7}
    assert len(measure(tasks, CPU, rounds=2, budget=0.0).seconds["long"]) == 2


def test_no_tasks_or_rounds_are_refused():
    with pytest.raises(ValueError, match=r"tasks \(0\) and rounds \(15\)"):
        measure({}, CPU)
    with pytest.raises(ValueError, match=r"rounds \(0\)"):
        measure({"a": int}, CPU, rounds=0)


def test_peaks_are_measured_once_for_each_number_of_threads():
    found = peaks()
    assert peaks("cpu") is found
    assert found.threads == torch.get_num_threads()
    assert found.flops["float32"] > 1e8
    assert found.bandwidth > 1e8
    known = Peaks({"float32": 100.0, "bfloat16": 400.0}, 10.0, 1)
    assert known.seconds(flops=1000, bytes_moved=10) == 10.0  # compute-bound
    assert known.seconds(flops=1000, bytes_moved=500) == 50.0  # memory-bound
    assert known.seconds(1000, 10, "bfloat16") == 2.5


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_kept_memory_is_not_faulted_in_again():
    program = """
import resource, sys, torch
from minimoe.tools.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not glibc")
for i in range(32):
    if i == 12:  # the heap has grown as far as it will
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(mode):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program, mode], capture_output=True, text=True, env=environment
        )
        if "not glibc" in done.stderr:
            pytest.skip("not glibc")
        return int(done.stdout)

    # Twenty blocks: if returned, each is faulted in again; if kept, the heap may still grow by one or two.
    assert faults("keep") < faults("give back") / 5
