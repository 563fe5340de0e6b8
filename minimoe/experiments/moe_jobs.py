"""[evidence] Training jobs of the MoE model that several experiments share, by size and balancing method."""

from dataclasses import replace
from typing import Any

from minimoe.experiments.context import RunContext
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.presets import PRESETS, Preset
from minimoe.models.config import ModelConfig
from minimoe.training.config import Balance

# Small enough that every claim trains with three seeds in minutes.
SMALL = ModelConfig(dim=64, n_layers=2, n_heads=2, context=64, n_experts=16, top_k=4, expert_dim=32)


def choose_preset(context: RunContext) -> Preset:
    """The context's preset, or that of its size."""
    quick = PRESETS["quick"]
    if context.preset is not None or context.size == "long":
        return context.preset or quick
    training = replace(quick.training, steps=context.pick(80, 300), warmup=context.pick(10, 30))
    # The bias can move equally far in a run of any length.
    training = replace(training, eval_every=training.steps // 10, balance_speed=0.6 / training.steps)
    return replace(quick, moe=context.pick(SMALL, quick.moe), training=training)


def jobs_per_seed(
    context: RunContext, label: str, model: ModelConfig, lr: float, **changes: Any
) -> list[TrainingJob]:
    """A model trained as the preset trains, with changes to the training configuration; one job per seed."""
    training = replace(choose_preset(context).training, lr=lr, **changes)
    return [TrainingJob(model, replace(training, seed=seed), label=label) for seed in range(context.seeds)]


def moe_jobs(context: RunContext, balance: Balance = "bias") -> list[TrainingJob]:
    """The preset's MoE model, one job per seed."""
    preset = choose_preset(context)
    label = "moe" if balance == "bias" else f"moe-{balance}"
    return jobs_per_seed(context, label, preset.moe, preset.lr["moe"], balance=balance)
