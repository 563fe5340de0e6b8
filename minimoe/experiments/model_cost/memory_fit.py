"""[evidence] Memory fit: DeepSeek-V3's weights in bf16 and 8 bits against the memory of 8 GPUs."""

from matplotlib.figure import Figure

from minimoe.cost import ACCELERATORS, PUBLISHED, memory_footprint
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured
from minimoe.reporting.figures import BLUE, LIGHT_GRAY


def measure(context: RunContext) -> Measured:
    model = PUBLISHED["deepseek-v3"]
    bf16, fp8 = (memory_footprint(model, precision).weights for precision in ("bf16", "deepseek-v3"))
    h800, h200 = (8 * ACCELERATORS[name].memory for name in ("h800", "h200"))
    return Measured(
        {
            "reduced": [fp8 / bf16],
            "h800": [fp8 / h800],
            "h200": [fp8 / h200],
            "bf16 on h200": [bf16 / h200],
            "bf16 on h800": [bf16 / h800],
        },
        {"weights": {"bf16": bf16, "8 bits": fp8}, "machines": {"8 × H800": h800, "8 × H200": h200}},
        "Bytes of DeepSeek-V3's weights, counted from its configuration, in bf16 and as stored in 8 bits "
        "(with scales; embedding, output, norms and gates in bf16), against the memory of machines of eight "
        "GPUs. Memory besides weights (KV cache, activations) is not included.",
    )


def draw(figure: Figure, detail: Detail) -> None:
    axes = figure.subplots()
    names = [f"weights in {name}" for name in detail["weights"]]
    gigabytes = [b / 1e9 for b in detail["weights"].values()]
    bars = axes.barh(names, gigabytes, color=[LIGHT_GRAY, BLUE], height=0.5)
    axes.bar_label(bars, fmt="%.0f GB", padding=3)
    for (name, size), style in zip(detail["machines"].items(), ("--", ":"), strict=True):
        axes.axvline(size / 1e9, color="black", linestyle=style, label=f"memory of {name}")
    axes.set(xlabel="GB", xlim=(0, 1600), ylim=(-0.6, 2.1))
    axes.legend(loc="upper right")


MEMORY_FIT = Experiment(measure, draw)
