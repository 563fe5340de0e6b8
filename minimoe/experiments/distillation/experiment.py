"""[evidence] The distillation experiment: one student trained by every method, on real text.

Run by ``minimoe distill``; ``student_quality`` measures the same runs with fewer methods.
"""

from collections.abc import Mapping
from typing import Any

from minimoe.cost import flops_per_token, parameters
from minimoe.distill.evaluation import StudentMetrics, generation_speeds, sample_texts, student_metrics
from minimoe.experiments.context import RunContext
from minimoe.experiments.curves import Curve, read_curve
from minimoe.experiments.distillation.jobs import DistillationRun
from minimoe.experiments.distillation.report import draw, tables
from minimoe.experiments.distillation.results import DistillationResults, flops
from minimoe.experiments.distillation.setup import ALONE, LONGER, SETUPS
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.models.gpt import GPT
from minimoe.reporting.statistics import Spread
from minimoe.tools.memory import weight_bytes
from minimoe.training.checkpoint import load_model


def read_results(
    context: RunContext, run: DistillationRun
) -> tuple[DistillationResults, dict[str, GPT], dict[str, GPT]]:
    """Train what is missing; return the results, and the last seed's students and teachers by name."""
    setup = run.setup
    curves: dict[str, list[Curve]] = {name: [] for name in run.methods}
    metrics: dict[str, list[StudentMetrics]] = {name: [] for name in run.methods}
    students: dict[str, GPT] = {}
    teachers: dict[str, GPT] = {}
    for name, jobs in run.train(context).items():
        for job in jobs:
            folder, teacher = context.job_folder(job), job.teacher().model
            curve = read_curve(folder / "records.jsonl", setup.student, setup.training)
            curve.spent["flops"] = flops(job.method, setup, teacher.config, curve.spent["steps"])
            curves[name].append(curve)
            students[name] = load_model(folder, context.device)
            teachers[job.method.teacher] = teacher
            metrics[name].append(student_metrics(students[name], teacher, context.corpus, setup.training))
    return DistillationResults(dict(run.methods), curves, metrics), students, teachers


def distillation(run: DistillationRun) -> Experiment:
    """The experiment of a setup and its methods."""

    def measure(context: RunContext) -> Measured:
        results, students, teachers = read_results(context, run)
        generators = {f"teacher, {name}": model for name, model in teachers.items()} | students
        generators.pop(LONGER, None)
        detail = results.as_dict() | {
            "steps": run.setup.training.steps,
            "models": _models(run, results, {"student": students[ALONE]} | teachers),
            "samples": sample_texts(generators, context.corpus),
        }
        values = {f"bits per byte, {name}": results.reached(name) for name in run.methods}
        for name in run.methods:
            values[f"gap closed by {name}, %"] = [100 * gap for gap in results.gap_closed(name)]
        size, steps = parameters(run.setup.student), run.setup.training.steps
        return Measured(
            values,
            detail,
            f"Students of {size:,} parameters, trained for {steps} steps by {len(run.methods)} methods with "
            f"{context.seeds} seeds. Students are read at their best evaluation; the gap is that between the "
            "student without a teacher and the dense teacher.",
        )

    reads_text = any(m.distill_config.data_source == "teacher" for m in run.methods.values())
    return Experiment(measure, draw, run.jobs, tables, figure_size=(12.9 if reads_text else 8.6, 4.6))


def _models(
    run: DistillationRun, results: DistillationResults, models: Mapping[str, GPT]
) -> list[dict[str, Any]]:
    """Sizes, costs and speeds, the student first. Training FLOPs are relative to those of the student without
    a teacher, and unknown (None) for a given teacher."""
    speeds = generation_speeds(dict(models))
    trained = {"student", *(job.label.removeprefix("teacher/") for job in run.teachers(seeds=1))}
    rows = []
    for name, model in models.items():
        config = model.config
        bits = results.reached(ALONE) if name == "student" else results.teacher_bits(name)
        training = flops_per_token(config) / flops_per_token(run.setup.student)
        rows.append(
            {
                "model": name,
                "parameters": parameters(config),
                "active": parameters(config, active=True),
                "megabytes": weight_bytes(model) / 1e6,
                "flops_per_token": flops_per_token(config, training=False),
                "tokens_per_second": speeds[name],
                "training": training if name in trained else None,
                "bits_per_byte": Spread.of(bits).as_dict(),
            }
        )
    return rows


DISTILLATION = distillation(DistillationRun(SETUPS["quick"], SETUPS["quick"].methods()))
