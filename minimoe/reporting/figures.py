"""What the pictures of claims about learning share: a dot a seed, and a line at the mean."""

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

STYLES = {
    "dense-active": {"color": "#0072b2", "linestyle": "--", "marker": "s"},
    "dense-total": {"color": "#555555", "linestyle": ":", "marker": "^"},
    "moe": {"color": "#d55e00", "linestyle": "-", "marker": "o"},
}


def draw_dots(axes: Axes, found: Mapping[str, list[float]], **ticks: Any) -> None:
    """A column for each name, in order; ``ticks`` are matplotlib's, for the names."""
    for i, values in enumerate(found.values()):
        axes.plot([i] * len(values), values, "o", color="#0072b2", markerfacecolor="none")
        axes.hlines(statistics.fmean(values), i - 0.25, i + 0.25, color="black")
    axes.set_xticks(range(len(found)), list(found), **ticks)
    axes.grid(axis="y", alpha=0.25)
