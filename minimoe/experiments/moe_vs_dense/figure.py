"""[evidence] Figure of MoE against dense: loss against training tokens, FLOPs and seconds."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from minimoe.data.corpus import ALL
from minimoe.experiments.curves import AXES
from minimoe.reporting.figures import STYLES

LABELS = {
    "tokens": "training tokens (bytes)",
    "flops": "training FLOPs",
    "seconds": "training seconds on this machine",
}


def draw(figure: Figure, detail: dict[str, Any]) -> None:
    """A marked line per model for the mean over seeds, a thin line per seed, from ``Comparison.as_dict``.

    The vertical line in each panel is the common budget at which the table compares.
    """
    panels = figure.subplots(1, len(AXES), sharey=True)
    for axis, panel in zip(AXES, panels, strict=True):
        ends = []
        for name, curves in detail["curves"].items():
            style = STYLES[name]
            spent = np.mean([curve[axis] for curve in curves], axis=0)
            bits = np.array([curve["bits_per_byte"][ALL] for curve in curves])
            ends.append([curve[axis][-1] for curve in curves])
            if len(curves) > 1:
                panel.plot(spent, bits.T, color=style["color"], linewidth=0.5, alpha=0.5)
            panel.plot(spent, bits.mean(0), label=name, markersize=4, markevery=2, linewidth=1.6, **style)
        panel.axvline(np.min(ends, axis=0).mean(), color="black", linewidth=0.8, alpha=0.4)
        panel.set(xlabel=LABELS[axis], xscale="log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("validation bits per byte")
    panels[0].legend()
