"""[evidence] FP8 training: the same model, text and seeds trained in float32, bf16 and under 8-bit recipes.

The models' widths are multiples of 128, so that V3's tiles are full. All recipes of a seed start from the
same weights and take turns on the same batches, so their times are comparable. ``perturbed`` is float32 from
initial weights changed by one part in a million: the difference that chance alone makes.
"""

import statistics
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minimoe.cost import parameters
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured
from minimoe.experiments.presets import COMPARABLE
from minimoe.models.config import ModelConfig
from minimoe.reporting.figures import BLUE, GRAY, GREEN, SKY_BLUE, VERMILLION
from minimoe.reporting.statistics import describe_seeds, format_spread
from minimoe.reporting.tables import TextTable
from minimoe.training.config import TrainConfig

STYLES: dict[str, dict[str, Any]] = {
    "float32": {"color": "black", "linestyle": "-", "marker": "o"},
    "bf16": {"color": GRAY, "linestyle": "--", "marker": "x"},
    "perturbed": {"color": GRAY, "linestyle": "--", "marker": "x"},
    "deepseek-v3": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "deepseek-v3-pow2": {"color": SKY_BLUE, "linestyle": "--", "marker": "D"},
    "tensorwise": {"color": GREEN, "linestyle": ":", "marker": "^"},
    "naive": {"color": VERMILLION, "linestyle": ":", "marker": "v"},
}

DENSE = ModelConfig(dim=128, n_layers=2, n_heads=2, context=128, hidden_dim=384)
SMALL = replace(DENSE, n_layers=1, context=64)
MOE = replace(DENSE, n_layers=3, n_experts=16, top_k=2, expert_dim=128)

Curves = dict[str, dict[str, list[list[float]]]]  # model, recipe, seed, evaluation


@dataclass(frozen=True)
class Plan:
    """What is trained at one size."""

    models: dict[str, ModelConfig]
    recipes: tuple[str, ...]
    training: TrainConfig
    seeds: int


def plan(context: RunContext) -> Plan:
    training = replace(COMPARABLE, lr=2e-3, warmup=context.pick(10, 30), steps=context.pick(60, 200, 300))
    if context.size == "long":
        models = {"dense": replace(DENSE, n_layers=3), "moe": MOE}
        recipes = tuple(recipe for recipe in STYLES if recipe != "bf16")
        return Plan(models, recipes, replace(training, eval_every=50), context.seeds)
    # At least five seeds: V3's limit of 0.25 % is hardly more than the difference between seeds.
    return Plan(
        {"dense": context.pick(SMALL, DENSE)},
        ("float32", "bf16", "deepseek-v3", "naive"),
        replace(training, eval_every=training.steps // 10),
        max(context.seeds, 5),
    )


def jobs_by_recipe(context: RunContext) -> dict[str, dict[str, list[TrainingJob]]]:
    """Jobs by model and recipe, one per seed; bf16 is autocast, as in usual mixed-precision training."""
    sizes = plan(context)
    return {
        name: {recipe: _jobs(f"{name}-{recipe}", model, recipe, sizes) for recipe in sizes.recipes}
        for name, model in sizes.models.items()
    }


def _jobs(label: str, model: ModelConfig, recipe: str, sizes: Plan) -> list[TrainingJob]:
    full = recipe in ("float32", "bf16", "perturbed")
    model = replace(model, precision="full" if full else recipe)
    training = replace(sizes.training, autocast="bf16" if recipe == "bf16" else "off")
    perturbation = 1e-6 if recipe == "perturbed" else 0.0
    return [
        TrainingJob(model, replace(training, seed=seed), perturbation, label) for seed in range(sizes.seeds)
    ]


def all_jobs(context: RunContext) -> list[TrainingJob]:
    return [job for recipes in jobs_by_recipe(context).values() for jobs in recipes.values() for job in jobs]


def measure(context: RunContext) -> Measured:
    context.train(all_jobs(context))
    curves: Curves = {}
    step_ratios: dict[str, dict[str, list[float]]] = {}
    for name, recipes in jobs_by_recipe(context).items():
        curves[name] = {
            recipe: [[line["bits_per_byte"] for line in context.records(job, "evaluation")] for job in jobs]
            for recipe, jobs in recipes.items()
        }
        seconds = {
            recipe: [[line["seconds"] for line in context.records(job, "step")] for job in jobs]
            for recipe, jobs in recipes.items()
        }
        step_ratios[name] = {
            recipe: [_median_ratio(*pair) for pair in zip(seconds[recipe], seconds["float32"], strict=True)]
            for recipe in recipes
        }
    job = jobs_by_recipe(context)["dense"]["float32"][0]
    steps = [line["step"] for line in context.records(job, "evaluation")]
    sizes = plan(context)
    models = (f"{name} ({parameters(model):,} parameters)" for name, model in sizes.models.items())
    return Measured(
        values(curves),
        {"steps": steps, "curves": curves, "step_ratios": step_ratios},
        f"GPT, {' and '.join(models)}, trained for {job.training.steps} steps with {sizes.seeds} seeds under "
        f"each recipe: {', '.join(sizes.recipes)}. bf16 is autocast; deepseek-v3 is E4M3 in all three "
        "products with 1×128 and 128×128 scales; naive is E4M3 without scales. The gap is that of the "
        "validation loss at the end, relative to float32.",
    )


def _median_ratio(seconds: list[float], baseline: list[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(seconds, baseline, strict=True))


def gaps(curves: dict[str, list[list[float]]], recipe: str, baseline: str = "float32") -> list[float]:
    """Relative difference of the final validation loss, in percent, per seed."""
    pairs = zip(curves[recipe], curves[baseline], strict=True)
    return [100 * (curve[-1] / other[-1] - 1) for curve, other in pairs]


def values(curves: Curves) -> dict[str, list[float]]:
    """The figures that bounds name, of the dense model, and the final loss by recipe."""
    figures = {}
    for name, of_recipes in curves.items():
        prefix = "" if name == "dense" else f"{name}: "
        figures[f"{prefix}gap"] = gaps(of_recipes, "deepseek-v3")
        if "bf16" in of_recipes:
            figures[f"{prefix}gap to bf16"] = gaps(of_recipes, "deepseek-v3", "bf16")
        figures[f"{prefix}naive"] = gaps(of_recipes, "naive")
        for recipe, of_seeds in of_recipes.items():
            figures[f"{prefix}bits per byte, {recipe}"] = [curve[-1] for curve in of_seeds]
    return figures


def draw(figure: Figure, detail: dict[str, Any]) -> None:
    """Per model: validation loss against steps, and its gap to float32; thin lines are single seeds."""
    models = detail["curves"]
    figure.set_size_inches(9, 3.5 * len(models))
    panels = figure.subplots(len(models), 2, squeeze=False, sharex=True)
    for (name, curves), (left, right) in zip(models.items(), panels, strict=True):
        baseline = np.array(curves["float32"])
        for recipe, of_seeds in curves.items():
            style = STYLES[recipe] | {"markersize": 4}
            left.plot(detail["steps"], np.mean(of_seeds, axis=0), label=recipe, **style)
            if recipe not in ("float32", "naive"):
                gap = 100 * (np.array(of_seeds) / baseline - 1)
                right.plot(detail["steps"], gap.mean(0), **style)
                right.plot(detail["steps"], gap.T, color=style["color"], linewidth=0.4)
        right.axhline(0.25, color="black", linewidth=0.8, linestyle=":")
        right.axhline(0, color="black", linewidth=0.8)
        left.set_ylabel(f"{name}: validation bits per byte")
        right.set_ylabel("gap to float32, % (dotted: V3's 0.25 %)")
    for panel in panels[-1]:
        panel.set_xlabel("optimizer step")
    panels[0, 0].legend()


def tables(detail: dict[str, Any]) -> list[TextTable]:
    """One row per model and recipe."""
    rows = []
    for name, curves in detail["curves"].items():
        for recipe, of_seeds in curves.items():
            gap = "" if recipe == "float32" else format_spread(gaps(curves, recipe), "+.2f", " %")
            ratio = statistics.median(detail["step_ratios"][name][recipe])
            bits = format_spread([curve[-1] for curve in of_seeds], ".3f")
            rows.append([name, recipe, bits, gap, f"{ratio:.2f}x"])
    n_seeds = len(detail["curves"]["dense"]["float32"])
    about = (
        f"After {detail['steps'][-1]} steps, {describe_seeds(n_seeds)}. Step time is relative to float32, "
        "with the recipes training in turns."
    )
    headings = ["model", "recipe", "bits per byte", "gap to float32", "step time"]
    return [TextTable("fp8-training", about, headings, rows)]


FP8_TRAINING = Experiment(measure, draw, all_jobs, tables)
