"""The table of ``minimoe cost``, for one model or two side by side, and the assumptions behind it."""

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


def print_costs(estimates: list[Estimate], console: Console) -> None:
    """Print the table, without the sections that apply to none of the models."""
    table = rich_table("", ["", *(estimate["name"] for estimate in estimates)])
    for title, rows in (
        ("", _sizes(estimates)),
        ("training", _training(estimates)),
        ("published run", _published_run(estimates)),
        ("all-to-all per token per layer, 8 nodes", _all_to_all(estimates)),
        (
            f"forward µs per layer: {TOKENS[0]} · {TOKENS[1]:,} tokens",
            _roofline(estimates),
        ),
    ):
        if rows and title:
            table.add_section()
            table.add_row(title, style="bold")
        for name, cells in rows:
            table.add_row(f"  {name}" if title else name, *cells)
    console.print(table)
    _print_assumptions(estimates, console)


def _sizes(estimates: list[Estimate]) -> Rows:
    n, flops, memory = ([e[key] for e in estimates] for key in ("parameters", "flops_per_token", "bytes"))
    training = ("weights", "master", "gradients", "optimizer")
    return [
        ("parameters", [si(p["total"]) for p in n]),
        ("  active", [si(p["active"]) for p in n]),
        ("  of these embedding and output", [si(p["embedding"]) for p in n]),
        ("FLOPs per token, forward", [si(f["forward"]) for f in flops]),
        ("  training", [si(f["training"]) for f in flops]),
        ("bytes of weights", [si(b["weights"]) for b in memory]),
        ("  with gradients and optimizer states", [si(sum(b[part] for part in training)) for b in memory]),
        ("KV cache, bytes per token", [si(b["cache_per_token"]) for b in memory]),
        ("peak activations, bytes per token", [si(b["activations_per_token"]) for b in memory]),
    ]


def _training(estimates: list[Estimate]) -> Rows:
    runs = [e["training"] for e in estimates]
    return [
        ("FLOPs", [f"{r['flops']:.3g}" for r in runs]),
        ("GPU-hours", [_amount(r["hours"]) for r in runs]),
        ("dollars", [_amount(r["dollars"]) for r in runs]),
    ]


def _published_run(estimates: list[Estimate]) -> Rows:
    runs = [e["published_run"] for e in estimates]
    if not any(runs):
        return []
    rows = {
        "tokens": lambda r: si(r["tokens"]),
        "GPU-hours, all stages": lambda r: si(r["total_hours"]),
        "  pre-training, published / predicted": lambda r: (
            f"{si(next(iter(r['hours'].values())))} / {si(r['predicted_hours'])}"
        ),
        "dollars": lambda r: si(r["dollars"]),
        "days of pre-training": lambda r: f"{r['days']:.0f} on {r['gpus']:,} {r['accelerator']}",
        "MFU these imply, of the bf16 peak": lambda r: f"{r['mfu']:.1%}",
    }
    return [(name, ["" if r is None else show(r) for r in runs]) for name, show in rows.items()]


def _all_to_all(estimates: list[Estimate]) -> Rows:
    costs = [e["all_to_all"] for e in estimates]
    if not any(costs):
        return []
    rows = {
        "other nodes, NVLink forwards": lambda c: f"{c['other_nodes']:.2f}, {c['nvlink_forwards']:.2f}",
        "kB in training, bf16 / fp8 dispatch": lambda c: " / ".join(
            f"{b / 1e3:.0f}" for b in c["bytes_per_token_and_layer"].values()
        ),
    }
    return [(name, ["" if c is None else show(c) for c in costs]) for name, show in rows.items()]


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
    contexts, precisions = (" and ".join(_distinct(estimates, key)) for key in ("context", "keeping"))
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


def _distinct(estimates: list[Estimate], key: str) -> list[str]:
    values = dict.fromkeys(estimate["assumed"][key] for estimate in estimates)
    return [f"{value:,}" if isinstance(value, int) else value for value in values]
