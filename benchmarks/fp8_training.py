"""Is 8 bits accurate enough to train with? A GPT on real text under several recipes, side by side.

    python benchmarks/fp8_training.py          # an hour on 2 CPU cores; killed, it goes on where it was

A dense model and a mixture whose widths are multiples of V3's blocks of 128. All recipes of a seed start
from the same weights and see the same batches, a step each in turn, so that their times are comparable.
``twin`` is float32 begun from weights a millionth off: what chance alone does to such a run. Prints the
table, and writes what it is made from to docs/results/fp8-training.json with the figure beside it.
"""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from rich.progress import track

from minimoe import GPT, ModelConfig, TrainConfig, load_corpus
from minimoe.reporting.figures import BLUE, GRAY, GREEN, SKY_BLUE, VERMILLION, new_figure
from minimoe.reporting.statistics import format_spread
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.training.trainer import Trainer

DOCS = Path(__file__).parent.parent / "docs" / "results"
MOE = ModelConfig(dim=128, n_layers=3, n_heads=2, context=128, n_experts=16, top_k=2, expert_dim=128)
MODELS = {"dense": replace(MOE, n_experts=0, hidden_dim=384), "moe": MOE}
RECIPES = ("full", "twin", "deepseek-v3", "deepseek-v3-pow2", "tensorwise", "naive")
TRAINING = TrainConfig(lr=2e-3, warmup=30, schedule="constant", average=0.1, eval_every=50)
STYLES = {
    "full": {"color": "black", "linestyle": "-", "marker": "o"},
    "twin": {"color": GRAY, "linestyle": "--", "marker": "x"},
    "deepseek-v3": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "deepseek-v3-pow2": {"color": SKY_BLUE, "linestyle": "--", "marker": "D"},
    "tensorwise": {"color": GREEN, "linestyle": ":", "marker": "^"},
    "naive": {"color": VERMILLION, "linestyle": "-", "marker": "v"},
}


def make(config: ModelConfig, recipe: str, corpus, training: TrainConfig) -> Trainer:
    """The same weights and batches for every recipe of a seed."""
    torch.manual_seed(training.seed)
    model = GPT(replace(config, precision="full" if recipe == "twin" else recipe))
    if recipe == "twin":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 1e-6 * torch.randn_like(parameter))
    return Trainer(model, corpus, training)


def train(config: ModelConfig, corpus, training: TrainConfig, title: str) -> dict[str, dict]:
    """Each recipe's validation curve, and its step's time as a ratio to float32's of the same turn."""
    trainers = {recipe: make(config, recipe, corpus, training) for recipe in RECIPES}
    curves: dict[str, list] = {recipe: [] for recipe in RECIPES}
    seconds: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    for step in track(range(1, training.steps + 1), title):
        for recipe, trainer in trainers.items():
            seconds[recipe].append(trainer.train_step().seconds)
            if step % training.eval_every == 0 or step == training.steps:
                curves[recipe].append([step, trainer.evaluate().bits_per_byte])
    return {
        recipe: {
            "curve": curves[recipe],
            "bits_per_byte": curves[recipe][-1][1],
            "step_ratio": statistics.median(
                mine / full for mine, full in zip(seconds[recipe], seconds["full"], strict=True)
            ),
        }
        for recipe in RECIPES
    }


def gaps(found: list[dict], model: str, recipe: str) -> list[float]:
    """The relative gap of the validation loss to float32's, in percent, seed by seed."""
    runs = [run["recipes"] for run in found if run["model"] == model]
    return [100 * (run[recipe]["bits_per_byte"] / run["full"]["bits_per_byte"] - 1) for run in runs]


def markdown(found: list[dict]) -> str:
    """A row a model and recipe: mean ± standard deviation over seeds."""
    lines = ["| model | recipe | bits per byte | gap to float32 | time of a step |", "|---|---|---|---|---|"]
    for model in dict.fromkeys(run["model"] for run in found):
        runs = [run["recipes"] for run in found if run["model"] == model]
        for recipe in RECIPES:
            loss = format_spread([run[recipe]["bits_per_byte"] for run in runs], ".3f")
            gap = "" if recipe == "full" else format_spread(gaps(found, model, recipe), "+.2f", " %")
            ratio = statistics.median(run[recipe]["step_ratio"] for run in runs)
            lines.append(f"| {model} | {recipe} | {loss} | {gap} | {ratio:.2f}x |")
    return "\n".join(lines)


def plot(found: list[dict], path: Path) -> None:
    """Validation loss against steps, and the gap to float32; mean over seeds, a thin line a seed."""
    models = list(dict.fromkeys(run["model"] for run in found))
    with new_figure(path, 5.5 * len(models), 7, dpi=110) as figure:
        panels = figure.subplots(2, len(models), sharex=True, sharey="row", squeeze=False)
        for column, model in enumerate(models):
            runs = [run["recipes"] for run in found if run["model"] == model]
            for recipe in RECIPES:
                steps = [step for step, _ in runs[0][recipe]["curve"]]
                losses = torch.tensor([[loss for _, loss in run[recipe]["curve"]] for run in runs])
                full = torch.tensor([[loss for _, loss in run["full"]["curve"]] for run in runs])
                style = STYLES[recipe] | {"markersize": 4, "linewidth": 1.5}
                panels[0, column].plot(steps, losses.mean(0), label=recipe, **style)
                if recipe not in ("full", "naive"):
                    gap = 100 * (losses / full - 1)
                    panels[1, column].plot(steps, gap.mean(0), **style)
                    panels[1, column].plot(steps, gap.T, color=style["color"], linewidth=0.5, alpha=0.5)
            panels[0, column].set_title(model)
            panels[1, column].axhline(0.25, color="black", linewidth=0.8, linestyle=":")
            panels[1, column].axhline(0, color="black", linewidth=0.8)
            panels[1, column].set_xlabel("optimizer step")
        panels[0, 0].set_ylabel("validation bits per byte")
        panels[1, 0].set_ylabel("gap to float32, %\n(dotted: V3's 0.25 %; naive is off the scale)")
        panels[0, 0].legend()


def main(seeds: int = 3, steps: int = 300, threads: int | None = None) -> None:
    """Train every recipe with every seed, then draw the table and the figure."""
    if seeds < 1 or steps < 1 or (threads is not None and threads < 1):
        raise ValueError(f"--seeds ({seeds}), --steps ({steps}) and --threads ({threads}) must be at least 1")
    keep_freed_memory()
    torch.set_num_threads(threads or torch.get_num_threads())
    corpus = load_corpus()
    path = DOCS / "fp8-training.json"
    about = {"steps": steps, "data": corpus.fingerprint, "recipes": list(RECIPES)}
    data = json.loads(path.read_text()) if path.exists() else {}
    if {key: data.get(key) for key in about} != about:
        data = about | {"machine": describe_machine("cpu"), "found": []}
    for seed in range(seeds):
        for model, config in MODELS.items():
            if any((run["seed"], run["model"]) == (seed, model) for run in data["found"]):
                continue  # from the run before this one
            training = replace(TRAINING, steps=steps, seed=seed)
            recipes = train(config, corpus, training, f"{model}, seed {seed + 1} of {seeds}")
            data["found"].append({"model": model, "seed": seed, "recipes": recipes})
            write_atomically(path, json.dumps(data, indent=1) + "\n")
    plot(data["found"], path.with_suffix(".png"))
    print(markdown(data["found"]))


if __name__ == "__main__":
    tyro.cli(main)
