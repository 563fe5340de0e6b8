"""The main job: a mixture of experts against dense networks, trained on the same batches in turn.

Three models: the mixture with its shared expert, a dense network with the mixture's *active*
parameters (so with its arithmetic a token), and one with its *total* parameters (so with its memory).
All train at a constant rate after the warm-up and are evaluated with averaged weights, so that every
point of a curve is a fair place to stop; a cosine would favour whoever reaches its end.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from minimoe import results
from minimoe.cost import dense_width
from minimoe.data import Corpus
from minimoe.model import GPT, ModelConfig
from minimoe.progress import Display
from minimoe.train_config import TrainConfig
from minimoe.trainer import Trainer
from minimoe.training import train_in_turns

PresetName = Literal["quick", "standard", "gpu"]


@dataclass(frozen=True)
class Preset:
    """A size of comparison: the mixture's shape, and how all three train, each at a rate of its own.

    The rates are the best of a grid that was the same for all (``benchmarks/search.py``): of quick's whole
    run, of the first 250 steps of standard; those of gpu were not searched.
    """

    moe: ModelConfig
    training: TrainConfig
    lr: dict[str, float]

    def models(self) -> dict[str, ModelConfig]:
        """The three configurations by name."""
        return {
            "dense-active": replace(self.moe, n_experts=0, hidden_dim=dense_width(self.moe, active=True)),
            "dense-total": replace(self.moe, n_experts=0, hidden_dim=dense_width(self.moe, active=False)),
            "moe": self.moe,
        }


_FAIR = TrainConfig(schedule="constant", average=0.1)

PRESETS: dict[str, Preset] = {
    "quick": Preset(
        ModelConfig(dim=64, n_layers=3, n_heads=2, context=128, n_experts=32, top_k=4, expert_dim=32),
        replace(_FAIR, steps=600, warmup=30, eval_every=30, checkpoint_every=100),
        {"dense-active": 3e-3, "dense-total": 3e-3, "moe": 3e-3},
    ),
    "standard": Preset(
        ModelConfig(dim=192, n_layers=4, n_heads=3, context=128, n_experts=32, top_k=4, expert_dim=96),
        replace(_FAIR, steps=1500, warmup=50, eval_every=50, checkpoint_every=50),
        {"dense-active": 1e-3, "dense-total": 1e-3, "moe": 1e-3},
    ),
    "gpu": Preset(
        ModelConfig(dim=512, n_layers=8, n_heads=8, context=256, n_experts=64, top_k=6, expert_dim=256),
        replace(
            _FAIR,
            steps=3000,
            batch_size=64,
            warmup=100,
            eval_every=100,
            checkpoint_every=500,
            autocast="bf16",
        ),
        {"dense-active": 1e-3, "dense-total": 1e-3, "moe": 1e-3},
    ),
}


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
            results.read_curve(out / f"seed-{seed}" / name / "records.jsonl", config, preset.training)
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
