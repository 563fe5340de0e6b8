"""[evidence] How much of a large model's skill a student gains: from logits, the top 4, or text alone.

The students read as much text as their teacher, or so little that they soon overfit. The runs are those of
``minimoe distill``, with fewer methods.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minimoe.cost import parameters
from minimoe.data.corpus import ALL
from minimoe.distill.evaluation import generation_speeds
from minimoe.experiments.context import RunContext
from minimoe.experiments.distillation.experiment import read_results
from minimoe.experiments.distillation.jobs import DistillationRun
from minimoe.experiments.distillation.setup import ALONE, SETUPS, Setup
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.models.config import ModelConfig
from minimoe.reporting.figures import BLUE, VERMILLION, draw_dots

AMPLE = 1.0  # fraction of the training text that the students read
SCARCE = {"quick": 0.01, "full": 0.05, "long": 0.05}

SMALL_TEACHER = ModelConfig(dim=96, n_layers=4, n_heads=3, context=64, hidden_dim=256)
SMALL_STUDENT = ModelConfig(dim=48, n_layers=2, n_heads=2, context=64, hidden_dim=128)


def claim_setup(context: RunContext, data_fraction: float) -> Setup:
    setup = replace(SETUPS["quick"], data_fraction=data_fraction)
    if context.quick:
        training = replace(setup.training, steps=100, warmup=10, eval_every=25, eval_sequences=16)
        setup = replace(setup, teacher=SMALL_TEACHER, student=SMALL_STUDENT)
        return replace(setup, training=training, teacher_tokens=45_000)
    return replace(setup, training=replace(setup.training, steps=250), teacher_tokens=200_000)


def student_run(context: RunContext, data_fraction: float) -> DistillationRun:
    """Students without a teacher, on logits and on the top 4; with little text also on teacher text alone."""
    setup = claim_setup(context, data_fraction)
    methods = setup.methods()
    texts = [name for name in methods if name.startswith("text ")] if data_fraction < AMPLE else []
    return DistillationRun(setup, {name: methods[name] for name in (ALONE, "logits", "top-4", *texts[1:])})


def runs(context: RunContext) -> dict[str, DistillationRun]:
    fractions = {"ample": AMPLE, "scarce": SCARCE[context.size]}
    return {name: student_run(context, fraction) for name, fraction in fractions.items()}


def measure_quality(context: RunContext) -> Measured:
    values: dict[str, list[float]] = {}
    bars: dict[str, dict[str, list[float]]] = {}
    for name, run in runs(context).items():
        results, students, teachers = read_results(context, run)
        values[f"closed, {name}"] = [100 * gap for gap in results.gap_closed("logits")]
        bars[name] = {"teacher": results.teacher_bits("dense")}
        bars[name] |= {method: results.reached(method) for method in run.methods}
        values |= {f"bits per byte, {method}, {name}": bits for method, bits in bars[name].items()}
    student, teacher = students["logits"], teachers["dense"]
    speeds = generation_speeds({"student": student, "teacher": teacher})
    values["size"] = [parameters(student.config) / parameters(teacher.config)]
    values["speed"] = [speeds["student"] / speeds["teacher"]]
    return Measured(
        values,
        {"bars": bars},
        f"A teacher of {parameters(teacher.config):,} parameters and students of "
        f"{parameters(student.config):,}, {run.setup.training.steps} steps each, {context.seeds} seeds: "
        "without a teacher, on all logits, on the top 4, on teacher text alone; with as much text as the "
        f"teacher, and with {run.setup.data_fraction:.0%} of it. The gap is that between the student without "
        "a teacher and the teacher; every student is read at its best evaluation.",
    )


def draw_quality(figure: Figure, detail: dict[str, Any]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"ample": "all of the teacher's text", "scarce": "little of it"}
    for axes, (name, bars) in zip(panels, detail["bars"].items(), strict=True):
        draw_dots(axes, bars, rotation=40, ha="right")
        axes.set_title(titles[name], fontsize=10)
    panels[0].set_ylabel("validation bits per byte")


def measure_text_only(context: RunContext) -> Measured:
    run = runs(context)["scarce"]
    results, *_ = read_results(context, run)
    texts = [name for name in run.methods if name.startswith("text ")]
    amounts = [run.methods[name].distill_config.teacher_tokens for name in texts]
    logits, closed = results.gap_closed("logits"), {name: results.gap_closed(name) for name in texts}
    agreement = {
        name: [100 * metrics.agreement[ALL] for metrics in results.metrics[name]]
        for name in ("logits", ALONE, *texts)
    }
    return Measured(
        {
            "share": [100 * text / whole for text, whole in zip(closed[texts[-1]], logits, strict=True)],
            **{f"closed by {name}": [100 * gap for gap in gaps] for name, gaps in closed.items()},
            "closed by logits": [100 * gap for gap in logits],
            **{f"same choice, {name}": values for name, values in agreement.items()},
        },
        {"amounts": amounts, "closed": list(closed.values()), "logits": logits},
        f"Students trained on teacher text alone, {amounts[0]:,} to {amounts[-1]:,} bytes of it, and one "
        f"trained on all logits with {run.setup.data_fraction:.0%} of the teacher's training text; "
        f"{context.seeds} seeds. The gap is that of small-from-big.",
    )


def draw_text_only(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    closed = 100 * np.array(detail["closed"])
    axes.semilogx(detail["amounts"], closed.mean(1), "o-", color=VERMILLION, label="teacher text alone")
    axes.semilogx(detail["amounts"], closed, color=VERMILLION, linewidth=0.4)
    logits = 100 * np.mean(detail["logits"])
    axes.axhline(logits, color=BLUE, linestyle="--", label="logits, with little text")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="bytes of teacher text", ylabel="gap to the teacher closed, %")
    axes.legend()


STUDENT_QUALITY = Experiment(
    measure_quality,
    draw_quality,
    lambda context: [job for run in runs(context).values() for job in run.jobs(context)],
    seconds=(5, 20),
    units={"closed, ample": " %", "closed, scarce": " %", "size": "x", "speed": "x"},
)

TEXT_ONLY_COPY = Experiment(
    measure_text_only,
    draw_text_only,
    lambda context: runs(context)["scarce"].jobs(context),
    seconds=(3, 10),
    units=dict.fromkeys(("share", "closed by logits", "same choice, logits", f"same choice, {ALONE}"), " %"),
)
