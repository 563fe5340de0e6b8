"""The claim about the bill: published hours and dollars against operations counted here."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from minimoe.cost import PUBLISHED, PUBLISHED_RUNS, count, training_flops
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.reporting.figures import BLUE, LIGHT_GRAY


def measure_bill(context: RunContext) -> Measured:
    """Published hours against operations counted here."""
    names = ("deepseek-v3", "llama-3.1-405b")
    runs = {name: PUBLISHED_RUNS[name] for name in names}
    v3, llama = (runs[name] for name in names)
    flops = {name: training_flops(PUBLISHED[name]) * run.tokens for name, run in runs.items()}
    reached = {name: run.utilisation(PUBLISHED[name]) for name, run in runs.items()}
    found = count(PUBLISHED["deepseek-v3"])
    return Measured(
        {
            "total": [abs(found.total / 1e9 - 671)],
            "active": [abs((found.active - found.embedding) / 1e9 - 37)],
            "utilisation": [100 * reached["deepseek-v3"]],
            "dollars": [abs(v3.dollars / 1e6 - 5.6)],
            "fewer hours": [llama.total_hours / v3.total_hours],
            "fewer operations": [flops["llama-3.1-405b"] / flops["deepseek-v3"]],
            "cards": [llama.cards / v3.cards],
            "parameters": [found.total / 1e9],
            "that work on a token": [(found.active - found.embedding) / 1e9],
            "cost": [v3.dollars / 1e6],
            "days": [v3.days],
            "utilisation of Llama": [100 * reached["llama-3.1-405b"]],
        },
        {
            "hours": {name: run.total_hours for name, run in runs.items()},
            "flops": flops,
            "dollars": {name: run.dollars for name, run in runs.items()},
        },
        f"Parameters and operations counted from the published configurations; {v3.tokens:.3g} tokens in "
        f"{v3.total_hours / 1e6:.3f} million hours on {v3.cards:,} {v3.accelerator.upper()} cards at "
        f"${v3.price:g} an hour; beside it Llama 3.1 405B, {llama.tokens:.3g} tokens in "
        f"{llama.total_hours / 1e6:.2f} million hours on up to {llama.cards:,} cards. The share of the peak "
        "is what the hours of pre-training imply; nothing of it was run here. Research, failed runs, data "
        "and people are in no such bill.",
    )


def draw_bill(figure: Figure, detail: dict[str, Any]) -> None:
    panels = figure.subplots(1, 3)
    titles = (("hours", "card hours"), ("flops", "operations"), ("dollars", "dollars, at the price assumed"))
    for axes, (key, title) in zip(panels, titles, strict=True):
        bars = axes.bar(["V3", "Llama 3.1\n405B"], list(detail[key].values()), color=[BLUE, LIGHT_GRAY])
        axes.set_title(title, fontsize=10)
        text = "%.2g" if key == "flops" else EngFormatter(places=2, sep=" ")
        axes.bar_label(bars, fmt=text, padding=2, fontsize=9)
        axes.set_yticks([])
        axes.margins(y=0.15)
        axes.spines[["top", "right", "left"]].set_visible(False)


TRAINING_BILL = Experiment(
    measure_bill,
    draw_bill,
    seconds=(0.1, 0.1),
    labels={"days": " days", "utilisation of Llama": " %", "cost": " million dollars"},
)
