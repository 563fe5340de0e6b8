"""The claim that 8 bits are accurate enough to train with: the same model, text and seeds under several
recipes, and under a naive one, to show what the care buys."""

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minimoe.cost import parameters
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured
from minimoe.models.config import ModelConfig
from minimoe.reporting.figures import BLUE, GRAY, VERMILLION
from minimoe.training.config import TrainConfig

# Widths of 128, so that V3's tiles are full.
SMALL = ModelConfig(dim=128, n_layers=1, n_heads=2, context=64, hidden_dim=384)

MODEL = replace(SMALL, n_layers=2, context=128)

RECIPES = ("float32", "bf16", "deepseek-v3", "naive")

STYLES = {
    "float32": {"color": "black", "linestyle": "-", "marker": "o"},
    "bf16": {"color": GRAY, "linestyle": "--", "marker": "x"},
    "deepseek-v3": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "naive": {"color": VERMILLION, "linestyle": ":", "marker": "v"},
}


def seeds(context: RunContext) -> int:
    """More than others need: V3's 0.25 % is hardly more than seeds differ by."""
    return max(context.seeds, 5)


def runs(context: RunContext) -> dict[str, list[TrainingJob]]:
    """By recipe, one a seed; bf16 is autocast, as it is commonly trained."""
    steps, model = context.pick((60, SMALL), (200, MODEL))
    how = TrainConfig(
        steps=steps,
        lr=2e-3,
        warmup=context.pick(10, 30),
        schedule="constant",
        average=0.1,
        eval_every=steps // 10,
    )
    found: dict[str, list[TrainingJob]] = {}
    for recipe in RECIPES:
        config = replace(model, precision=recipe if recipe in ("deepseek-v3", "naive") else "full")
        training = replace(how, autocast="bf16" if recipe == "bf16" else "off")
        found[recipe] = [TrainingJob(config, replace(training, seed=seed)) for seed in range(seeds(context))]
    return found


def measure(context: RunContext) -> Measured:
    found = runs(context)
    context.train(wanted(context))
    curves = {
        recipe: [[line["bits_per_byte"] for line in context.records(t, "evaluation")] for t in trainings]
        for recipe, trainings in found.items()
    }
    last = {recipe: [curve[-1] for curve in found] for recipe, found in curves.items()}

    def gap(recipe: str, to: str) -> list[float]:
        return [100 * (ours / theirs - 1) for ours, theirs in zip(last[recipe], last[to], strict=True)]

    training = found["float32"][0]
    steps = [line["step"] for line in context.records(training, "evaluation")]
    return Measured(
        {
            "gap": gap("deepseek-v3", "float32"),
            "gap to bf16": gap("deepseek-v3", "bf16"),
            "naive": gap("naive", "float32"),
            **{f"bits per byte, {recipe}": values for recipe, values in last.items()},
        },
        {"steps": steps, "curves": curves},
        f"A dense GPT of {parameters(training.model):,} parameters trained for {training.how.steps} steps "
        f"with {seeds(context)} seeds in float32, with bf16 matmuls, with V3's recipe (E4M3 in all three "
        "products, 1×128 and 128×128 scales) and with the same E4M3 without any scale. The gap is "
        "relative, of the validation loss at the end.",
    )


def wanted(context: RunContext) -> list[TrainingJob]:
    return [training for found in runs(context).values() for training in found]


def draw(figure: Figure, detail: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    full = np.array(detail["curves"]["float32"])
    for recipe, found in detail["curves"].items():
        left.plot(detail["steps"], np.mean(found, axis=0), label=recipe, markersize=4, **STYLES[recipe])
        if recipe in ("bf16", "deepseek-v3"):
            gap = 100 * (np.array(found) / full - 1)
            right.plot(detail["steps"], gap.mean(0), markersize=4, **STYLES[recipe])
            right.plot(detail["steps"], gap.T, color=STYLES[recipe]["color"], linewidth=0.4)
    right.axhline(0.25, color="black", linewidth=0.8, linestyle=":")
    right.axhline(0, color="black", linewidth=0.8)
    left.set(xlabel="optimizer step", ylabel="validation bits per byte")
    right.set(xlabel="optimizer step", ylabel="gap to float32, % (dotted: V3's 0.25 %)")
    left.legend()


FP8_TRAINING = Experiment(
    measure,
    draw,
    wanted,
    seconds=(1, 1),
)
