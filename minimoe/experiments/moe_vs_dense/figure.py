"""Figures drawn from records. Styles differ by line as well as by colour, to be readable in grey."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from minimoe.data.corpus import ALL
from minimoe.experiments.curves import AXES
from minimoe.experiments.moe_vs_dense.results import Comparison
from minimoe.reporting.figures import STYLES

LABELS = {
    "tokens": "training tokens (bytes)",
    "flops": "training FLOPs",
    "seconds": "training seconds on this machine",
}


def plot_comparison(comparison: Comparison, path: Path, title: str) -> None:
    """Loss against tokens, FLOPs and seconds, side by side; a thin line a seed, a marked one their mean.

    The vertical line in each panel is the common budget at which the table compares.
    """
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(12, 4.2), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axis, panel in zip(AXES, panels, strict=True):
            for name, curves in comparison.curves.items():
                style = STYLES[name]
                spent = np.mean([curve.spent[axis] for curve in curves], axis=0)
                values = np.array([curve.bits_per_byte[ALL] for curve in curves])
                if len(curves) > 1:
                    panel.plot(spent, values.T, color=style["color"], linewidth=0.5, alpha=0.5)
                panel.plot(
                    spent,
                    values.mean(0),
                    label=name,
                    markersize=4,
                    markevery=2,
                    linewidth=1.6,
                    **style,
                )
            budget = np.mean([comparison.budget(axis, seed) for seed in range(comparison.seeds)])
            panel.axvline(budget, color="black", linewidth=0.8, alpha=0.4)
            panel.set_xlabel(LABELS[axis])
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.25)
        panels[0].set_ylabel("validation bits per byte")
        panels[0].legend(frameon=False)
        figure.suptitle(title)
        figure.savefig(path, dpi=110)
