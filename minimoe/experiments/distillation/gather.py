"""Reading the experiment back from its folder: curves from records, likenesses from the last checkpoints."""

from typing import Any

from minimoe.cost import flops_per_token, parameters
from minimoe.distill.evaluation import StudentMetrics, samples, speeds, student_metrics
from minimoe.experiments.distillation.experiment import ALONE, LONGER, Experiment
from minimoe.experiments.distillation.results import Curve, DistillationResults, read_curve
from minimoe.models.gpt import GPT
from minimoe.reporting.statistics import Spread
from minimoe.tools.memory import bytes_held
from minimoe.training.checkpoint import load_model


def read_outcome(experiment: Experiment) -> tuple[DistillationResults, dict[str, GPT]]:
    """What the experiment amounts to, and the students of its last seed."""
    setup, methods = experiment.setup, experiment.methods
    curves: dict[str, list[Curve]] = {name: [] for name in methods}
    likenesses: dict[str, list[StudentMetrics]] = {name: [] for name in methods}
    students: dict[str, GPT] = {}
    for seed in range(experiment.seeds):
        teachers = experiment.teachers(seed)
        for name, method in methods.items():
            folder, master = experiment.student_folder(seed, name), teachers[method.teacher]
            curves[name].append(read_curve(folder / "records.jsonl", method, setup, master.config))
            students[name] = load_model(folder, experiment.device)
            likenesses[name].append(
                student_metrics(students[name], master, experiment.corpus, setup.training)
            )
    return DistillationResults(setup, methods, curves, likenesses), students


def gather(experiment: Experiment) -> dict[str, Any]:
    """All that the experiment found as plain data, for JSON, the terminal and the figure."""
    outcome, students = read_outcome(experiment)
    teachers = experiment.teachers(experiment.seeds - 1)
    writers = {f"teacher, {name}": model for name, model in teachers.items()} | students
    writers.pop(LONGER, None)
    return {
        "seeds": experiment.seeds,
        "steps": experiment.setup.training.steps,
        "models": _models(experiment, outcome, {"student": students[ALONE]} | teachers),
        "methods": outcome.rows(),
        "verdict": outcome.verdict(),
        "curves": {
            name: [
                {"steps": c.steps.tolist(), "flops": c.flops.tolist(), "bits": c.bits.tolist()} for c in found
            ]
            for name, found in outcome.curves.items()
        },
        "samples": samples(writers, experiment.corpus),
    }


def _models(
    experiment: Experiment, outcome: DistillationResults, models: dict[str, GPT]
) -> list[dict[str, Any]]:
    """Sizes, costs and speeds: the student first. Training is counted in trainings of the student alone, and
    unknown (None) of a model that was not trained here."""
    speed = speeds(models)
    once = flops_per_token(experiment.setup.student)
    trained = {"student", *experiment.taught}
    rows = []
    for name, model in models.items():
        config = model.config
        bits = outcome.reached(ALONE) if name == "student" else outcome.teacher(name)
        rows.append(
            {
                "model": name,
                "parameters": parameters(config),
                "active": parameters(config, active=True),
                "megabytes": bytes_held(model) / 1e6,
                "flops_per_token": flops_per_token(config, training=False),
                "tokens_per_second": speed[name],
                "training": flops_per_token(config) / once if name in trained else None,
                "bits_per_byte": Spread.of(bits).as_dict(),
            }
        )
    return rows
