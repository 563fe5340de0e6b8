"""Claims about distillation: what a small model gains from a big one, and what from its words alone."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minimoe.cost import parameters
from minimoe.data.corpus import ALL
from minimoe.distill.evaluation import speeds
from minimoe.experiments.context import RunContext
from minimoe.experiments.distillation import jobs as teaching
from minimoe.experiments.distillation.experiment import ALONE
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.reporting.figures import BLUE, VERMILLION, draw_dots
from minimoe.training.checkpoint import load_model


def measure_small(context: RunContext) -> Measured:
    shares = {"ample": teaching.AMPLE, "scarce": teaching.scarce(context)}
    found = {name: teaching.teach_all(context, share) for name, share in shares.items()}
    experiment = found["scarce"][1]
    student = load_model(experiment.student_folder(0, "logits"), context.device)
    teacher = experiment.teachers(0)["dense"]
    speed = speeds({"student": student, "teacher": teacher})
    size = parameters(student.config) / parameters(teacher.config)
    values = {
        "size": [size],
        "speed": [speed["student"] / speed["teacher"]],
        **{
            f"closed, {name}": [100 * share for share in outcome.closed("logits")]
            for name, (outcome, _) in found.items()
        },
    }
    bars = {}
    for name, (outcome, _) in found.items():
        bars[name] = {"teacher": outcome.teacher("dense")}
        bars[name] |= {method: outcome.reached(method) for method in outcome.methods}
        values |= {f"bits per byte, {method}, {name}": reached for method, reached in bars[name].items()}
    how = experiment.setup.training
    return Measured(
        values,
        {"bars": bars},
        f"A teacher of {parameters(teacher.config):,} parameters and students of "
        f"{parameters(student.config):,}, {how.steps} steps each, {context.seeds} seeds: alone, on all "
        "logits, on the likeliest four, on the teacher's text alone; with as much text as the teacher, and "
        f"with {shares['scarce']:.0%} of it. Of the gap between the student alone and its "
        "teacher, the share that logits close; every student at its best evaluation.",
    )


def draw_small(figure: Figure, detail: dict[str, Any]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"ample": "all of the teacher's text", "scarce": "little of it"}
    for axes, (name, bars) in zip(panels, detail["bars"].items(), strict=True):
        draw_dots(axes, bars, rotation=40, ha="right")
        axes.set_title(titles[name], fontsize=10)
    panels[0].set_ylabel("validation bits per byte")


def measure_copying(context: RunContext) -> Measured:
    share = teaching.scarce(context)
    outcome, experiment = teaching.teach_all(context, share)
    texts = teaching.taught(context, share).text
    logits = outcome.closed("logits")
    amounts = [experiment.methods[name].lesson.teacher_tokens for name in texts]
    closed = {name: outcome.closed(name) for name in texts}
    agreement = {
        name: [100 * seen.agreement[ALL] for seen in outcome.likenesses[name]]
        for name in ("logits", ALONE, *texts)
    }
    return Measured(
        {
            "share": [100 * text / whole for text, whole in zip(closed[texts[-1]], logits, strict=True)],
            **{f"closed by {name}": [100 * c for c in values] for name, values in closed.items()},
            "closed by logits": [100 * c for c in logits],
            **{f"same choice, {name}": values for name, values in agreement.items()},
        },
        {"amounts": amounts, "closed": list(closed.values()), "logits": logits},
        f"Students that have never seen but their teacher's words, {amounts[0]:,} to {amounts[-1]:,} bytes "
        f"of them, beside one that sees all logits on {share:.0%} of the text; "
        f"{context.seeds} seeds. What the gap is: see small-from-big.",
    )


def draw_copying(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    closed = 100 * np.array(detail["closed"])
    axes.semilogx(detail["amounts"], closed.mean(1), "o-", color=VERMILLION, label="the teacher's text alone")
    axes.semilogx(detail["amounts"], closed, color=VERMILLION, linewidth=0.4)
    axes.axhline(100 * np.mean(detail["logits"]), color=BLUE, linestyle="--", label="logits on a little text")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="bytes asked of the teacher", ylabel="gap to the teacher closed, %")
    axes.legend()


STUDENT_QUALITY = Experiment(
    measure_small,
    draw_small,
    lambda w: [teaching.taught(w, teaching.AMPLE), teaching.taught(w, teaching.scarce(w))],
    seconds=(5, 20),
)


TEXT_ONLY_COPY = Experiment(
    measure_copying,
    draw_copying,
    lambda w: [teaching.taught(w, teaching.scarce(w))],
    seconds=(3, 10),
)
