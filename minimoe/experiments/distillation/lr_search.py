"""[evidence] Learning rate search of the distillation experiment: one grid, without a teacher and on logits.

With all of the text and with a twentieth of it; one seed, every student read at its best evaluation.
"""

from dataclasses import replace
from itertools import product
from typing import Any

from minimoe.experiments.context import RunContext
from minimoe.experiments.distillation.jobs import DistillationRun, DistillJob, TeacherPool
from minimoe.experiments.distillation.setup import ALONE, SETUPS
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import Job
from minimoe.experiments.lr_search import lr_table
from minimoe.experiments.measurement import Measured
from minimoe.reporting.tables import TextTable

SETUP = SETUPS["quick"]

RATES = (2e-3, 3e-3, 5e-3, 8e-3)

FRACTIONS = (1.0, 0.05)


def run_at(fraction: float, rate: float) -> DistillationRun:
    setup = replace(SETUP, data_fraction=fraction, training=replace(SETUP.training, lr=rate))
    return DistillationRun(setup, {name: setup.methods()[name] for name in (ALONE, "logits")})


def students(context: RunContext) -> dict[tuple[float, str, float], DistillJob]:
    """By fraction of the text, method and learning rate; all share one teacher."""
    pool, jobs = TeacherPool(context), {}
    for fraction, method, rate in product(FRACTIONS, (ALONE, "logits"), RATES):
        job = run_at(fraction, rate).student(method, 0, pool)
        jobs[fraction, method, rate] = replace(job, label=f"{job.label}-{fraction:g}-{rate:g}")
    return jobs


def jobs(context: RunContext) -> list[Job]:
    return [*run_at(FRACTIONS[0], RATES[0]).teachers(seeds=1), *students(context).values()]


def measure(context: RunContext) -> Measured:
    context.train(run_at(FRACTIONS[0], RATES[0]).teachers(seeds=1))
    by_setting = students(context)
    context.train(by_setting.values())
    runs: list[dict[str, Any]] = []
    for (fraction, method, rate), job in by_setting.items():
        best = min(record["bits_per_byte"] for record in context.records(job, "evaluation"))
        setting = {"model": method, "schedule": f"{fraction:.0%} of the text", "lr": rate}
        runs.append(setting | {"bits_per_byte": best})
    return Measured(
        {f"{run['model']}, {run['schedule']}, {run['lr']:g}": [run["bits_per_byte"]] for run in runs},
        {"steps": SETUP.training.steps, "runs": runs},
        f"Students at every learning rate: {SETUP.training.steps} steps, one seed.",
    )


def tables(detail: dict[str, Any]) -> list[TextTable]:
    about = "Validation bits per byte at the best evaluation, one seed; the best of a row in bold."
    return [lr_table("learning-rates", about, detail["runs"])]


DISTILLATION_LR_SEARCH = Experiment(measure, jobs=jobs, tables=tables)
