"""The experiment on the terminal and as a figure, from the same plain data that distillation.json holds."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, PercentFormatter
from rich.console import Console
from rich.markup import escape

from minimoe.experiments.distillation.experiment import ALONE, LONGER
from minimoe.reporting.figures import (
    BLUE,
    DARK_GRAY,
    GREEN,
    LIGHT_GRAY,
    PINK,
    SKY_BLUE,
    VERMILLION,
    new_figure,
)
from minimoe.reporting.statistics import describe_seeds, format_spread
from minimoe.reporting.tables import rich_table, si

STYLES: dict[str, dict[str, Any]] = {
    ALONE: {"color": DARK_GRAY, "linestyle": ":", "marker": "^"},
    "logits": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "logits and labels": {"color": SKY_BLUE, "linestyle": "--", "marker": "s"},
    "top-4": {"color": GREEN, "linestyle": "-.", "marker": "D"},
    "on-policy": {"color": PINK, "linestyle": "--", "marker": "x"},
}

LEAST = -1.0  # share of the gap below which a bar is cut off, and labelled

TEXT: dict[str, Any] = {"color": VERMILLION, "linestyle": "-", "marker": "v"}


def print_distillation(data: dict[str, Any], console: Console) -> None:
    """Who they are, what each student reached, the verdict, and what they write."""
    models = rich_table(
        "The models", ["", "parameters", "MB", "FLOPs/byte", "bytes/s*", "training**", "bits"]
    )
    for row in data["models"]:
        models.add_row(
            row["model"],
            f"{row['parameters']:,}",
            f"{row['megabytes']:.2f}",
            si(row["flops_per_token"]),
            f"{row['tokens_per_second']:,.0f}",
            "" if row["training"] is None else f"{row['training']:.1f}x",
            format_spread(row["bits_per_byte"], ".3f"),
        )
    console.print(models)
    console.print(
        "* writing, 16 texts at a time   ** FLOPs, in trainings of the student alone\n", style="dim"
    )

    students = rich_table(
        f"The students ({describe_seeds(data['seeds'])})",
        ["taught by", "bits*", "closed", "choice", "KL", "FLOPs", "lead**"],
    )
    for row in data["methods"]:
        equal = row["lead_at_equal_compute"]
        students.add_row(
            row["method"],
            format_spread(row["best"], ".3f"),
            format_spread(row["gap_closed"], ".0%"),
            format_spread(row["agreement"], ".0%"),
            format_spread(row["divergence"], ".3f"),
            f"{row['compute']:.1f}x",
            "" if equal is None else format_spread(equal, ".3f"),
        )
    console.print(students)
    notes = (
        "* a byte, at its best evaluation   ** in bits, over the student alone with as many FLOPs\n"
        "closed: of the gap to the teacher   choice: how often its likeliest byte is the teacher's\n"
    )
    console.print(notes, style="dim")

    domains = [name for name in data["methods"][0]["bits_per_byte"] if name != "all"]
    reached = rich_table("Validation bits per byte at the end, by domain", ["", *domains])
    for row in data["methods"]:
        reached.add_row(
            row["method"], *(format_spread(row["bits_per_byte"][domain], ".3f") for domain in domains)
        )
    console.print(reached)

    console.print(f"\nAll go on after {data['samples']['prompt']!r}:", highlight=False, markup=False)
    for name, text in data["samples"].items():
        if name != "prompt":
            console.print(f"  [bold]{name}[/bold]  {escape(repr(text))}", highlight=False, soft_wrap=True)
    console.print(f"\n{data['verdict']}", highlight=False)


def plot_distillation(data: dict[str, Any], path: Path, title: str) -> None:
    """Loss against the student's tokens, share of the gap closed, and what text alone gives for how much."""
    rows = {row["method"]: row for row in data["methods"]}
    teacher = next(row for row in data["models"] if row["model"] == "dense")["bits_per_byte"]["mean"]
    texts = [row for row in rows.values() if row["config"]["data_source"] == "teacher"]
    panels = 3 if texts else 2
    with new_figure(path, 4.3 * panels, 4.6, dpi=110) as figure:
        curves, bars, *queries = figure.subplots(1, panels)
        _curves(curves, data, teacher)
        _bars(bars, [row for name, row in rows.items() if name not in (ALONE, LONGER)])
        if texts:
            _queries(queries[0], texts, rows, teacher)
        figure.suptitle(title)


def _curves(panel: Axes, data: dict[str, Any], teacher: float) -> None:
    for name, style in STYLES.items():
        found = data["curves"].get(name, [])
        if found:
            values = np.array([curve["bits"] for curve in found])
            if len(found) > 1:
                panel.plot(found[0]["steps"], values.T, color=style["color"], linewidth=0.5, alpha=0.5)
            panel.plot(found[0]["steps"], values.mean(0), label=name, markersize=4, linewidth=1.5, **style)
    panel.axhline(teacher, color="black", linewidth=1)
    panel.annotate(
        "the teacher, at its end", (0.02, teacher), xycoords=("axes fraction", "data"), va="bottom"
    )
    panel.set_ylim(top=min(panel.get_ylim()[1], teacher + 1.5))
    panel.set_xlabel("optimizer steps of the student")
    panel.set_ylabel("validation bits per byte")
    panel.legend()


def _bars(panel: Axes, rows: list[dict[str, Any]]) -> None:
    rows = rows[::-1]
    means = np.array([row["gap_closed"]["mean"] for row in rows])
    deviations = [row["gap_closed"]["deviation"] or 0 for row in rows]
    panel.barh(range(len(rows)), means, xerr=deviations, color=LIGHT_GRAY, ecolor="black")
    left = max(means.min() - max(deviations), LEAST) - 0.05
    panel.set_xlim(left=left)
    for place, mean in enumerate(means):
        if mean < left:  # the others would be too small to see
            box = {"facecolor": LIGHT_GRAY, "edgecolor": "none", "pad": 1}  # in front of an error bar
            panel.annotate(f" {mean:.0%}", (left, place), va="center", bbox=box)
    panel.set_yticks(range(len(rows)), [row["method"] for row in rows])
    panel.axvline(0, color="black", linewidth=1)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(PercentFormatter(1))
    panel.set_xlabel("share of the gap to the teacher closed")


def _queries(
    panel: Axes, texts: list[dict[str, Any]], rows: dict[str, dict[str, Any]], teacher: float
) -> None:
    tokens = [row["config"]["teacher_tokens"] for row in texts]
    reached = [row["best"] for row in texts]
    deviations = [value["deviation"] or 0 for value in reached]
    panel.errorbar(
        tokens, [v["mean"] for v in reached], deviations, capsize=3, label="its text alone", **TEXT
    )
    for name in (ALONE, "logits"):
        if name in rows:
            style = {key: STYLES[name][key] for key in ("color", "linestyle")}
            panel.axhline(rows[name]["best"]["mean"], label=name, **style)
    panel.axhline(teacher, color="black", linewidth=1, label="the teacher")
    panel.set_xscale("log")
    panel.set_xticks(tokens)
    panel.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("bytes that the teacher wrote")
    panel.set_ylabel("validation bits per byte")
    panel.legend()
