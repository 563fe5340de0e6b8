"""Measurement takes turns; memory that was freed is kept."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from minimoe import timing
from minimoe.timing import interleaved_seconds


def test_tasks_take_turns_and_the_median_counts(monkeypatch):
    order, clock = [], iter([0.0, 0.0] + [t for s in (1, 50, 3) for t in (0.0, s, 0.0, 2 * s)])
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    tasks = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = interleaved_seconds(tasks, torch.device("cpu"), rounds=3, warmup=1)
    assert order == list("abababab")
    assert seconds == {"a": 3.0, "b": 6.0}  # the stall of 50 falls on nobody


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_kept_memory_is_not_faulted_in_again():
    program = """
import resource, sys, torch
from minimoe.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not glibc")
for i in range(24):
    if i == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(mode):
        done = subprocess.run([sys.executable, "-c", program, mode], capture_output=True, text=True)
        if "not glibc" in done.stderr:
            pytest.skip("not glibc")
        return int(done.stdout)

    # Twenty blocks: given back, each is faulted in anew; kept, the heap may still grow by one or two.
    assert faults("keep") < faults("give back") / 5
