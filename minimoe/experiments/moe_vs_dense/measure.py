"""The claim that a mixture is much more efficient than one network: against dense networks with as many
active parameters and with as many in all, at equal operations and at equal seconds.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from minimoe.cost import flops_per_token, parameters
from minimoe.experiments import load_balance as mixtures
from minimoe.experiments.context import RunContext
from minimoe.experiments.curves import AXES, Curve
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured
from minimoe.experiments.moe_vs_dense.results import Comparison
from minimoe.reporting.figures import STYLES
from minimoe.tools.timing import measure


def contestants(context: RunContext) -> dict[str, list[TrainingJob]]:
    preset = mixtures.chosen(context)
    models = preset.models()
    return {name: mixtures.trainings(context, models[name], preset.lr[name]) for name in models}


def measure_efficiency(context: RunContext) -> Measured:
    runs, preset = contestants(context), mixtures.chosen(context)
    context.train(wanted_by_efficiency(context))
    seconds = step_seconds(context, {name: found[0] for name, found in runs.items()})
    curves = {
        name: [_curve(context, training, seconds[name]) for training in found] for name, found in runs.items()
    }
    comparison = Comparison(curves, preset.models())
    pairs = [(rival, axis) for rival in ("dense-active", "dense-total") for axis in ("flops", "seconds")]
    values = {
        f"{rival}, {axis}": [
            theirs - ours
            for theirs, ours in zip(
                comparison.reached(rival, axis), comparison.reached("moe", axis), strict=True
            )
        ]
        for rival, axis in pairs
    }
    values |= {name: comparison.reached(name, "flops") for name in runs}
    values |= {f"{name}, ms a step": [1e3 * seconds[name]] for name in runs}
    config, how = preset.moe, preset.training
    return Measured(
        values,
        {
            "curves": {
                name: {
                    axis: np.mean([c.spent[axis] for c in found], axis=0).tolist()
                    for axis in ("flops", "seconds")
                }
                | {"bits": [c.bits_per_byte["all"].tolist() for c in found]}
                for name, found in curves.items()
            }
        },
        f"A mixture of {parameters(config):,} parameters ({config.n_experts} experts, {config.top_k} a "
        f"token, one shared), {parameters(config, active=True):,} of them active, and dense networks with "
        f"as many active and as many in all: {how.steps} steps on the same text, {context.seeds} seeds. "
        "Curves are read where the thriftiest had finished; seconds are a step's, timed in turns.",
    )


def step_seconds(context: RunContext, runs: dict[str, TrainingJob]) -> dict[str, float]:
    """A training step of each, in turns, so that all see the same machine."""
    trainers = {name: t.trainer(context.corpus, context.device) for name, t in runs.items()}
    tasks = {name: trainer.train_step for name, trainer in trainers.items()}
    timing = measure(tasks, torch.device(context.device), rounds=context.pick(9, 15))
    return {name: timing.median(name) for name in tasks}


def _curve(context: RunContext, training: TrainingJob, seconds: float) -> Curve:
    found = context.records(training, "evaluation")
    steps = np.array([line["step"] for line in found], dtype=float)
    tokens = steps * training.how.batch_size * training.model.context
    spent = dict(zip(AXES, (tokens, tokens * flops_per_token(training.model), steps * seconds), strict=True))
    return Curve(spent, {"all": np.array([line["bits_per_byte"] for line in found])}, None, 0.0)


def draw_efficiency(figure: Figure, detail: dict[str, Any]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    words = {"flops": "training FLOPs", "seconds": "training seconds on this machine"}
    for axes, (axis, label) in zip(panels, words.items(), strict=True):
        for name, curve in detail["curves"].items():
            axes.plot(curve[axis], np.mean(curve["bits"], axis=0), label=name, markersize=4, **STYLES[name])
            axes.plot(curve[axis], np.transpose(curve["bits"]), color=STYLES[name]["color"], linewidth=0.4)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("validation bits per byte")
    panels[0].legend()


def wanted_by_efficiency(context: RunContext) -> list[TrainingJob]:
    return [training for found in contestants(context).values() for training in found]


MOE_VS_DENSE = Experiment(
    measure_efficiency,
    draw_efficiency,
    wanted_by_efficiency,
    seconds=(3, 5),
    labels={f"{name}, ms a step": " ms" for name in STYLES},
)
