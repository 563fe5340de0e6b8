"""The table of ``minimoe cost``: one model, or two side by side, and what was assumed."""

from typing import Any

from rich.console import Console

from minimoe.cost.estimate import TOKENS
from minimoe.reporting.tables import rich_table, si

Cost = dict[str, Any]

Rows = list[tuple[str, list[str]]]

NAMES = {
    "projections": "attention's projections",
    "scores": "attention itself",
    "router": "router",
    "shared": "shared expert",
    "routed": "routed experts",
    "dense": "dense network",
    "output": "output (once)",
}


def print_costs(found: list[Cost], console: Console) -> None:
    """Sections that say nothing of any of the models are left out."""
    made = rich_table("", ["", *(cost["name"] for cost in found)])
    for title, rows in (
        ("", _sizes(found)),
        ("training", _training(found)),
        ("published run", _published_run(found)),
        ("all-to-all on 64 GPUs of 8 nodes, a token and layer", _all_to_all(found)),
        (f"least µs of a layer forward, for {TOKENS[0]} and {TOKENS[1]:,} tokens", _roofline(found)),
    ):
        if rows and title:
            made.add_section()
            made.add_row(title, style="bold")
        for name, cells in rows:
            made.add_row(f"  {name}" if title else name, *cells)
    console.print(made)
    _print_assumed(found, console)


def _sizes(found: list[Cost]) -> Rows:
    n, flops, held = ([c[key] for c in found] for key in ("parameters", "flops_per_token", "bytes"))
    training = ("weights", "master", "gradients", "optimizer")
    return [
        ("parameters", [si(p["total"]) for p in n]),
        ("  that work on a token", [si(p["active"]) for p in n]),
        ("  of them embedding, output", [si(p["embedding"]) for p in n]),
        ("FLOPs a token, forward", [si(f["forward"]) for f in flops]),
        ("  in training", [si(f["training"]) for f in flops]),
        ("bytes of weights", [si(b["weights"]) for b in held]),
        ("  with masters, gradients, optimizer", [si(sum(b[part] for part in training)) for b in held]),
        ("cache, bytes a token", [si(b["cache_per_token"]) for b in held]),
        ("activations at the peak, bytes a token", [si(b["activations_per_token"]) for b in held]),
    ]


def _training(found: list[Cost]) -> Rows:
    runs = [c["training"] for c in found]
    return [
        ("FLOPs", [f"{r['flops']:.3g}" for r in runs]),
        ("card hours", [_amount(r["hours"]) for r in runs]),
        ("dollars", [_amount(r["dollars"]) for r in runs]),
    ]


def _published_run(found: list[Cost]) -> Rows:
    runs = [c["published_run"] for c in found]
    if not any(runs):
        return []
    shown = {
        "tokens": lambda r: si(r["tokens"]),
        "card hours, all stages": lambda r: si(r["total_hours"]),
        "  of pre-training, published / predicted": lambda r: (
            f"{si(next(iter(r['hours'].values())))} / {si(r['predicted_hours'])}"
        ),
        "dollars": lambda r: si(r["dollars"]),
        "days of pre-training on its cards": lambda r: (
            f"{r['days']:.0f} on {r['cards']:,} {r['accelerator']}"
        ),
        "share of the bf16 peak that implies": lambda r: f"{r['utilisation']:.1%}",
    }
    return [(name, ["" if r is None else show(r) for r in runs]) for name, show in shown.items()]


def _all_to_all(found: list[Cost]) -> Rows:
    sent = [c["all_to_all"] for c in found]
    if not any(sent):
        return []

    def travelled(s: Cost) -> str:
        return " / ".join(f"{b / 1e3:.0f}" for b in s["bytes_per_token_and_layer"].values())

    shown = {
        "other nodes, GPUs that it is passed on to": lambda s: (
            f"{s['other_nodes']:.2f}, {s['passed_on']:.2f}"
        ),
        "kB between nodes in training, bf16 / fp8": travelled,
    }
    return [(name, ["" if s is None else show(s) for s in sent]) for name, show in shown.items()]


def _roofline(found: list[Cost]) -> Rows:
    """A star where the bytes take the longer."""

    def seconds(parts: Cost) -> str:
        return _time(1e6 * parts["seconds"]) + ("*" if parts["bound"] == "bytes" else " ")

    limits = [[c["roofline"][str(tokens)]["forward"] for tokens in TOKENS] for c in found]
    rows: Rows = []
    for part, name in NAMES.items():
        cells = [[seconds(at["parts"][part]) for at in each if part in at["parts"]] for each in limits]
        if any(cells):
            rows.append((name, [" · ".join(cell) for cell in cells]))
    rows.append(
        ("all layers, ms", [" · ".join(f"{_time(1e3 * at['seconds'])} " for at in e) for e in limits])
    )
    return rows


def _amount(value: float) -> str:
    return si(value) if value >= 10 else f"{value:.2g}"


def _time(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _print_assumed(found: list[Cost], console: Console) -> None:
    first = found[0]["assumed"]
    contexts, kept = (" and ".join(_distinct(found, key)) for key in ("context", "keeping"))
    console.print(
        f"Assumed: {found[0]['training']['tokens']:.3g} tokens in contexts of {contexts}; numbers kept as "
        f"{kept}; {first['accelerator']} at {first['utilisation']:.0%} of its {si(first['peak'])}FLOP/s in "
        f"bf16; ${first['price']:g} a card and hour; all choices of experts equally likely. Activations are "
        "those of one context, with nothing recomputed but the experts' activation. Least times are by "
        f"{_machine(found[0])}, one layer on one device; * where bytes take longer than arithmetic. "
        "Research, failed runs and people are in none of it.",
        highlight=False,
    )
    for cost in found:
        run, source = cost["published_run"], cost["assumed"]["source"]
        if source:
            about = source if run is None else f"{source}; run: {run['source']}"
            console.print(f"{cost['name']}: {about}", highlight=False, style="dim")


def _machine(cost: Cost) -> str:
    machine = cost["roofline"]
    if machine["machine"] != "measured":
        return f"the datasheet of the {machine['machine']}"
    peaks = ", ".join(f"{si(peak)}FLOP/s in {dtype}" for dtype, peak in machine["flops"].items())
    return f"peaks measured here ({peaks}, {si(machine['bandwidth'])}B/s, threads: {machine['threads']})"


def _distinct(found: list[Cost], key: str) -> list[str]:
    values = dict.fromkeys(cost["assumed"][key] for cost in found)
    return [f"{value:,}" if isinstance(value, int) else value for value in values]
