"""Figures drawn from bench.json alone. Styles differ by line as well as by colour, to be readable in grey."""

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

from minimoe.bench.crossover import Record, crossings, crossovers
from minimoe.bench.layers import BOTH, DENSE_ACTIVE, DENSE_TOTAL, FORWARD, MIXTURE
from minimoe.reporting.figures import LINES, STYLES, figure_style

SWEEPS = {"E": "experts E", "K": "experts a token K", "T": "tokens T", "D": "width D"}


def plot_bench(data: dict[str, Any], out: Path) -> list[Path]:
    """Each figure that the records suffice for."""
    drawn = []
    for name, draw in FIGURES.items():
        with figure_style():
            figure = draw(data)
            if figure is not None:
                drawn.append(out / f"{name}.png")
                figure.savefig(drawn[-1], dpi=100)
    return drawn


def throughput(data: dict[str, Any]) -> Figure | None:
    """Tokens a second of the layer, one size changed at a time; forward above, with backward below."""
    ways = [way for way in (FORWARD, BOTH) if _sweep(_layers(data, way), data["size"], "T", MIXTURE)]
    if not ways:
        return None
    figure = Figure(figsize=(13, 3.6 * len(ways)), layout="constrained")
    panels = figure.subplots(len(ways), len(SWEEPS), squeeze=False)
    for way, row in zip(ways, panels, strict=True):
        for (letter, label), panel in zip(SWEEPS.items(), row, strict=True):
            for name, style in STYLES.items():
                found = _sweep(_layers(data, way), data["size"], letter, name)
                _line(panel, [(x, r["tokens_per_second"]) for x, r in found], name, style)
            _axes(panel, label, f"tokens/s, {way}" if letter == "E" else "")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0][0].legend()
    figure.suptitle(f"The layer alone, around {_size(data)}, {_threads(data)}")
    return figure


def crossover(data: dict[str, Any]) -> Figure | None:
    """The mixture's time over each dense layer's against T, a line an E, and where it falls below 1."""
    ways = [way for way in (FORWARD, BOTH) if crossings(data["records"], way)]
    if not ways:
        return None
    experts = sorted({e for way in ways for e in crossings(data["records"], way)})
    styles = dict(zip(experts, LINES, strict=False))
    figure = Figure(figsize=(11, 4.4 * len(ways)), layout="constrained")
    panels = figure.subplots(len(ways), 2, squeeze=False, sharey=True)
    for way, row in zip(ways, panels, strict=True):
        for rival, panel in zip((DENSE_ACTIVE, DENSE_TOTAL), row, strict=True):
            for count, rows in crossings(data["records"], way).items():
                points = [(r["shape"]["T"], r["against"][rival]) for r in rows]
                _with_interval(panel, points, f"E = {count}", styles[count])
            panel.axhline(1, color="black", linewidth=1)
            _axes(panel, "tokens T", "")
            _ratios(panel)
            said = crossovers(data["records"], way, rival) or ""
            panel.set_title(textwrap.fill(said, 80), fontsize=8.5)
        row[0].set_ylabel("mixture's time / dense; below 1 it wins")
    panels[0][0].legend()
    figure.suptitle(f"Where the mixture beats dense, around {_size(data)}, {_threads(data)}")
    return figure


def recipes(data: dict[str, Any]) -> Figure | None:
    """Products under each recipe over float32's time, against rows M."""
    rows = [r for r in data["records"] if r["suite"] == "fp8" and r["group"] == "matmul"]
    if not rows:
        return None
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    panel = figure.subplots()
    tasks = dict.fromkeys(r["task"] for r in rows if r["task"] != r["baseline"])
    for style, task in zip(LINES, tasks, strict=False):
        _with_interval(panel, [(r["shape"]["M"], r) for r in rows if r["task"] == task], task, style)
    panel.axhline(1, color="black", linewidth=1)
    shape = rows[0]["shape"]
    _axes(panel, f"rows M of a product with N = {shape['N']}, K = {shape['K']}", "times as long as float32")
    _ratios(panel)
    panel.legend(fontsize=9)
    figure.suptitle(f"Products under recipes, {_threads(data)}")
    return figure


def dispatchers(data: dict[str, Any]) -> Figure | None:
    """Ways of bringing tokens to experts over the loop's time, against T."""
    rows = [r for r in data["records"] if r["group"].startswith("dispatch")]
    ways = [way for way in (FORWARD, BOTH) if any(r["group"] == f"dispatch, {way}" for r in rows)]
    if not ways:
        return None
    figure = Figure(figsize=(5.5 * len(ways), 4.2), layout="constrained")
    panels = figure.subplots(1, len(ways), squeeze=False, sharey=True)[0]
    tasks = dict.fromkeys(r["task"] for r in rows if r["task"] != r["baseline"])
    for way, panel in zip(ways, panels, strict=True):
        for style, task in zip(LINES, tasks, strict=False):
            here = [r for r in rows if r["task"] == task and r["group"] == f"dispatch, {way}"]
            _with_interval(panel, [(r["shape"]["T"], r) for r in here], task, style)
        panel.axhline(1, color="black", linewidth=1)
        _axes(panel, "tokens T", "times as long as the loop" if panel is panels[0] else "")
        _ratios(panel)
        panel.set_title(way, fontsize=10)
    panels[0].legend()
    figure.suptitle(f"Dispatchers, around {_size(data)}, {_threads(data)}")
    return figure


FIGURES: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "throughput": throughput,
    "crossover": crossover,
    "recipes": recipes,
    "dispatchers": dispatchers,
}


def _layers(data: dict[str, Any], way: str) -> list[Record]:
    rows = [r for r in data["records"] if r["group"] == f"layer, {way}"]
    return [r for r in rows if r["dtype"] == rows[0]["dtype"]]


def _sweep(rows: Iterable[Record], size: dict[str, int], letter: str, task: str) -> list[tuple[int, Record]]:
    """Rows that differ from the size of interest in one letter; H goes with D."""
    free = {letter, "H"} if letter == "D" else {letter}
    found = [
        (r["shape"][letter], r)
        for r in rows
        if r["task"] == task and all(r["shape"][key] == size[key] for key in size if key not in free)
    ]
    return sorted(found, key=lambda pair: pair[0])


def _line(panel: Axes, points: list[tuple[int, float]], label: str, style: dict[str, Any]) -> None:
    panel.plot([x for x, _ in points], [y for _, y in points], label=label, markersize=4, **style)


def _with_interval(panel: Axes, points: list[tuple[int, Record]], label: str, style: dict[str, Any]) -> None:
    xs, ratios = [x for x, _ in points], [r["ratio"] for _, r in points]
    ends = np.array([[r["ratio"] - r["low"] for _, r in points], [r["high"] - r["ratio"] for _, r in points]])
    panel.errorbar(xs, ratios, np.maximum(ends, 0), label=label, capsize=3, markersize=5, **style)


def _axes(panel: Axes, xlabel: str, ylabel: str) -> None:
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


def _ratios(panel: Axes) -> None:
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _size(data: dict[str, Any]) -> str:
    return " ".join(f"{letter} = {size}" for letter, size in data["size"].items())


def _threads(data: dict[str, Any]) -> str:
    count = data["machine"]["threads"]
    return f"{data['machine']['device']}, {count} thread{'s' * (count > 1)}"
