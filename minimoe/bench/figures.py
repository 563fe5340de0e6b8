"""[evidence] Figures of ``minimoe bench``, drawn from bench.json alone."""

import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from minimoe.bench.crossover import Record, describe_crossovers, token_sweeps
from minimoe.bench.layers import DENSE_ACTIVE, DENSE_TOTAL, FORWARD, FORWARD_BACKWARD, MOE
from minimoe.reporting.figures import LINES, STYLES, figure_style

SWEEPS = {"E": "experts E", "K": "experts per token K", "T": "tokens T", "D": "width D"}

DIRECTIONS = (FORWARD, FORWARD_BACKWARD)


def plot_bench(data: dict[str, Any], out: Path) -> list[Path]:
    """Draw and save each figure for which there are records."""
    saved = []
    for name, draw in FIGURES.items():
        with figure_style():
            figure = draw(data)
            if figure is not None:
                saved.append(out / f"{name}.png")
                figure.savefig(saved[-1], dpi=100)
    return saved


def throughput(data: dict[str, Any]) -> Figure | None:
    """Tokens per second of the layer, one size changed at a time; a row of panels per direction."""
    directions = [d for d in DIRECTIONS if _sweep(_layers(data, d), data["size"], "T", MOE)]
    if not directions:
        return None
    figure = Figure(figsize=(13, 3.6 * len(directions)), layout="constrained")
    panels = figure.subplots(len(directions), len(SWEEPS), squeeze=False)
    for direction, row in zip(directions, panels, strict=True):
        for (letter, label), panel in zip(SWEEPS.items(), row, strict=True):
            for name, style in STYLES.items():
                points = _sweep(_layers(data, direction), data["size"], letter, name)
                speeds = [record["tokens_per_second"] for _, record in points]
                panel.plot([x for x, _ in points], speeds, label=name, markersize=4, **style)
            _format_axes(panel, label, f"tokens/s, {direction}" if letter == "E" else "")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0][0].legend()
    figure.suptitle(f"The layer alone, around {_size(data)}, {_machine(data)}")
    return figure


def crossover(data: dict[str, Any]) -> Figure | None:
    """The MoE layer's time over each dense layer's against T, a line per E."""
    sweeps = {d: token_sweeps(data["records"], d) for d in DIRECTIONS}
    directions = [d for d in DIRECTIONS if sweeps[d]]
    if not directions:
        return None
    styles = dict(zip(sorted({e for d in directions for e in sweeps[d]}), LINES, strict=False))
    figure = Figure(figsize=(11, 4.4 * len(directions)), layout="constrained")
    panels = figure.subplots(len(directions), 2, squeeze=False, sharey=True)
    for direction, row in zip(directions, panels, strict=True):
        for baseline, panel in zip((DENSE_ACTIVE, DENSE_TOTAL), row, strict=True):
            for experts, rows in sweeps[direction].items():
                points = [(r["shape"]["T"], r["against"][baseline]) for r in rows]
                _plot_ratios(panel, points, f"E = {experts}", styles[experts])
            _format_ratios(panel, "tokens T", "")
            sentence = describe_crossovers(data["records"], direction, baseline) or ""
            panel.set_title(textwrap.fill(sentence, 80), fontsize=8.5)
        row[0].set_ylabel("MoE time / dense time (below 1: MoE is faster)")
    panels[0][0].legend()
    figure.suptitle(f"Where the MoE layer is faster than dense, around {_size(data)}, {_machine(data)}")
    return figure


def recipes(data: dict[str, Any]) -> Figure | None:
    """Time of a matmul under each recipe over float32's, against rows M."""
    rows = [r for r in data["records"] if r["suite"] == "fp8" and r["group"] == "matmul"]
    if not rows:
        return None
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    panel = figure.subplots()
    for style, task in zip(LINES, _candidates(rows), strict=False):
        _plot_ratios(panel, [(r["shape"]["M"], r) for r in rows if r["task"] == task], task, style)
    shape = rows[0]["shape"]
    label = f"rows M of a matmul with N = {shape['N']}, K = {shape['K']}"
    _format_ratios(panel, label, "time / float32 time")
    panel.legend(fontsize=9)
    figure.suptitle(f"Matmul by recipe, {_machine(data)}")
    return figure


def dispatchers(data: dict[str, Any]) -> Figure | None:
    """Time of each dispatcher over the loop's, against T."""
    rows = [r for r in data["records"] if r["group"].startswith("dispatch")]
    directions = [d for d in DIRECTIONS if any(r["group"] == f"dispatch, {d}" for r in rows)]
    if not directions:
        return None
    figure = Figure(figsize=(5.5 * len(directions), 4.2), layout="constrained")
    panels = figure.subplots(1, len(directions), squeeze=False, sharey=True)[0]
    for direction, panel in zip(directions, panels, strict=True):
        for style, task in zip(LINES, _candidates(rows), strict=False):
            own = [r for r in rows if r["task"] == task and r["group"] == f"dispatch, {direction}"]
            _plot_ratios(panel, [(r["shape"]["T"], r) for r in own], task, style)
        _format_ratios(panel, "tokens T", "time / loop's time" if panel is panels[0] else "")
        panel.set_title(direction, fontsize=10)
    panels[0].legend()
    figure.suptitle(f"Dispatchers, around {_size(data)}, {_machine(data)}")
    return figure


FIGURES: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "throughput": throughput,
    "crossover": crossover,
    "recipes": recipes,
    "dispatchers": dispatchers,
}


def _layers(data: dict[str, Any], direction: str) -> list[Record]:
    rows = [r for r in data["records"] if r["group"] == f"layer, {direction}"]
    return [r for r in rows if r["dtype"] == rows[0]["dtype"]]


def _sweep(rows: Iterable[Record], size: dict[str, int], letter: str, task: str) -> list[tuple[int, Record]]:
    """Rows that differ from the size of interest in one letter; H is scaled with D."""
    free = {letter, "H"} if letter == "D" else {letter}
    points = [
        (r["shape"][letter], r)
        for r in rows
        if r["task"] == task and all(r["shape"][key] == size[key] for key in size if key not in free)
    ]
    return sorted(points, key=lambda point: point[0])


def _candidates(rows: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(r["task"] for r in rows if r["task"] != r["baseline"]))


def _plot_ratios(panel: Axes, points: list[tuple[int, Record]], label: str, style: dict[str, Any]) -> None:
    """A line of ratios with their confidence intervals."""
    xs, ratios = [x for x, _ in points], [r["ratio"] for _, r in points]
    ends = np.array([[r["ratio"] - r["low"] for _, r in points], [r["high"] - r["ratio"] for _, r in points]])
    panel.errorbar(xs, ratios, np.maximum(ends, 0), label=label, capsize=3, markersize=5, **style)


def _format_axes(panel: Axes, xlabel: str, ylabel: str) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    ticks = sorted({float(x) for line in panel.lines for x in np.atleast_1d(line.get_xdata()) if x >= 1})
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    panel.grid(alpha=0.25)


def _format_ratios(panel: Axes, xlabel: str, ylabel: str) -> None:
    panel.axhline(1, color="black", linewidth=1)
    _format_axes(panel, xlabel, ylabel)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _size(data: dict[str, Any]) -> str:
    return " ".join(f"{letter} = {size}" for letter, size in data["size"].items())


def _machine(data: dict[str, Any]) -> str:
    count = data["machine"]["threads"]
    return f"{data['machine']['device']}, {count} thread{'s' * (count > 1)}"
