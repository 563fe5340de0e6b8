"""What distillation does on handwritten digits: the tables and the figure of ``minimoe digits``.

After Hinton, Vinyals and Dean (arXiv 1503.02531), section 3. Every figure is measured when its function runs;
a seed fixes the random numbers. Dimensions: S seeds, N images, C classes.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minimoe.experiments.digits.networks import (
    CLASSES,
    SIDE,
    TEACHER,
    Images,
    Teachers,
    ask,
    draw,
    load_images,
    raise_bias,
    train_networks,
    train_teachers,
)
from minimoe.reporting.figures import BLUE, PALE_GRAY, new_figure
from minimoe.reporting.statistics import describe_seeds, format_spread
from minimoe.reporting.tables import TextTable

FEW = 100  # images, where a student sees few

STEPS = 300  # of a student

LOSSES: dict[str, tuple[float, float] | None] = {  # temperature and α
    "labels alone": None,
    "teacher, T = 1": (1.0, 0.0),
    "teacher, T = 2": (2.0, 0.0),
    "teacher, T = 4": (4.0, 0.0),
    "teacher, T = 8": (8.0, 0.0),
    "both, T = 4, α = ½": (4.0, 0.5),
}

ALONE = next(iter(LOSSES))

RATES = {  # a student's hidden widths, and for each loss the rate with the fewest errors in ``search_rates``
    TEACHER: (0.01, 0.01, 0.03, 0.03, 0.03, 0.03),
    (16,): (0.01, 0.01, 0.03, 0.03, 0.1, 0.03),
    (8,): (0.01, 0.01, 0.03, 0.03, 0.03, 0.03),
}

UNSEEN = {"no 3": (3,), "only 7 and 8": (0, 1, 2, 3, 4, 5, 6, 9)}  # digits that the student never sees


def train_students(
    teachers: Teachers, hidden: tuple[int, ...], loss: str, rows_SN: Tensor, steps: int = STEPS,
    rate: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One student a seed, of these training images as they are; its logits as ``Teachers`` has them.

    The seed is odd, a teacher's even: a student of the same shape must not start as its teacher did.
    """
    images, seeds_S1 = teachers.images, torch.arange(len(rows_SN)).unsqueeze(1)
    rate = RATES[hidden][list(LOSSES).index(loss)] if rate is None else rate
    temperature, alpha = LOSSES[loss] or (1.0, 1.0)  # without a teacher neither is used
    networks = train_networks(
        hidden, images.train_ND[rows_SN], images.train_N[rows_SN], seed=2 * teachers.seed + 1, steps=steps,
        rate=rate, temperature=temperature, alpha=alpha,
        teacher_SNC=teachers.train_SNC[seeds_S1, rows_SN] if LOSSES[loss] else None,
    )  # fmt: skip
    return ask(networks, images)


def by_temperature(teachers: Teachers, n_images: int | None = FEW, steps: int = STEPS) -> TextTable:
    """Errors of students of three sizes, by what taught them; they see ``n_images``, None for all."""
    images = teachers.images
    rows_SN = draw(teachers, len(images.train_N) if n_images is None else n_images)
    own = format_spread(count_errors(teachers.test_SNC, images.test_N).tolist(), ".1f")
    rows = [["the teacher itself", own, *[""] * (len(RATES) - 1)], *([name] for name in LOSSES)]
    for hidden in RATES:
        errors = [
            count_errors(train_students(teachers, hidden, loss, rows_SN, steps)[1], images.test_N)
            for loss in LOSSES
        ]
        for row, errors_S in zip(rows[1:], errors, strict=True):
            fewer = int((errors_S < errors[0]).sum())
            row.append(format_spread(errors_S.tolist(), ".1f") + ("" if row[0] == ALONE else f" ({fewer})"))
    about = (
        f"Errors on {len(images.test_N)} test images, {describe_seeds(len(teachers.train_SNC))}, of students "
        f"that saw {rows_SN.shape[1]} images and teachers that saw {len(images.train_N)}. In brackets: for "
        "how many seeds the student made fewer errors than from labels alone."
    )
    return TextTable(f"digits-{rows_SN.shape[1]}", about, ["taught by", *map(_shape, RATES)], rows)


def unseen(teachers: Teachers, steps: int = STEPS) -> TextTable:
    """Students of the teacher's size that never see some digits, also with those digits' bias raised."""
    images, n_seeds = teachers.images, len(teachers.train_SNC)
    names = [name for name in LOSSES if name in (ALONE, "teacher, T = 1", "teacher, T = 8")]
    rows = [["the teacher itself"], *([name + more] for name in names for more in ("", ", bias raised"))]
    for digits in UNSEEN.values():
        kept_N = (~torch.isin(images.train_N, torch.tensor(digits))).nonzero().flatten()
        logits = [teachers.test_SNC]
        for name in names:
            train_SNC, test_SNC = train_students(teachers, TEACHER, name, kept_N.expand(n_seeds, -1), steps)
            bias_S = raise_bias(train_SNC, digits, len(digits) / CLASSES)
            raised_SNC = test_SNC.clone()
            raised_SNC[..., list(digits)] += bias_S.view(-1, 1, 1)
            logits += [test_SNC, raised_SNC]
        for row, logits_SNC in zip(rows, logits, strict=True):
            errors_S, recall_S = (
                count_errors(logits_SNC, images.test_N),
                recall(logits_SNC, images.test_N, digits),
            )
            row += [format_spread(values_S.tolist(), ".1f") for values_S in (errors_S, 100 * recall_S)]
    about = (
        f"Errors on {len(images.test_N)} test images, and recall: how many % of the unseen digits' are read "
        f"rightly; {describe_seeds(n_seeds)}; students of the teacher's size. Raised bias: until, of all "
        "training images, their labels hidden, as many are read as unseen digits as there should be, 1/10 "
        "each."
    )
    headings = [f"{name}: {what}" for name in UNSEEN for what in ("errors", "recall")]
    return TextTable("digits-unseen", about, ["taught by", *headings], rows)


def search_rates(
    rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1), seeds: int = 4, splits: int = 3, steps: int = STEPS
) -> TextTable:
    """How RATES were found: errors on a third of the *training* images. Minutes; not in the command."""
    full, errors = load_images(), dict.fromkeys(itertools.product(RATES, rates, LOSSES), 0.0)
    for split in range(splits):
        order_N = torch.randperm(len(full.train_N), generator=torch.Generator().manual_seed(split))
        x_ND, labels_N, third = full.train_ND[order_N], full.train_N[order_N], len(order_N) // 3
        images = Images(x_ND[third:], labels_N[third:], x_ND[:third], labels_N[:third])
        teachers = train_teachers(images, seeds=seeds, seed=split)
        for n_images in (FEW, len(images.train_N)):
            rows_SN = draw(teachers, n_images)
            for hidden, rate, loss in errors:
                _, logits_SNC = train_students(teachers, hidden, loss, rows_SN, steps, rate)
                wrong = count_errors(logits_SNC, images.test_N).mean().item()
                errors[hidden, rate, loss] += wrong / splits
    rows = [
        [f"{_shape(hidden)}, {rate:g}", *(f"{errors[hidden, rate, loss]:.1f}" for loss in LOSSES)]
        for hidden, rate in itertools.product(RATES, rates)
    ]
    about = f"Errors on a third of the training images, of a student of {FEW} plus one of all the others."
    return TextTable("digits-rates", about, ["student, rate", *LOSSES], rows)


def plot_dark_knowledge(teachers: Teachers, path: Path) -> None:
    """Four test images, and beside them what the first teacher says of each at T = 1 and at T = 4.

    Of each digit the image with the largest second probability at T = 4, where the teacher is right and sure.
    """
    images, logits_NC = teachers.images, teachers.test_SNC[0]
    sure_N = logits_NC.softmax(-1).gather(-1, images.test_N.unsqueeze(-1)).squeeze(-1) > 0.95
    second_N = (logits_NC / 4).softmax(-1).topk(2).values[:, 1].masked_fill(~sure_N, 0)
    likest = {int(images.test_N[i]): int(i) for i in second_N.argsort()}  # of each digit the last one stays
    chosen = sorted(likest, key=lambda digit: -float(second_N[likest[digit]]))[:4]
    with new_figure(path, 9, 6.8, dpi=110) as figure:
        panels = figure.subplots(len(chosen), 2, width_ratios=(1, 5), sharex="col")
        for digit, (picture, bars) in zip(sorted(chosen), panels, strict=True):
            i = likest[digit]
            picture.imshow(images.test_ND[i].view(SIDE, SIDE).numpy(), cmap="gray_r")
            picture.set(xticks=[], yticks=[], ylabel=f"labelled {digit}")
            for side, (T, color) in enumerate(((1, PALE_GRAY), (4, BLUE))):
                at = [digit + 0.4 * (side - 0.5) for digit in range(CLASSES)]
                heights = (logits_NC[i] / T).softmax(-1).tolist()
                bars.bar(at, heights, 0.4, label=f"T = {T}", color=color, edgecolor="black")
            bars.set(xticks=range(CLASSES), ylim=(0, 1), ylabel="probability")
            bars.grid(axis="y", alpha=0.25)
        panels[-1, 1].set_xlabel("digit")
        panels[0, 1].legend(loc="upper right")
        figure.suptitle("What the teacher says of four test images, as it is and softened")


def count_errors(logits_SNC: Tensor, labels_N: Tensor) -> Tensor:
    """(S,) float: how many of the N images each network takes for another digit."""
    return (logits_SNC.argmax(-1) != labels_N).sum(-1).float()


def recall(logits_SNC: Tensor, labels_N: Tensor, digits: Sequence[int]) -> Tensor:
    """(S,) the share of these digits' images, from 0 to 1, that each network takes for what they are."""
    wanted_N = torch.isin(labels_N, torch.tensor(digits, device=labels_N.device))
    return (logits_SNC.argmax(-1) == labels_N)[:, wanted_N].float().mean(-1)


def _shape(hidden: tuple[int, ...]) -> str:
    return "+".join(map(str, hidden))


TABLES: tuple[Callable[[Teachers], TextTable], ...] = (
    by_temperature, partial(by_temperature, n_images=None), unseen,
)  # fmt: skip
