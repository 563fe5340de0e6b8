"""[evidence] FP8 training: the same model, text and seeds trained in float32, bf16 and under 8-bit recipes.

The models' widths are multiples of 128, so that V3's tiles are full. All recipes of a seed start from the
same weights and take turns on the same batches, so their times are comparable. ``perturbed`` is float32 from
initial weights changed by one part in a million: the difference that chance alone makes.
"""

import statistics
from dataclasses import replace
from itertools import product
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


def all_jobs(context: RunContext) -> list[TrainingJob]:
    """Labeled MODEL-RECIPE, one per seed; bf16 is autocast, as in usual mixed-precision training."""
    steps = context.pick(60, 200, 300)
    if context.size == "long":
        models = {"dense": replace(DENSE, n_layers=3), "moe": MOE}
        recipes = [recipe for recipe in STYLES if recipe != "bf16"]
        eval_every, seeds = 50, context.seeds
    else:
        models, recipes = {"dense": context.pick(SMALL, DENSE)}, ["float32", "bf16", "deepseek-v3", "naive"]
        # At least five seeds: V3's limit of 0.25 % is hardly more than the difference between seeds.
        eval_every, seeds = steps // 10, max(context.seeds, 5)
    training = replace(COMPARABLE, lr=2e-3, warmup=context.pick(10, 30), steps=steps, eval_every=eval_every)
    jobs = []
    for (name, model), recipe, seed in product(models.items(), recipes, range(seeds)):
        precision = "full" if recipe in ("float32", "bf16", "perturbed") else recipe
        config = replace(training, seed=seed, autocast="bf16" if recipe == "bf16" else "off")
        noise = 1e-6 if recipe == "perturbed" else 0.0
        jobs.append(TrainingJob(replace(model, precision=precision), config, noise, f"{name}-{recipe}"))
    return jobs


def measure(context: RunContext) -> Measured:
    curves: Curves = {}
    step_ratios: dict[str, dict[str, list[float]]] = {}
    models: dict[str, int] = {}
    for label, jobs in context.train(all_jobs(context)).items():
        name, _, recipe = label.partition("-")
        evaluations = [context.records(job, "evaluation") for job in jobs]
        bits = [[line["bits_per_byte"] for line in lines] for lines in evaluations]
        curves.setdefault(name, {})[recipe] = bits
        seconds = [[line["seconds"] for line in context.records(job, "step")] for job in jobs]
        if recipe == "float32":  # the first of a model
            baseline, models[name] = seconds, parameters(jobs[0].model)
        ratios = np.median(np.array(seconds) / np.array(baseline), axis=1)
        step_ratios.setdefault(name, {})[recipe] = ratios.tolist()
    steps = [line["step"] for line in evaluations[0]]
    described = " and ".join(f"{name} ({size:,} parameters)" for name, size in models.items())
    return Measured(
        values(curves),
        {"steps": steps, "curves": curves, "step_ratios": step_ratios},
        f"GPT, {described}, trained for {steps[-1]} steps with {len(evaluations)} seeds under each recipe: "
        f"{', '.join(curves['dense'])}. bf16 is autocast; deepseek-v3 is E4M3 in all three products with "
        "1×128 and 128×128 scales; naive is E4M3 without scales. The gap is that of the validation loss at "
        "the end, relative to float32.",
    )


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


UNITS = {f"{model}{gap}": " %" for model in ("", "moe: ") for gap in ("gap", "gap to bf16", "naive")}

FP8_TRAINING = Experiment(measure, draw, all_jobs, tables, units=UNITS)
