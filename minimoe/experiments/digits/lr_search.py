"""[evidence] Learning rate search of the digits experiment: errors on a third of the *training* images."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from minimoe.experiments.context import RunContext
from minimoe.experiments.digits.networks import Images, draw_rows, load_images, train_teachers
from minimoe.experiments.digits.students import (
    FEW,
    LOSSES,
    RATES,
    STEPS,
    count_errors,
    shape_name,
    train_students,
)
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.reporting.statistics import Spread
from minimoe.reporting.tables import TextTable


def search(
    rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1), seeds: int = 4, splits: int = 3, steps: int = STEPS
) -> dict[tuple[tuple[int, ...], float, str], float]:
    """Mean errors of a student of FEW images plus one of the others, by hidden widths, rate and loss."""
    full, errors = load_images(), dict.fromkeys(itertools.product(RATES, rates, LOSSES), 0.0)
    for split in range(splits):
        order_N = torch.randperm(len(full.train_N), generator=torch.Generator().manual_seed(split))
        x_ND, labels_N, third = full.train_ND[order_N], full.train_N[order_N], len(order_N) // 3
        images = Images(x_ND[third:], labels_N[third:], x_ND[:third], labels_N[:third])
        teachers = train_teachers(images, seeds=seeds, seed=split)
        for n_images in (FEW, len(images.train_N)):
            rows_SN = draw_rows(teachers, n_images)
            for hidden, rate, loss in errors:
                _, logits_SNC = train_students(teachers, hidden, loss, rows_SN, steps, rate)
                mean = Spread.of(count_errors(logits_SNC, images.test_N)).mean
                errors[hidden, rate, loss] += mean / splits
    return errors


def measure(context: RunContext) -> Measured:
    errors: dict[str, dict[str, float]] = {}
    for (hidden, rate, loss), mean in search(seeds=context.seeds).items():
        errors.setdefault(f"{shape_name(hidden)}, {rate:g}", {})[loss] = mean
    values = {f"{row}, {loss}": [mean] for row, cells in errors.items() for loss, mean in cells.items()}
    about = (
        f"Mean errors on a third of the training images, of a student of {FEW} images plus one of the others."
    )
    return Measured(values, {"errors": errors, "about": about}, about)


def tables(detail: dict[str, Any]) -> list[TextTable]:
    rows = [[name, *(f"{mean:.1f}" for mean in cells.values())] for name, cells in detail["errors"].items()]
    return [TextTable("digits-rates", detail["about"], ["student, learning rate", *LOSSES], rows)]


DIGITS_LR_SEARCH = Experiment(measure, tables=tables)
