"""[evidence] Training bill: published GPU-hours, dollars and FLOPs of DeepSeek-V3 and Llama 3.1 405B."""

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from minimoe.cost import PUBLISHED, PUBLISHED_RUNS, count, training_flops
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured
from minimoe.reporting.figures import BLUE, LIGHT_GRAY


def measure(context: RunContext) -> Measured:
    runs = {name: PUBLISHED_RUNS[name] for name in ("deepseek-v3", "llama-3.1-405b")}
    v3, llama = runs.values()
    flops = {name: training_flops(PUBLISHED[name]) * run.tokens for name, run in runs.items()}
    mfu = {name: run.mfu(PUBLISHED[name]) for name, run in runs.items()}
    parameters = count(PUBLISHED["deepseek-v3"])
    total, active = parameters.total / 1e9, (parameters.active - parameters.embedding) / 1e9
    return Measured(
        {
            "total": [abs(total - 671)],
            "active": [abs(active - 37)],
            "utilisation": [100 * mfu["deepseek-v3"]],
            "dollars": [abs(v3.dollars / 1e6 - 5.6)],
            "fewer hours": [llama.total_hours / v3.total_hours],
            "fewer operations": [flops["llama-3.1-405b"] / flops["deepseek-v3"]],
            "cards": [llama.gpus / v3.gpus],
            "parameters": [total],
            "active parameters": [active],
            "cost": [v3.dollars / 1e6],
            "days": [v3.days],
            "MFU of Llama": [100 * mfu["llama-3.1-405b"]],
        },
        {"flops": flops}
        | {"hours": {name: run.total_hours for name, run in runs.items()}}
        | {"dollars": {name: run.dollars for name, run in runs.items()}},
        f"Parameters and FLOPs counted from the published configurations; {v3.tokens:.3g} tokens in "
        f"{v3.total_hours / 1e6:.3f} million GPU-hours on {v3.gpus:,} {v3.accelerator.upper()} GPUs at "
        f"${v3.price:g} per GPU-hour; for comparison Llama 3.1 405B, {llama.tokens:.3g} tokens in "
        f"{llama.total_hours / 1e6:.2f} million GPU-hours on up to {llama.gpus:,} GPUs. Model FLOPs "
        "utilization (MFU) is what the hours of pre-training imply; nothing was run here. Research, failed "
        "runs, data and salaries are not included.",
    )


def draw(figure: Figure, detail: Detail) -> None:
    panels = figure.subplots(1, 3)
    titles = (("hours", "GPU-hours"), ("flops", "FLOPs"), ("dollars", "dollars, at the assumed price"))
    for axes, (key, title) in zip(panels, titles, strict=True):
        bars = axes.bar(["V3", "Llama 3.1\n405B"], list(detail[key].values()), color=[BLUE, LIGHT_GRAY])
        axes.set_title(title, fontsize=10)
        text = "%.2g" if key == "flops" else EngFormatter(places=2, sep=" ")
        axes.bar_label(bars, fmt=text, padding=2, fontsize=9)
        axes.set(yticks=[], ymargin=0.15)
        axes.spines["left"].set_visible(False)


UNITS = {"cost": " million dollars", "days": " days", "utilisation": " %", "MFU of Llama": " %"}
UNITS |= dict.fromkeys(("fewer hours", "fewer operations", "cards"), "x")
UNITS |= dict.fromkeys(("parameters", "active parameters"), " billion")

TRAINING_BILL = Experiment(measure, draw, units=UNITS)
