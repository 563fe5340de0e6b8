"""The comparisons of ``minimoe bench``, one per group, for pytest-benchmark's own tables and records.

    pytest benchmarks/test_comparisons.py --benchmark-enable --benchmark-only

Baseline and candidates are the tests of one group, whose name states the baseline. Results are compared, then
all tasks of the group are timed in turns; ``extra_info`` holds that record, with ratios within these rounds.
pytest-benchmark's own figures come from rounds in which a task runs alone. One thread.
"""

from functools import lru_cache

import pytest
import torch

from minimoe.bench import QUICK, BuiltCase, Case, Plan, cases
from minimoe.bench.measure import ONCE, Effort, case_records, time_built
from minimoe.tools.machine import describe_machine
from minimoe.tools.timing import Peaks, peaks

TINY = Plan(
    dim=32, expert_dim=16, n_experts=8, top_k=2, tokens=8, matmul=64, token_sweep=(1, 8), expert_sweep=(4, 8),
    crossover_experts=(8,), top_k_sweep=(1, 2), dim_sweep=(32,), dtypes=("float32",), batch=4, vocabulary=64,
)  # fmt: skip
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EFFORT = Effort(rounds=25, budget=2.0)


def selected(plan: Plan) -> dict[str, Case]:
    """The first case of each group: the one at the plan's size."""
    groups: dict[str, Case] = {}
    for case in cases(plan):
        groups.setdefault(f"{case.suite}: {case.group}", case)
    return groups


TASKS = [(name, task) for name, case in selected(QUICK).items() for task in case.tasks]


@lru_cache(maxsize=1)  # the tests of a case run consecutively
def measured(name: str, timed: bool) -> tuple[Case, BuiltCase, dict[str, dict]]:
    case = selected(QUICK if timed else TINY)[name]
    torch.manual_seed(0)
    built = case.build(case, DEVICE)
    built.check()
    measurement = time_built(case, built, DEVICE, EFFORT if timed else ONCE)
    machine = peaks(DEVICE) if timed else Peaks({"float32": 1e11, "bfloat16": 2e11}, 1e10, 1)
    return case, built, {r["task"]: r for r in case_records(case, DEVICE, [measurement], machine)}


@pytest.mark.parametrize(("name", "task"), TASKS)
@pytest.mark.usefixtures("kept_memory", "one_thread")
def test_bench(benchmark, rounds, name, task):
    case, built, records = measured(name, rounds > 1)
    record = records[task]
    shape = " ".join(f"{letter}={size}" for letter, size in case.shape.items())
    benchmark.group = f"{name}, against {case.baseline}, {shape}, {case.dtype}, threads: {record['threads']}"
    benchmark.extra_info.update(record | {"machine": describe_machine(DEVICE)})
    assert set(records) == set(case.tasks)
    run = built.tasks.get(task, built.memory)  # weights have no task to time, so count their bytes
    repeats = 1 if rounds == 1 else max(1, round(1e-3 / (record["seconds"] or 1)))
    benchmark.pedantic(run, rounds=rounds, iterations=repeats, warmup_rounds=min(1, rounds - 1))
