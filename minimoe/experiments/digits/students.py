"""[evidence] Students on handwritten digits: errors by loss and size, and digits that they never see.

Dimensions: S seeds, N images, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minimoe.experiments.digits.networks import (
    CLASSES,
    TEACHER,
    Teachers,
    draw_rows,
    predict,
    raise_bias,
    train_networks,
)

FEW = 100  # images, for students that see few

STEPS = 300

LOSSES: dict[str, tuple[float, float] | None] = {  # temperature and α
    "labels alone": None,
    "teacher, T = 1": (1.0, 0.0),
    "teacher, T = 2": (2.0, 0.0),
    "teacher, T = 4": (4.0, 0.0),
    "teacher, T = 8": (8.0, 0.0),
    "both, T = 4, α = ½": (4.0, 0.5),
}

ALONE = next(iter(LOSSES))

RATES = {  # by hidden widths, for each loss: the learning rate with the fewest errors in ``lr_search``
    TEACHER: (0.01, 0.01, 0.03, 0.03, 0.03, 0.03),
    (16,): (0.01, 0.01, 0.03, 0.03, 0.1, 0.03),
    (8,): (0.01, 0.01, 0.03, 0.03, 0.03, 0.03),
}

UNSEEN = {"no 3": (3,), "only 7 and 8": (0, 1, 2, 3, 4, 5, 6, 9)}  # digits that a student never sees

UNSEEN_LOSSES = (ALONE, "teacher, T = 1", "teacher, T = 8")


def train_students(
    teachers: Teachers, hidden: tuple[int, ...], loss: str, rows_SN: Tensor, steps: int = STEPS,
    rate: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Train one student per seed on these training images; return its logits as ``predict`` does.

    Students have odd seeds and teachers even ones: a student of the teacher's shape must not start from the
    teacher's initial weights.
    """
    images, seeds_S1 = teachers.images, torch.arange(len(rows_SN)).unsqueeze(1)
    rate = RATES[hidden][list(LOSSES).index(loss)] if rate is None else rate
    temperature, alpha = LOSSES[loss] or (1.0, 1.0)  # unused without a teacher
    networks = train_networks(
        hidden, images.train_ND[rows_SN], images.train_N[rows_SN], seed=2 * teachers.seed + 1, steps=steps,
        rate=rate, temperature=temperature, alpha=alpha,
        teacher_SNC=teachers.train_SNC[seeds_S1, rows_SN] if LOSSES[loss] else None,
    )  # fmt: skip
    return predict(networks, images)


def student_errors(
    teachers: Teachers, n_images: int, steps: int = STEPS
) -> dict[tuple[str, tuple[int, ...]], list[float]]:
    """Test errors per seed, by loss and hidden widths, of students that see ``n_images``."""
    rows_SN, labels_N = draw_rows(teachers, n_images), teachers.images.test_N
    return {
        (loss, hidden): count_errors(train_students(teachers, hidden, loss, rows_SN, steps)[1], labels_N)
        for hidden in RATES
        for loss in LOSSES
    }


def unseen_digits(
    teachers: Teachers, digits: Sequence[int], steps: int = STEPS
) -> dict[str, dict[str, list[float]]]:
    """Test errors, and recall of these digits in percent, per seed: of the teacher, and of students of its
    size that never see these digits, also with the digits' bias raised."""
    images = teachers.images
    rows_N = (~torch.isin(images.train_N, torch.tensor(digits))).nonzero().flatten()
    logits = {"the teacher": teachers.test_SNC}
    for loss in UNSEEN_LOSSES:
        rows_SN = rows_N.expand(len(teachers.train_SNC), -1)
        train_SNC, logits[loss] = train_students(teachers, TEACHER, loss, rows_SN, steps)
        raised_SNC = logits[loss].clone()
        raised_SNC[..., list(digits)] += raise_bias(train_SNC, digits, len(digits) / CLASSES).view(-1, 1, 1)
        logits[f"{loss}, bias raised"] = raised_SNC
    labels_N = images.test_N
    return {
        name: {"errors": count_errors(x_SNC, labels_N), "recall": recall(x_SNC, labels_N, digits)}
        for name, x_SNC in logits.items()
    }


def count_errors(logits_SNC: Tensor, labels_N: Tensor) -> list[float]:
    """How many of the N images each of the S networks misclassifies."""
    return (logits_SNC.argmax(-1) != labels_N).sum(-1).float().tolist()


def recall(logits_SNC: Tensor, labels_N: Tensor, digits: Sequence[int]) -> list[float]:
    """Percent of these digits' images that each of the S networks classifies correctly."""
    is_digit_N = torch.isin(labels_N, torch.tensor(digits, device=labels_N.device))
    return (100 * (logits_SNC.argmax(-1) == labels_N)[:, is_digit_N].float().mean(-1)).tolist()


def shape_name(hidden: tuple[int, ...]) -> str:
    return "+".join(map(str, hidden))
