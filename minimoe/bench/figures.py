"""[evidence] Figures of ``minimoe bench``, drawn from bench.json alone."""

import textwrap
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from minimoe.bench.crossover import Record, describe_crossovers, layer_records, token_sweeps
from minimoe.bench.layers import DENSE_ACTIVE, DENSE_TOTAL, DIRECTIONS, MOE
from minimoe.bench.report import describe_threads
from minimoe.reporting.figures import LINES, STYLES, figure_style

SWEEPS = {"E": "experts E", "K": "experts per token K", "T": "tokens T", "D": "width D"}


def plot_bench(data: dict[str, Any], out: Path) -> list[Path]:
    """Draw and save each figure for which there are records."""
    saved = []
    for draw in (throughput, crossover, recipes, dispatchers):
        with figure_style():
            if (figure := draw(data)) is not None:
                saved.append(out / f"{draw.__name__}.png")
                figure.savefig(saved[-1], dpi=100)
    return saved


def throughput(data: dict[str, Any]) -> Figure | None:
    """Tokens per second of the layer, one size changed at a time; a row of panels per direction."""
    rows = {d: layer_records(data["records"], d) for d in DIRECTIONS}
    directions = [d for d in DIRECTIONS if _sweep(rows[d], data["size"], "T", MOE)]
    if not directions:
        return None
    title = f"The layer alone, around {_size(data)}"
    figure, panels = _new_figure(data, title, 13, 3.6 * len(directions), len(directions), len(SWEEPS))
    for direction, row in zip(directions, panels, strict=True):
        for (letter, label), panel in zip(SWEEPS.items(), row, strict=True):
            for name, style in STYLES.items():
                points = _sweep(rows[direction], data["size"], letter, name)
                speeds = [record["tokens_per_second"] for _, record in points]
                panel.plot([x for x, _ in points], speeds, label=name, markersize=4, **style)
            _format_axes(panel, label, f"tokens/s, {direction}" if letter == "E" else "")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0][0].legend()
    return figure


def crossover(data: dict[str, Any]) -> Figure | None:
    """The MoE layer's time over each dense layer's against T, a line per E."""
    sweeps = {d: token_sweeps(data["records"], d) for d in DIRECTIONS}
    directions = [d for d in DIRECTIONS if sweeps[d]]
    if not directions:
        return None
    styles = dict(zip(sorted({e for d in directions for e in sweeps[d]}), LINES, strict=False))
    title = f"Where the MoE layer is faster than dense, around {_size(data)}"
    figure, panels = _new_figure(data, title, 11, 4.4 * len(directions), len(directions), 2, sharey=True)
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
    return figure


def recipes(data: dict[str, Any]) -> Figure | None:
    """Time of a matmul under each recipe over float32's, against rows M."""
    rows = [r for r in data["records"] if r["suite"] == "fp8" and r["group"] == "matmul"]
    if not rows:
        return None
    label = "rows M of a matmul with N = {N}, K = {K}".format(**rows[0]["shape"])
    return _draw_candidates(data, "Matmul by recipe", {"": rows}, "M", [label, "time / float32 time"])


def dispatchers(data: dict[str, Any]) -> Figure | None:
    """Time of each dispatcher over the loop's, against T."""
    groups = {d: [r for r in data["records"] if r["group"] == f"dispatch, {d}"] for d in DIRECTIONS}
    groups = {direction: rows for direction, rows in groups.items() if rows}
    if not groups:
        return None
    title, labels = f"Dispatchers, around {_size(data)}", ["tokens T", "time / loop's time"]
    return _draw_candidates(data, title, groups, "T", labels)


def _draw_candidates(
    data: dict[str, Any], title: str, groups: dict[str, list[Record]], letter: str, labels: list[str]
) -> Figure:
    """A panel for each group of records, with a line per candidate; ``labels`` are those of the axes."""
    width = 7 if len(groups) == 1 else 5.5
    figure, panels = _new_figure(data, title, width * len(groups), 4.3, 1, len(groups), sharey=True)
    candidates = [r["task"] for r in chain(*groups.values()) if r["task"] != r["baseline"]]
    for (subtitle, group), panel in zip(groups.items(), panels[0], strict=True):
        for style, name in zip(LINES, dict.fromkeys(candidates), strict=False):
            points = [(r["shape"][letter], r) for r in group if r["task"] == name]
            _plot_ratios(panel, points, name, style)
        _format_ratios(panel, labels[0], labels[1] if panel is panels[0][0] else "")
        panel.set_title(subtitle, fontsize=10)
    panels[0][0].legend(fontsize=9)
    return figure


def _new_figure(
    data: dict[str, Any], title: str, width: float, height: float, rows: int, columns: int, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of ``width`` × ``height`` inches, and its panels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(f"{title}, {data['machine']['device']}, {describe_threads(data['machine'])}")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _sweep(rows: Iterable[Record], size: dict[str, int], letter: str, task: str) -> list[tuple[int, Record]]:
    """Rows that differ from the size of interest in one letter; H is scaled with D."""
    free = {letter, "H"} if letter == "D" else {letter}
    points = [
        (r["shape"][letter], r)
        for r in rows
        if r["task"] == task and all(r["shape"][key] == size[key] for key in size if key not in free)
    ]
    return sorted(points, key=lambda point: point[0])


def _plot_ratios(panel: Axes, points: list[tuple[int, Record]], label: str, style: dict[str, Any]) -> None:
    """A line of ratios with their confidence intervals."""
    xs, ratios = [x for x, _ in points], [r["ratio"] for _, r in points]
    ends = np.array([[r["ratio"] - r["low"] for _, r in points], [r["high"] - r["ratio"] for _, r in points]])
    panel.errorbar(xs, ratios, np.maximum(ends, 0), label=label, capsize=3, markersize=5, **style)


def _format_axes(panel: Axes, xlabel: str, ylabel: str) -> None:
    panel.set_xscale("log", base=2)
    panel.set(yscale="log", xlabel=xlabel, ylabel=ylabel)
    ticks = sorted({float(x) for line in panel.lines for x in np.atleast_1d(line.get_xdata()) if x >= 1})
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.25)


def _format_ratios(panel: Axes, xlabel: str, ylabel: str) -> None:
    panel.axhline(1, color="black", linewidth=1)
    _format_axes(panel, xlabel, ylabel)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter("{x:g}")


def _size(data: dict[str, Any]) -> str:
    return " ".join(f"{letter} = {size}" for letter, size in data["size"].items())
