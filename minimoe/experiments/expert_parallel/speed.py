"""[evidence] Speed of expert parallelism: training steps on 1, 2 and 4 processes of this machine."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from minimoe.data.corpus import load_corpus
from minimoe.distributed.data_expert_parallel import DataExpertParallel
from minimoe.distributed.spawn import run_processes
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured
from minimoe.experiments.presets import PRESETS
from minimoe.models.gpt import GPT
from minimoe.moe.expert_parallel.all_to_all import AllToAll
from minimoe.moe.expert_parallel.row_format import DispatchDtype
from minimoe.reporting.tables import TextTable
from minimoe.tools.allocator import keep_freed_memory
from minimoe.training.trainer import Trainer

# Processes, threads of each, dispatch dtype.
Case = tuple[int, int, DispatchDtype]
CASES: list[Case] = [(1, 1, "full"), (1, 2, "full"), (2, 1, "full"), (2, 1, "fp8"), (4, 1, "full")]

COLUMNS = {
    "processes": "{processes}",
    "threads each": "{threads}",
    "dispatch dtype": "{dispatch_dtype}",
    "ms per step": "{ms:.0f}",
    "of it waiting, ms": "{waiting:.0f}",
    "speedup": "{speedup:.2f}",
}


def time_steps(data: str, dispatch_dtype: DispatchDtype, threads: int, steps: int) -> tuple[float, float]:
    """In every process: median seconds of a training step of the quick preset's MoE model, whose batch the
    processes share, and of its waiting for rows and their gradients from other processes."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    preset, waited = PRESETS["quick"], [0.0]
    torch.manual_seed(0)
    strategy = DataExpertParallel(dist.get_world_size(), dispatch_dtype)
    network = strategy.wrap_model(GPT(preset.moe), preset.training.batch_size)
    trainer = Trainer(network, load_corpus(data), preset.training, strategy=strategy)
    AllToAll.receive = _timed(AllToAll.receive, waited)  # type: ignore[method-assign]
    times = []
    for _ in range(steps + 3):
        waited[0], begin = 0.0, time.perf_counter()
        trainer.train_step()
        times.append((time.perf_counter() - begin, waited[0]))
    seconds, waiting = zip(*times[3:], strict=True)
    return statistics.median(seconds), statistics.median(waiting)


def _timed(function: Callable[..., Any], total: list[float]) -> Callable[..., Any]:
    """The function, which then adds its seconds to ``total[0]``."""

    def run(*arguments: Any) -> Any:
        begin = time.perf_counter()
        result = function(*arguments)
        total[0] += time.perf_counter() - begin
        return result

    return run


def measure(context: RunContext) -> Measured:
    rounds, steps = context.pick((1, 3), (5, 12))
    # Cases take turns, so that a slow moment of the machine affects all; the slowest process counts.
    times: list[list[tuple[float, float]]] = [[] for _ in CASES]
    for _ in range(rounds):
        for (processes, threads, dtype), of_case in zip(CASES, times, strict=True):
            of_case.append(max(run_processes(time_steps, processes, context.data, dtype, threads, steps)))
    values, rows = {}, []
    for (processes, threads, dtype), of_case in zip(CASES, times, strict=True):
        seconds, waiting = zip(*of_case, strict=True)
        speedup = statistics.median(a / b for (a, _), b in zip(times[0], seconds, strict=True))
        values[f"{processes} × {threads}, {dtype}"] = [speedup]
        rows.append(
            {"processes": processes, "threads": threads, "dispatch_dtype": dtype, "speedup": speedup}
            | {"ms": 1e3 * statistics.median(seconds)}
            | {"waiting": 1e3 * statistics.median(waiting) if processes > 1 else 0.0}
        )
    return Measured(
        values,
        {"speed": rows},
        "Training steps of the quick preset's MoE model, its batch shared by the processes: speedup over "
        f"one process with one thread, by processes × threads and dispatch dtype; median of {rounds} rounds.",
    )


def tables(detail: Detail) -> list[TextTable]:
    """From ``Measured.detail``, or from docs/results/parallel.json."""
    about = "Training steps of the quick preset's MoE model, its batch shared by processes of one machine."
    return [TextTable.from_rows("speed", about, COLUMNS, detail["speed"])]


EXPERT_PARALLEL_SPEED = Experiment(measure, tables=tables, seconds=(60, 300))
