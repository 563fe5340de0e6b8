"""[evidence] Tables and figure of the distillation experiment, from the plain data in distillation.json."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, PercentFormatter
from rich.console import Console
from rich.markup import escape

from minimoe.experiments.distillation.setup import ALONE, LONGER
from minimoe.reporting.figures import BLUE, DARK_GRAY, GREEN, LIGHT_GRAY, PINK, SKY_BLUE, VERMILLION
from minimoe.reporting.statistics import describe_seeds, format_spread
from minimoe.reporting.tables import TextTable, print_table, si

STYLES: dict[str, dict[str, Any]] = {
    ALONE: {"color": DARK_GRAY, "linestyle": ":", "marker": "^"},
    "logits": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "logits and labels": {"color": SKY_BLUE, "linestyle": "--", "marker": "s"},
    "top-4": {"color": GREEN, "linestyle": "-.", "marker": "D"},
    "on-policy": {"color": PINK, "linestyle": "--", "marker": "x"},
}

TEXT_STYLE: dict[str, Any] = {"color": VERMILLION, "linestyle": "-", "marker": "v"}

LOWEST = -1.0  # fraction of the gap below which a bar is cut off, and labeled


def tables(detail: dict[str, Any]) -> list[TextTable]:
    """The models, the students by method, and their bits per byte by domain."""
    models = [
        [
            row["model"],
            f"{row['parameters']:,}",
            f"{row['megabytes']:.2f}",
            si(row["flops_per_token"]),
            f"{row['tokens_per_second']:,.0f}",
            "" if row["training"] is None else f"{row['training']:.1f}x",
            format_spread(row["bits_per_byte"], ".3f"),
        ]
        for row in detail["models"]
    ]
    domains = [name for name in detail["methods"][0]["bits_per_byte"] if name != "all"]
    formats = {"best": ".3f", "gap_closed": ".0%", "agreement": ".0%", "divergence": ".3f"}
    students, by_domain = [], []
    for row in detail["methods"]:
        lead = row["lead_at_equal_compute"]
        figures = [format_spread(row[name], spec) for name, spec in formats.items()]
        figures += [f"{row['compute']:.1f}x", "" if lead is None else format_spread(lead, ".3f")]
        students.append([row["method"], *figures])
        bits = (format_spread(row["bits_per_byte"][domain], ".3f") for domain in domains)
        by_domain.append([row["method"], *bits])
    return [
        TextTable(
            "models",
            "The models. FLOPs/token and tokens/s are those of generation, 16 texts at a time; training is "
            "relative to the student without a teacher.",
            ["model", "parameters", "MB", "FLOPs/token", "tokens/s", "training", "bits/byte"],
            models,
        ),
        TextTable(
            "students",
            f"The students ({describe_seeds(detail['seeds'])}). Bits/byte: at the best evaluation. Gap: "
            "the fraction closed of the gap to the teacher. Agrees: how often the student's most likely "
            "byte is the teacher's. FLOPs: relative to the student without a teacher. Lead: in bits per "
            "byte, over the student without a teacher that spent as many FLOPs.",
            ["method", "bits/byte", "gap", "agrees", "KL", "FLOPs", "lead"],
            students,
        ),
        TextTable("domains", "Validation bits per byte at the end.", ["method", *domains], by_domain),
    ]


def print_distillation(detail: dict[str, Any], console: Console) -> None:
    """Print the tables, the generated samples and the verdict."""
    for table in tables(detail):
        print_table(table, console)
    console.print(f"Continuations of {detail['samples']['prompt']!r}:", highlight=False, markup=False)
    for name, text in detail["samples"].items():
        if name != "prompt":
            console.print(f"  [bold]{name}[/bold]  {escape(repr(text))}", highlight=False, soft_wrap=True)
    console.print(f"\n{detail['verdict']}", highlight=False)


def draw(figure: Figure, detail: dict[str, Any]) -> None:
    """Loss curves, fractions of the gap closed, and bits per byte against the amount of teacher text."""
    rows = {row["method"]: row for row in detail["methods"]}
    teacher = next(row for row in detail["models"] if row["model"] == "dense")["bits_per_byte"]["mean"]
    texts = [row for row in rows.values() if row["config"]["data_source"] == "teacher"]
    curves, bars, *text = figure.subplots(1, 3 if texts else 2)
    _draw_curves(curves, detail, teacher)
    _draw_gaps(bars, [row for name, row in rows.items() if name not in (ALONE, LONGER)])
    if texts:
        _draw_text_amounts(text[0], texts, rows, teacher)


def _draw_curves(axes: Axes, detail: dict[str, Any], teacher: float) -> None:
    for name, style in STYLES.items():
        curves = detail["curves"].get(name, [])
        if curves:
            steps, bits = curves[0]["steps"], np.array([curve["bits"] for curve in curves])
            if len(curves) > 1:
                axes.plot(steps, bits.T, color=style["color"], linewidth=0.5, alpha=0.5)
            axes.plot(steps, bits.mean(0), label=name, markersize=4, linewidth=1.5, **style)
    axes.axhline(teacher, color="black", linewidth=1)
    axes.annotate("trained teacher", (0.02, teacher), xycoords=("axes fraction", "data"), va="bottom")
    axes.set_ylim(top=min(axes.get_ylim()[1], teacher + 1.5))
    axes.set(xlabel="optimizer steps of the student", ylabel="validation bits per byte")
    axes.legend()


def _draw_gaps(axes: Axes, rows: list[dict[str, Any]]) -> None:
    rows = rows[::-1]
    means = np.array([row["gap_closed"]["mean"] for row in rows])
    deviations = [row["gap_closed"]["deviation"] or 0 for row in rows]
    axes.barh(range(len(rows)), means, xerr=deviations, color=LIGHT_GRAY, ecolor="black")
    left = max(means.min() - max(deviations), LOWEST) - 0.05  # lower, the other bars would be too small
    axes.set_xlim(left=left)
    for y, mean in enumerate(means):
        if mean < left:
            box = {"facecolor": LIGHT_GRAY, "edgecolor": "none", "pad": 1}  # in front of an error bar
            axes.annotate(f" {mean:.0%}", (left, y), va="center", bbox=box)
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.axvline(0, color="black", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("fraction of the gap to the teacher closed")


def _draw_text_amounts(
    axes: Axes, texts: list[dict[str, Any]], rows: dict[str, dict[str, Any]], teacher: float
) -> None:
    amounts = [row["config"]["teacher_tokens"] for row in texts]
    means = [row["best"]["mean"] for row in texts]
    deviations = [row["best"]["deviation"] or 0 for row in texts]
    axes.errorbar(amounts, means, deviations, capsize=3, label="teacher text alone", **TEXT_STYLE)
    for name in (ALONE, "logits"):
        if name in rows:
            style = {key: STYLES[name][key] for key in ("color", "linestyle")}
            axes.axhline(rows[name]["best"]["mean"], label=name, **style)
    axes.axhline(teacher, color="black", linewidth=1, label="the teacher")
    axes.set_xscale("log")
    axes.set_xticks(amounts)
    axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="bytes of teacher text", ylabel="validation bits per byte")
    axes.legend()
