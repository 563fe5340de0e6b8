"""Figures: one palette, one style per model, one matplotlib style, one way to save."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minimoe.reporting.statistics import Spread

# Okabe and Ito's palette, which readers with color vision deficiencies can tell apart; and grays.
BLUE, SKY_BLUE, GREEN, ORANGE, VERMILLION, PINK = (
    "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7",
)  # fmt: skip
DARK_GRAY, GRAY, LIGHT_GRAY, PALE_GRAY = "#555555", "#777777", "#aaaaaa", "#dddddd"

# Lines differ in pattern and marker as well as in color, so that a figure can be read in gray.
STYLES: dict[str, dict[str, Any]] = {
    "dense-active": {"color": BLUE, "linestyle": "--", "marker": "s"},
    "dense-total": {"color": DARK_GRAY, "linestyle": ":", "marker": "^"},
    "moe": {"color": VERMILLION, "linestyle": "-", "marker": "o"},
}

LINES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linestyle": "--", "marker": "s"},
    {"color": VERMILLION, "linestyle": "-", "marker": "o"},
    {"color": GREEN, "linestyle": "-.", "marker": "D"},
    {"color": DARK_GRAY, "linestyle": ":", "marker": "^"},
    {"color": PINK, "linestyle": (0, (5, 1)), "marker": "x"},
    {"color": SKY_BLUE, "linestyle": (0, (1, 1)), "marker": "v"},
)


def figure_style() -> AbstractContextManager[None]:
    """matplotlib's settings for every figure of the package, until the block ends."""
    return matplotlib.rc_context(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    )


@contextmanager
def new_figure(path: Path, width: float, height: float, dpi: int = 100) -> Iterator[Figure]:
    """An empty figure of ``width`` × ``height`` inches, saved to ``path`` at the end of the block."""
    with figure_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, dpi=dpi)


def draw_dots(axes: Axes, values: Mapping[str, list[float]], **ticks: Any) -> None:
    """A column per name, in order: a dot per seed and a line at their mean; ``ticks`` style the names."""
    for i, column in enumerate(values.values()):
        axes.plot([i] * len(column), column, "o", color=BLUE, markerfacecolor="none")
        axes.hlines(Spread.of(column).mean, i - 0.25, i + 0.25, color="black")
    axes.set_xticks(range(len(values)), list(values), **ticks)
    axes.grid(axis="y", alpha=0.25)
