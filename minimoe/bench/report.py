"""[evidence] The table of ``minimoe bench``, from the plain data of bench.json."""

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


def print_bench(data: dict[str, Any], console: Console) -> None:
    """Print the ratios by suite and group, the sentences, and the machine."""
    headings = ["", "rows", "noisy", "time", "min", "max", "theory", "peak", "bytes"]
    hidden = () if console.width >= WIDE else NARROW
    shown = [i for i, name in enumerate(headings) if name not in hidden]
    title = "Time relative to the baseline (geometric mean of the rows)"
    table = rich_table(title, [headings[i] for i in shown])
    by_group = groupby(data["summary"], key=lambda row: (row["suite"], row["group"], row["dtype"]))
    for (suite, group, dtype), rows in by_group:
        table.add_row(f"{suite}: {group}" + ("" if dtype == "float32" else f", {dtype}"), style="bold")
        for row in rows:
            cells = _cells(row)
            table.add_row(*(cells[i] for i in shown))
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
