"""[evidence] Outliers: what one large column does to the others in E4M3, by the block that shares a scale."""

import math

import torch
from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured
from minimoe.precision import E4M3, fake_quantize, measure_error
from minimoe.precision.analysis import decibels
from minimoe.precision.arguments import Block
from minimoe.reporting.figures import BLUE, VERMILLION
from minimoe.reporting.tables import TextTable

BLOCKS: dict[str, Block | None] = {"tensor": None, "1×128": (1, 128), "128×128": (128, 128)}

FACTORS = [10.0**exponent for exponent in range(7)]


def outlier_errors(height: int, width: int, seed: int = 0) -> Detail:
    """Normal numbers with one column scaled by each factor, rounded to E4M3 in each kind of block.

    ``noise``: signal to noise of the other columns, dB; ``zeros``: the share of them that became zero;
    ``overall``: signal to noise of all columns, dB. Each by block, a value per factor.
    """
    x = torch.randn(height, width, generator=torch.Generator().manual_seed(seed))
    column = width // 3
    others = torch.arange(width) != column
    errors: dict[str, dict[str, list[float]]] = {
        key: {block: [] for block in BLOCKS} for key in ("noise", "zeros", "overall")
    }
    for factor in FACTORS:
        y = x.clone()
        y[:, column] *= factor
        for name, block in BLOCKS.items():
            rounded = fake_quantize(y, E4M3, block)
            error = measure_error(rounded, y, outliers=torch.tensor([column]))
            errors["noise"][name].append(decibels(error.off_outliers or 0.0))
            errors["zeros"][name].append((rounded[:, others] == 0).double().mean().item())
            errors["overall"][name].append(error.sqnr_db)
    return {"width": width, "factors": FACTORS} | errors


def measure(context: RunContext) -> Measured:
    height, width = context.pick((512, 2048), (2048, 4096))
    detail = outlier_errors(height, width, context.seed)
    at_1e5 = {block: values[FACTORS.index(1e5)] for block, values in detail["noise"].items()}
    return Measured(
        {
            "tiles": [at_1e5["1×128"] - at_1e5["tensor"]],
            "blocks": [at_1e5["128×128"] - at_1e5["tensor"]],
            **{block: [noise] for block, noise in at_1e5.items()},
        },
        detail,
        f"{height}×{width} normal numbers in E4M3, one column scaled by a factor: signal to noise of the "
        "other columns, by the block that shares a scale. Read at a factor of 100,000; E4M3 spans a factor "
        "of 229,376 from its smallest number to its largest.",
    )


def draw(figure: Figure, detail: Detail) -> None:
    axes = figure.subplots()
    styles = {"tensor": ("s:", VERMILLION), "128×128": ("^--", BLUE), "1×128": ("o-", "black")}
    for block, (style, color) in styles.items():
        label = f"one scale per {block}"
        axes.semilogx(detail["factors"], detail["noise"][block], style, color=color, label=label)
    axes.set(xlabel="the outlier column's factor", ylabel="other columns: signal to noise, dB")
    axes.legend()


def tables(detail: Detail) -> list[TextTable]:
    rows = []
    for i, factor in enumerate(detail["factors"]):
        if factor >= 100:
            at = {key: [detail[key][block][i] for block in BLOCKS] for key in ("noise", "zeros", "overall")}
            cells = map("{:.1f} ({:.0%} zeros; all: {:.1f})".format, *at.values())
            rows.append([f"10^{math.log10(factor):.0f}", *cells])
    about = (
        f"One column of {detail['width']} scaled by A: signal to noise in dB of the *other* columns, the "
        "share of them that became zero, and signal to noise over all columns, which hides the loss."
    )
    return [TextTable("outliers", about, ["A", *BLOCKS], rows)]


UNITS = dict.fromkeys(("tiles", "blocks", *BLOCKS), " dB")

OUTLIERS = Experiment(measure, draw, tables=tables, seconds=(2, 15), units=UNITS)
