"""The main job: a mixture of experts against dense networks, trained on the same batches in turn.

Three models: the mixture with its shared expert, a dense network with the mixture's *active*
parameters (so with its arithmetic a token), and one with its *total* parameters (so with its memory).
All train at a constant rate after the warm-up and are evaluated with averaged weights, so that every
point of a curve is a fair place to stop; a cosine would favour whoever reaches its end.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from minimoe.data.corpus import Corpus
from minimoe.experiments.curves import read_curve
from minimoe.experiments.moe_vs_dense import results
from minimoe.experiments.presets import Preset
from minimoe.models.gpt import GPT
from minimoe.training.loop import train_in_turns
from minimoe.training.progress import Display
from minimoe.training.trainer import Trainer


def train_all(
    preset: Preset,
    corpus: Corpus,
    out: Path,
    *,
    seeds: int,
    device: str,
    resume: bool,
    display: Callable[[str], Display],
) -> None:
    """Train the three models for each seed below ``out``, recording as they go. A finished seed is
    passed over when resuming."""
    for seed in range(seeds):
        training = replace(preset.training, seed=seed)
        trainers = {}
        for name, config in preset.models().items():
            torch.manual_seed(seed)
            lr = preset.lr[name]
            trainers[name] = Trainer(GPT(config), corpus, replace(training, lr=lr), device)
        folders = {name: out / f"seed-{seed}" / name for name in trainers}
        title = f"seed {seed + 1} of {seeds}" if seeds > 1 else "training"
        train_in_turns(trainers, folders, resume=resume, display=display(title))


def read_results(preset: Preset, out: Path, seeds: int) -> results.Comparison:
    """The comparison that the records below ``out`` amount to."""
    curves = {
        name: [
            read_curve(out / f"seed-{seed}" / name / "records.jsonl", config, preset.training)
            for seed in range(seeds)
        ]
        for name, config in preset.models().items()
    }
    return results.Comparison(curves, preset.models())


def settings(preset: Preset, data: str, seeds: int, device: str) -> dict[str, object]:
    """What must be the same for a stopped comparison to go on."""
    return {
        "moe": asdict(preset.moe),
        "training": asdict(preset.training),
        "lr": preset.lr,
        "data": data,
        "seeds": seeds,
        "device": device,
    }
