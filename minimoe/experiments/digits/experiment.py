"""[evidence] Distillation on handwritten digits: few images, softened probabilities, and digits never seen.

After Hinton, Vinyals and Dean (arXiv 1503.02531), section 3. Run by ``minimoe digits``.
"""

from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.digits.networks import CLASSES, SIDE, TEACHER_STEPS, Teachers, train_teachers
from minimoe.experiments.digits.students import (
    ALONE,
    FEW,
    RATES,
    STEPS,
    UNSEEN,
    count_errors,
    shape_name,
    student_errors,
    unseen_digits,
)
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.reporting.figures import BLUE, PALE_GRAY
from minimoe.reporting.statistics import Spread, describe_seeds, format_spread
from minimoe.reporting.tables import TextTable

Cell = dict[str, Any]  # mean and deviation over seeds, and for how many seeds a teacher helped


def digits(seed: int = 0, teacher_steps: int = TEACHER_STEPS, steps: int = STEPS) -> Experiment:
    """The experiment with this random seed and these numbers of optimizer steps."""

    def measure(context: RunContext) -> Measured:
        teachers = train_teachers(seeds=context.seeds, seed=seed, steps=teacher_steps)
        n_train, n_test = len(teachers.images.train_N), len(teachers.images.test_N)
        teacher = count_errors(teachers.test_SNC, teachers.images.test_N)
        values = {"errors of the teacher": teacher}
        students: dict[str, dict[str, list[Cell]]] = {}
        for n_images in (FEW, n_train):
            rows = students[str(n_images)] = {"the teacher": [Spread.of(teacher).as_dict()]}
            all_errors = student_errors(teachers, n_images, steps)
            for (loss, hidden), errors in all_errors.items():
                values[f"errors, {n_images} images, {shape_name(hidden)}, {loss}"] = errors
                cell: Cell = Spread.of(errors).as_dict()
                if loss != ALONE:
                    pairs = zip(errors, all_errors[ALONE, hidden], strict=True)
                    cell["helped"] = sum(ours < alone for ours, alone in pairs)
                rows.setdefault(loss, []).append(cell)
        unseen: dict[str, list[Cell]] = {}
        for case, missing in UNSEEN.items():
            for name, figures in unseen_digits(teachers, missing, steps).items():
                for figure, per_seed in figures.items():
                    values[f"{figure}, {case}, {name}"] = per_seed
                    unseen.setdefault(name, []).append(Spread.of(per_seed).as_dict())
        detail: dict[str, Any] = {"students": students, "unseen": unseen}
        detail |= {"seeds": context.seeds, "train_images": n_train, "test_images": n_test}
        detail["dark_knowledge"] = dark_knowledge(teachers)
        return Measured(values, detail, f"Errors on {n_test} test images, and recall in percent.")

    return Experiment(measure, draw, tables=tables, seconds=(60, 60), figure_size=(9, 6.8))


def tables(detail: dict[str, Any]) -> list[TextTable]:
    """Errors by loss and size of the student, for few and for all images; and for digits never seen."""
    images, seeds = f"{detail['test_images']} test images", describe_seeds(detail["seeds"])
    errors = [
        _table(
            f"digits-{n_images}",
            f"Errors on {images}, {seeds}, of students that saw {n_images} images and teachers that saw "
            f"{detail['train_images']}. In parentheses: with how many seeds the student made fewer errors "
            "than from labels alone.",
            map(shape_name, RATES),
            rows,
        )
        for n_images, rows in detail["students"].items()
    ]
    unseen = _table(
        "digits-unseen",
        f"Errors on {images}, and recall of the unseen digits in percent; {seeds}; students of the teacher's "
        "size. Bias raised: until as many training images, with their labels hidden, are classified as "
        "unseen digits as there should be, 1/10 per digit.",
        (f"{case}: {figure}" for case in UNSEEN for figure in ("errors", "recall")),
        detail["unseen"],
    )
    return [*errors, unseen]


def _table(name: str, about: str, headings: Iterable[str], rows: dict[str, list[Cell]]) -> TextTable:
    columns = ["trained on", *headings]
    text = []
    for row, cells in rows.items():
        shown = [format_spread(x, ".1f") + (f" ({x['helped']})" if "helped" in x else "") for x in cells]
        text.append([row, *shown, *[""] * (len(columns) - 1 - len(shown))])
    return TextTable(name, about, columns, text)


def dark_knowledge(teachers: Teachers) -> list[dict[str, Any]]:
    """Four test images with the first teacher's logits.

    Per digit the image with the largest second probability at T = 4 that the teacher classifies correctly
    with confidence; of these, the four with the largest.
    """
    images, logits_NC = teachers.images, teachers.test_SNC[0]
    confident_N = logits_NC.softmax(-1).gather(-1, images.test_N.unsqueeze(-1)).squeeze(-1) > 0.95
    second_N = (logits_NC / 4).softmax(-1).topk(2).values[:, 1].masked_fill(~confident_N, 0)
    best = {int(images.test_N[i]): int(i) for i in second_N.argsort()}  # per digit the last one remains
    chosen = sorted(best, key=lambda digit: -float(second_N[best[digit]]))[:4]
    return [
        {
            "digit": digit,
            "pixels": images.test_ND[best[digit]].tolist(),
            "probabilities": {str(T): (logits_NC[best[digit]] / T).softmax(-1).tolist() for T in (1, 4)},
        }
        for digit in sorted(chosen)
    ]


def draw(figure: Figure, detail: dict[str, Any]) -> None:
    """Four test images, and the teacher's probabilities for each at T = 1 and at T = 4."""
    rows = detail["dark_knowledge"]
    panels = figure.subplots(len(rows), 2, width_ratios=(1, 5), sharex="col")
    for row, (picture, bars) in zip(rows, panels, strict=True):
        pixels = [row["pixels"][SIDE * i : SIDE * (i + 1)] for i in range(SIDE)]
        picture.imshow(pixels, cmap="gray_r")
        picture.set(xticks=[], yticks=[], ylabel=f"labeled {row['digit']}")
        for i, (T, color) in enumerate((("1", PALE_GRAY), ("4", BLUE))):
            x = [digit + 0.4 * (i - 0.5) for digit in range(CLASSES)]
            heights = row["probabilities"][T]
            bars.bar(x, heights, 0.4, label=f"T = {T}", color=color, edgecolor="black")
        bars.set(xticks=range(CLASSES), ylim=(0, 1), ylabel="probability")
        bars.grid(axis="y", alpha=0.25)
    panels[-1, 1].set_xlabel("digit")
    panels[0, 1].legend(loc="upper right")
    figure.suptitle("The teacher's probabilities for four test images, plain and softened")


DIGITS = digits()
