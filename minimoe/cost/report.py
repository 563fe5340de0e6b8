"""The table of ``minimoe cost``, for one model or two side by side, and the assumptions behind it."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from minimoe.cost.estimate import TOKENS
from minimoe.reporting.tables import rich_table, si

Estimate = dict[str, Any]

Rows = list[tuple[str, list[str]]]

PARTS = {
    "projections": "attention projections",
    "scores": "attention scores and values",
    "router": "router",
    "shared": "shared expert",
    "routed": "routed experts",
    "dense": "dense network",
    "output": "output (once)",
}

RowFormats = dict[str, Callable[[Any], str]]  # by the row's name

SIZES: RowFormats = {
    "parameters": lambda e: si(e["parameters"]["total"]),
    "  active": lambda e: si(e["parameters"]["active"]),
    "  of these embedding and output": lambda e: si(e["parameters"]["embedding"]),
    "FLOPs per token, forward": lambda e: si(e["flops_per_token"]["forward"]),
    "  training": lambda e: si(e["flops_per_token"]["training"]),
    "bytes of weights": lambda e: si(e["bytes"]["weights"]),
    "  with gradients and optimizer states": lambda e: si(e["bytes"]["training"]),
    "KV cache, bytes per token": lambda e: si(e["bytes"]["cache_per_token"]),
    "peak activations, bytes per token": lambda e: si(e["bytes"]["activations_per_token"]),
}

TRAINING: RowFormats = {
    "FLOPs": lambda run: f"{run['flops']:.3g}",
    "GPU-hours": lambda run: _amount(run["hours"]),
    "dollars": lambda run: _amount(run["dollars"]),
}

PUBLISHED_RUN: RowFormats = {
    "tokens": lambda run: si(run["tokens"]),
    "GPU-hours, all stages": lambda run: si(run["total_hours"]),
    "  pre-training, published / predicted": lambda run: (
        f"{si(run['pretraining'])} / {si(run['predicted_hours'])}"
    ),
    "dollars": lambda run: si(run["dollars"]),
    "days of pre-training": "{days:.0f} on {gpus:,} {accelerator}".format_map,
    "MFU these imply, of the bf16 peak": "{mfu:.1%}".format_map,
}

ALL_TO_ALL: RowFormats = {
    "other nodes, NVLink forwards": "{other_nodes:.2f}, {nvlink_forwards:.2f}".format_map,
    "kB in training, bf16 / fp8 dispatch": lambda cost: " / ".join(
        f"{b / 1e3:.0f}" for b in cost["bytes_per_token_and_layer"].values()
    ),
}


def print_costs(estimates: list[Estimate], console: Console) -> None:
    """Print the table, without the sections that apply to none of the models."""
    table = rich_table("", ["", *(estimate["name"] for estimate in estimates)])
    for title, rows in {
        "": _rows(estimates, SIZES),
        "training": _rows([e["training"] for e in estimates], TRAINING),
        "published run": _rows([e["published_run"] for e in estimates], PUBLISHED_RUN),
        "all-to-all per token per layer, 8 nodes": _rows([e["all_to_all"] for e in estimates], ALL_TO_ALL),
        f"forward µs per layer: {TOKENS[0]} · {TOKENS[1]:,} tokens": _roofline(estimates),
    }.items():
        if rows and title:
            table.add_section()
            table.add_row(title, style="bold")
        for name, cells in rows:
            table.add_row(f"  {name}" if title else name, *cells)
    console.print(table)
    _print_assumptions(estimates, console)


def _rows(entries: list[Any], formats: RowFormats) -> Rows:
    """The rows of one section, whose entry is None for a model to which it does not apply."""
    if not any(entries):
        return []
    return [(name, ["" if e is None else show(e) for e in entries]) for name, show in formats.items()]


def _roofline(estimates: list[Estimate]) -> Rows:
    """A star marks what is memory-bound."""

    def microseconds(part: dict[str, Any]) -> str:
        return _time(1e6 * part["seconds"]) + ("*" if part["bound"] == "memory" else " ")

    forward = [[e["roofline"][str(tokens)]["forward"] for tokens in TOKENS] for e in estimates]
    rows: Rows = []
    for part, name in PARTS.items():
        cells = [[microseconds(at["parts"][part]) for at in both if part in at["parts"]] for both in forward]
        if any(cells):
            rows.append((name, [" · ".join(cell) for cell in cells]))
    model = [" · ".join(f"{_time(1e3 * at['seconds'])} " for at in both) for both in forward]
    return [*rows, ("all layers, ms", model)]


def _amount(value: float) -> str:
    return si(value) if value >= 10 else f"{value:.2g}"


def _time(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _print_assumptions(estimates: list[Estimate], console: Console) -> None:
    first = estimates[0]["assumed"]
    contexts = " and ".join(dict.fromkeys(f"{e['assumed']['context']:,}" for e in estimates))
    precisions = " and ".join(dict.fromkeys(e["assumed"]["keeping"] for e in estimates))
    console.print(
        f"Assumptions: {estimates[0]['training']['tokens']:.3g} tokens in contexts of {contexts}; storage "
        f"precision {precisions}; {first['accelerator']} at {first['mfu']:.0%} of its {si(first['peak'])}"
        f"FLOP/s in bf16; ${first['price']:g} per GPU-hour; all choices of experts equally likely. "
        "Activations are for one context; only the experts' activation function is recomputed. All-to-all "
        "is between 8 nodes of 8 GPUs. Times are the roofline's lower bounds for one device, from "
        f"{_machine(estimates[0])}; * marks memory-bound parts. "
        "Research, failed runs and salaries are not included.",
        highlight=False,
    )
    for estimate in estimates:
        run, source = estimate["published_run"], estimate["assumed"]["source"]
        if source:
            sources = source if run is None else f"{source}; run: {run['source']}"
            console.print(f"{estimate['name']}: {sources}", highlight=False, style="dim")


def _machine(estimate: Estimate) -> str:
    machine = estimate["roofline"]
    if machine["machine"] != "measured":
        return f"the datasheet of the {machine['machine']}"
    peaks = ", ".join(f"{si(peak)}FLOP/s in {dtype}" for dtype, peak in machine["flops"].items())
    return f"peaks measured here ({peaks}, {si(machine['bandwidth'])}B/s, threads: {machine['threads']})"
