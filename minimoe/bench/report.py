"""[evidence] The table of ``minimoe bench``, from the plain data of bench.json."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.padding import Padding

from minimoe.reporting.tables import rich_table

WIDE, NARROW = 96, ("min", "max", "peak")  # columns of a terminal; headings that a narrower one leaves out

LEGEND = {
    "noisy": "number of rows whose rounds or two measurements disagree, or during which the machine was slow",
    "theory": "ratio predicted from FLOPs, bytes and measured peaks",
    "peak": "share of the compute or memory peak that the candidate reaches (above 100% from a cache)",
    "bytes": "ratio of bytes kept for the backward pass (quantize: of the result; weights, forward pass: of "
    "the model)",
}


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "": "  {task} / {against}".format_map,
    "rows": "{rows}".format_map,
    "noisy": lambda row: f"~{row['noisy']}" if row["noisy"] else "",
    "time": lambda row: "" if row["mean"] is None else f"{'~' if row['noisy'] else ''}{row['mean']:.2f}",
    "min": lambda row: _number(row["least"]),
    "max": lambda row: _number(row["largest"]),
    "theory": lambda row: _number(row["predicted"]),
    "peak": lambda row: "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}",
    "bytes": lambda row: _number(row["memory"]),
}


def print_bench(data: dict[str, Any], console: Console) -> None:
    """Print the ratios by suite and group, the sentences, and the machine."""
    hidden = () if console.width >= WIDE else NARROW
    columns = {name: show for name, show in COLUMNS.items() if name not in hidden}
    table = rich_table("Time relative to the baseline (geometric mean of the rows)", list(columns))
    by_group = groupby(data["summary"], key=lambda row: (row["suite"], row["group"], row["dtype"]))
    for (suite, group, dtype), rows in by_group:
        table.add_row(f"{suite}: {group}" + ("" if dtype == "float32" else f", {dtype}"), style="bold")
        for row in rows:
            table.add_row(*(show(row) for show in columns.values()))
    console.print(table)
    for name, meaning in LEGEND.items():
        if name not in hidden:
            console.print(f"{name}: {meaning}", style="dim")
    console.print()
    training = {} if data["training"] is None else {"training by loss": [data["training"]["verdict"]]}
    for subject, sentences in (data["sentences"] | training).items():
        console.print(f"[bold]{subject}[/bold]")
        for sentence in sentences:
            console.print(Padding(sentence, (0, 0, 0, 2)), highlight=False)
    console.print(f"\n{describe_run(data)}", highlight=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def describe_threads(machine: dict[str, Any]) -> str:
    return "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"


def describe_run(data: dict[str, Any]) -> str:
    """Peaks, machine, threads, versions."""
    machine, peaks = data["machine"], data["peaks"]
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in peaks["flops"].items())
    return (
        f"Measured peaks: {rates}, {peaks['bandwidth'] / 1e9:.1f} GB/s. {machine['processor']} "
        f"({machine['device']}), {describe_threads(machine)}; minimoe {data['version']}, torch "
        f"{machine['torch']}, Python {machine['python']}; {len(data['records'])} records in "
        f"{data['seconds']:.0f} s."
    )
