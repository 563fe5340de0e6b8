"""Claims about what makes a mixture work, the generalist and balance; and the mixture that all claims about
mixtures share, so that it is trained once.
"""

from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured
from minimoe.experiments.presets import PRESETS, Preset
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.reporting.figures import draw_dots
from minimoe.training.config import Balance, TrainConfig
from minimoe.training.trainer import Trainer

# The quick preset of minimoe compare, and one that is small enough for 3 seeds of everything in minutes.
SMALL = ModelConfig(dim=64, n_layers=2, n_heads=2, context=64, n_experts=16, top_k=4, expert_dim=32)

METHODS: tuple[Balance, ...] = ("none", "switch", "sequence", "bias")


def chosen(context: RunContext) -> Preset:
    """Models and training of this size of ledger."""
    quick = PRESETS["quick"]
    training = replace(quick.training, steps=context.pick(80, 300), warmup=context.pick(10, 30))
    # The bias can move as far in every run, however short.
    training = replace(training, eval_every=training.steps // 10, balance_speed=0.6 / training.steps)
    return replace(quick, moe=context.pick(SMALL, quick.moe), training=training)


def trainings(context: RunContext, config: ModelConfig, lr: float, **changes: Any) -> list[TrainingJob]:
    """One a seed."""
    how: TrainConfig = replace(chosen(context).training, lr=lr, **changes)
    return [TrainingJob(config, replace(how, seed=seed)) for seed in range(context.seeds)]


def mixture(context: RunContext, balance: Balance = "bias") -> list[TrainingJob]:
    preset = chosen(context)
    return trainings(context, preset.moe, preset.lr["moe"], balance=balance)


def alone(context: RunContext) -> list[TrainingJob]:
    """The mixture without its generalist: one more specialist a token instead, at equal active parameters."""
    preset = chosen(context)
    config = replace(preset.moe, n_shared=0, top_k=preset.moe.top_k + preset.moe.n_shared)
    return trainings(context, config, preset.lr["moe"])


def measure_generalist(context: RunContext) -> Measured:
    with_it, without = mixture(context), alone(context)
    context.train(wanted_by_generalist(context))
    both = [context.reached(t) for t in with_it]
    specialists = [context.reached(t) for t in without]
    off = [_switched_off(context, t) for t in with_it]
    config = chosen(context).moe
    return Measured(
        {
            "gain": [b - a for a, b in zip(both, specialists, strict=True)],
            "loss": [b - a for a, b in zip(both, off, strict=True)],
            "with": both,
            "without": specialists,
            "switched off": off,
        },
        {
            "with a generalist": both,
            "specialists alone": specialists,
            "generalist switched off\nafter training": off,
        },
        f"Mixtures of {config.n_experts} experts with one shared and {config.top_k} routed a token, and "
        f"with none shared and {config.top_k + 1} routed, trained alike with {context.seeds} seeds. Then "
        "the shared expert of the trained ones is switched off and one more routed expert is asked "
        "instead, as DeepSeekMoE did (section 4.5; there the loss rose from 1.808 to 2.414).",
    )


def _switched_off(context: RunContext, training: TrainingJob) -> float:
    """Bits per byte without the shared expert, with one more routed expert a token."""
    trained = context.model(training)
    config = replace(training.model, n_shared=0, top_k=training.model.top_k + training.model.n_shared)
    model = GPT(config)
    kept = {name: t for name, t in trained.state_dict().items() if ".shared_experts." not in name}
    model.load_state_dict(kept)
    trainer = Trainer(model, context.corpus, replace(training.how, average=0.0), context.device)
    return trainer.evaluate().bits_per_byte


def draw_generalist(figure: Figure, detail: dict[str, list[float]]) -> None:
    axes = figure.subplots()
    draw_dots(axes, detail)
    axes.set(ylabel="validation bits per byte", xlim=(-0.5, len(detail) - 0.5))


def balances(context: RunContext) -> dict[str, list[TrainingJob]]:
    return {method: mixture(context, method) for method in METHODS}


def measure_struggle(context: RunContext) -> Measured:
    runs = balances(context)
    context.train(wanted_by_struggle(context))
    last = {name: [context.records(t, "evaluation")[-1] for t in found] for name, found in runs.items()}
    violation = {name: [line["max_violation"] for line in lines] for name, lines in last.items()}
    bits = {name: [line["bits_per_byte"] for line in lines] for name, lines in last.items()}
    mended = [max(violation[n][s] for n in METHODS if n != "none") for s in range(context.seeds)]
    values = {
        "uneven": violation["none"],
        "mended": [m / n for m, n in zip(mended, violation["none"], strict=True)],
        "worse": [none - bias for none, bias in zip(bits["none"], bits["bias"], strict=True)],
        "dead experts without balance": [float(line["dead"]) for line in last["none"]],
    }
    values |= {f"MaxVio, {name}": violation[name] for name in METHODS}
    values |= {f"bits per byte, {name}": bits[name] for name in METHODS}
    config = chosen(context).moe
    return Measured(
        values,
        {"violation": violation, "bits": bits},
        f"The mixture of {config.n_experts} experts trained without any balance, with Switch's loss, with "
        f"V3's sequence-wise loss and with its bias, {context.seeds} seeds. MaxVio is the busiest expert's "
        "load above the mean, over the mean, on validation text, averaged over layers.",
    )


def draw_struggle(figure: Figure, detail: dict[str, Any]) -> None:
    panels = figure.subplots(1, 2)
    words = {"violation": "MaxVio (0: all alike)", "bits": "validation bits per byte"}
    for axes, (key, label) in zip(panels, words.items(), strict=True):
        draw_dots(axes, detail[key])
        axes.set_ylabel(label)
    panels[0].set_ylim(bottom=0)


def wanted_by_struggle(context: RunContext) -> list[TrainingJob]:
    return [training for found in balances(context).values() for training in found]


def wanted_by_generalist(context: RunContext) -> list[TrainingJob]:
    return [*mixture(context), *alone(context)]


SHARED_EXPERT = Experiment(
    measure_generalist,
    draw_generalist,
    wanted_by_generalist,
    seconds=(2, 5),
)


LOAD_BALANCE = Experiment(
    measure_struggle,
    draw_struggle,
    wanted_by_struggle,
    seconds=(1, 1),
)
