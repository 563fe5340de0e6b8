"""The table of ``minimoe bench``, from the same plain data that bench.json holds."""

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.padding import Padding

from minimoe.reporting.tables import rich_table

WIDE, NARROW = 96, ("least", "most", "peak")  # columns of a terminal; what a narrower one has no place for

LEGEND = (
    "~ so many rows' ratios are noisy by their own account: rounds disagree, or the two measurements, or the "
    "machine was slower than usual",
    "theory: the ratio predicted from operations, bytes and the measured peaks",
    "peak: what the first reached of the rate that binds it, arithmetic's or memory's (from a cache more)",
    "bytes: kept for the backward pass; in quantise, weights and reading those of the result or model",
)


def print_bench(data: dict[str, Any], console: Console) -> None:
    """Ratios by suite and group, what they say, and what they were measured on."""
    headings = ["", "rows", "noisy", "times", "least", "most", "theory", "peak", "bytes"]
    shown = [i for i, name in enumerate(headings) if console.width >= WIDE or name not in NARROW]
    made = rich_table(
        "Times as long as what it is compared with (geometric mean of the rows)",
        [headings[i] for i in shown],
    )
    by_group = groupby(data["summary"], key=lambda row: (row["suite"], row["group"], row["dtype"]))
    for (suite, group, dtype), rows in by_group:
        made.add_row(f"{suite}: {group}" + ("" if dtype == "float32" else f", {dtype}"), style="bold")
        for row in rows:
            cells = _cells(row)
            made.add_row(*(cells[i] for i in shown))
    console.print(made)
    for line in LEGEND:
        console.print(line, style="dim")
    console.print()
    for suite, said in data["sentences"].items():
        console.print(f"[bold]{suite}[/bold]")
        for sentence in said:
            console.print(Padding(sentence, (0, 0, 0, 2)), highlight=False)
    if data["training"] is not None:
        console.print("[bold]training by loss[/bold]")
        console.print(Padding(data["training"]["verdict"], (0, 0, 0, 2)), highlight=False)
    console.print(f"\n{about(data)}", highlight=False)


def _cells(row: dict[str, Any]) -> list[str]:
    noisy = "~" if row["noisy"] else ""
    return [
        f"  {row['task']} / {row['against']}",
        f"{row['rows']}",
        f"~{row['noisy']}" if row["noisy"] else "",
        "" if row["mean"] is None else f"{noisy}{row['mean']:.2f}",
        *(_number(row[key]) for key in ("least", "largest", "predicted")),
        "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}",
        _number(row["memory"]),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def about(data: dict[str, Any]) -> str:
    """Peaks, machine, threads, versions."""
    machine, peaks = data["machine"], data["peaks"]
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in peaks["flops"].items())
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"Measured peaks: {rates}, {peaks['bandwidth'] / 1e9:.1f} GB/s. {machine['processor']} "
        f"({machine['device']}), {threads}; minimoe {data['version']}, torch {machine['torch']}, Python "
        f"{machine['python']}; {len(data['records'])} records in {data['seconds']:.0f} s."
    )
