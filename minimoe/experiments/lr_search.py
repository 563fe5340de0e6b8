"""[evidence] Learning rate search behind the presets: every model has the same grid of rates, and one seed.

The schedules are that of the comparison (a constant rate, averaged weights) and the cosine it replaces.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured
from minimoe.experiments.presets import PRESETS, PresetName
from minimoe.reporting.tables import TextTable


@dataclass(frozen=True)
class Grid:
    """What is searched for one preset."""

    rates: tuple[float, ...]
    schedules: tuple[Literal["constant", "cosine"], ...]
    steps: int


GRIDS: dict[PresetName, Grid] = {
    "quick": Grid((2e-3, 3e-3, 4e-3, 6e-3), ("constant", "cosine"), PRESETS["quick"].training.steps),
    "standard": Grid((1e-3, 2e-3), ("constant",), 250),
}


def grid_jobs(preset: PresetName, context: RunContext) -> list[TrainingJob]:
    grid, models, training = GRIDS[preset], PRESETS[preset].models(), PRESETS[preset].training
    jobs = []
    for schedule, (name, model), rate in product(grid.schedules, models.items(), grid.rates):
        average = 0.0 if schedule == "cosine" else training.average
        config = replace(training, lr=rate, schedule=schedule, steps=grid.steps, average=average)
        jobs.append(TrainingJob(model, config, label=f"{name}-{schedule}-{rate:g}"))
    return jobs


def measure(preset: PresetName, context: RunContext) -> Measured:
    jobs = grid_jobs(preset, context)
    context.train(jobs)
    names = {model: name for name, model in PRESETS[preset].models().items()}
    runs: list[dict[str, Any]] = []
    for job in jobs:
        settings = {"model": names[job.model], "schedule": job.training.schedule, "lr": job.training.lr}
        runs.append(settings | {"bits_per_byte": context.final_bits(job)})
    return Measured(
        {f"{run['model']}, {run['schedule']}, {run['lr']:g}": [run["bits_per_byte"]] for run in runs},
        {"preset": preset, "steps": GRIDS[preset].steps, "runs": runs},
        f"Every model of the preset {preset} at every learning rate: {GRIDS[preset].steps} steps, one seed.",
    )


def tables(detail: dict[str, Any]) -> list[TextTable]:
    about = f"Validation bits per byte after {detail['steps']} steps, one seed; the best of a row in bold."
    return [lr_table("learning-rates", about, detail["runs"])]


def lr_table(name: str, about: str, runs: Iterable[dict[str, Any]]) -> TextTable:
    """A row per model and schedule, a column per learning rate; the best of each row in bold."""
    bits: dict[str, dict[float, float]] = {}
    for run in runs:
        bits.setdefault(f"{run['model']}, {run['schedule']}", {})[run["lr"]] = run["bits_per_byte"]
    rates = sorted({rate for row in bits.values() for rate in row})
    rows = []
    for heading, row in bits.items():
        best = min(row.values())
        cells = {rate: f"**{value:.3f}**" if value == best else f"{value:.3f}" for rate, value in row.items()}
        rows.append([heading, *(cells.get(rate, "") for rate in rates)])
    return TextTable(name, about, ["", *(f"lr {rate:g}" for rate in rates)], rows)


def search(preset: PresetName) -> Experiment:
    return Experiment(partial(measure, preset), jobs=partial(grid_jobs, preset), tables=tables)


LR_SEARCH, LR_SEARCH_STANDARD = search("quick"), search("standard")
