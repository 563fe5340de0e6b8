"""[evidence] Load balance: MaxVio, entropy and loss of an MoE model trained with each balancing method.

All methods of a seed have the same initial weights and the same batches. Losses have the weights of
``training.config.BALANCE_WEIGHTS`` and the bias its default speed; nothing was searched.
"""

import statistics
from typing import Any, get_args

from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured
from minimoe.experiments.moe_jobs import choose_preset, moe_jobs
from minimoe.reporting.figures import draw_dots
from minimoe.reporting.statistics import describe_seeds, format_spread
from minimoe.reporting.tables import TextTable
from minimoe.training.config import Balance

COLUMNS = {  # key of a run's figures: heading and format
    "bits_per_byte": ("bits per byte", ".3f"),
    "max_violation": ("MaxVio", ".2f"),
    "batch_max_violation": ("MaxVio in a batch", ".2f"),
    "entropy": ("entropy of the loads", ".3f"),
    "dead": ("dead experts", ".1f"),
}

Runs = dict[str, dict[str, list[float]]]  # method, key of COLUMNS, one value per seed

# The methods that sizes quick and full compare; the claim `struggled` is about them. Size long compares all.
CLAIMED: tuple[Balance, ...] = ("none", "switch", "sequence", "bias")


def all_jobs(context: RunContext) -> list[TrainingJob]:
    methods = get_args(Balance) if context.size == "long" else CLAIMED
    return [job for method in methods for job in moe_jobs(context, method)]


def measure(context: RunContext) -> Measured:
    runs: Runs = {}
    for jobs in context.train(all_jobs(context)).values():
        figures = [_figures(context, job) for job in jobs]
        runs[jobs[0].training.balance] = {key: [run[key] for run in figures] for key in COLUMNS}
    preset = choose_preset(context)
    config = preset.moe
    n_experts = config.n_experts * (config.n_layers - config.first_dense)
    return Measured(
        values(runs),
        {"steps": preset.training.steps, "experts": n_experts, "runs": runs},
        f"An MoE model of {config.n_experts} experts per layer, trained with each balancing method "
        f"({', '.join(runs)}), {context.seeds} seeds. MaxVio is the load of the busiest expert relative to "
        "the mean load, minus 1, over the validation text, averaged over layers.",
    )


def _figures(context: RunContext, job: TrainingJob) -> dict[str, float]:
    """Loss and loads over the validation text, and MaxVio within the last 100 training batches."""
    last = context.records(job, "evaluation")[-1]
    batches = [step["max_violation"] for step in context.records(job, "step")[-100:]]
    return last | {"batch_max_violation": statistics.fmean(batches)}


def values(runs: Runs) -> dict[str, list[float]]:
    """The figures that bounds name, and loss and MaxVio by method."""
    violations = {method: run["max_violation"] for method, run in runs.items()}
    balanced = [violation for method, violation in violations.items() if method != "none"]
    worst = [max(of_seed) for of_seed in zip(*balanced, strict=True)]
    bits = {method: run["bits_per_byte"] for method, run in runs.items()}
    return {
        "uneven": violations["none"],
        "mended": [w / none for w, none in zip(worst, violations["none"], strict=True)],
        "worse": [none - bias for none, bias in zip(bits["none"], bits["bias"], strict=True)],
        "dead experts without balancing": [float(dead) for dead in runs["none"]["dead"]],
        **{f"MaxVio, {method}": violation for method, violation in violations.items()},
        **{f"bits per byte, {method}": values for method, values in bits.items()},
    }


def draw(figure: Figure, detail: dict[str, Any]) -> None:
    panels = figure.subplots(1, 2)
    labels = {"max_violation": "MaxVio (0: all loads equal)", "bits_per_byte": "validation bits per byte"}
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        draw_dots(axes, {method: run[key] for method, run in detail["runs"].items()})
        axes.set_ylabel(label)
    panels[0].set_ylim(bottom=0)


def tables(detail: dict[str, Any]) -> list[TextTable]:
    """One row per method."""
    rows = [
        [method, *(format_spread(run[key], spec) for key, (_, spec) in COLUMNS.items())]
        for method, run in detail["runs"].items()
    ]
    n_seeds = len(detail["runs"]["none"]["dead"])
    about = (
        f"After {detail['steps']} steps, {describe_seeds(n_seeds)}. Loads are over the validation text, "
        "MaxVio in a batch is the mean of the last 100 training batches, and dead experts are those of "
        f"{detail['experts']} that no token chose."
    )
    headings = ["balance", *(heading for heading, _ in COLUMNS.values())]
    return [TextTable("load-balance", about, headings, rows)]


LOAD_BALANCE = Experiment(measure, draw, all_jobs, tables, units={"mended": "x"})
