"""The tables of ``minimoe cost``, and the same as plain data."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from minimoe.cost.architecture import Architecture
from minimoe.cost.bill import ACCELERATORS, bill
from minimoe.cost.bytes import kept
from minimoe.cost.counting import count, forward_flops, training_flops
from minimoe.report import si, table


def figures(
    a: Architecture, *, keeping: str, tokens: float, accelerator: str, utilisation: float, price: float
) -> dict[str, Any]:
    """All that the configuration says of a model's cost, and what was assumed for it."""
    if accelerator not in ACCELERATORS:
        raise ValueError(f"accelerator must be one of {', '.join(ACCELERATORS)}, not {accelerator!r}")
    n, bytes_, card = count(a), kept(a, keeping), ACCELERATORS[accelerator]
    run = bill(a, tokens, peak=card.bf16, utilisation=utilisation, price=price)
    return {
        "name": a.name,
        "parameters": {
            "total": n.total,
            "active": n.active,
            "embedding": n.embedding + n.output,
            "attention": n.attention,
            "feed_forward": n.dense + n.shared + n.routed,
            "router": n.router,
        },
        "flops_per_token": {"forward": forward_flops(a), "training": training_flops(a)},
        "bytes": {
            "weights": bytes_.weights,
            "master": bytes_.master,
            "gradients": bytes_.gradients,
            "optimizer": bytes_.optimizer,
            "cache_per_token": bytes_.cache_per_token,
        },
        "training": {"tokens": tokens, "flops": run.flops, "hours": run.hours, "dollars": run.dollars},
        "assumed": {
            "context": a.context,
            "keeping": keeping,
            "accelerator": card.name,
            "peak": card.bf16,
            "memory": card.memory,
            "utilisation": utilisation,
            "price": price,
            "source": a.source,
        },
    }


def print_costs(found: list[dict[str, Any]], console: Console) -> None:
    """One model, or two side by side, and what was assumed."""
    made = table("", ["", *(cost["name"] for cost in found)])
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("parameters", lambda c: si(c["parameters"]["total"])),
        ("  that work on a token", lambda c: si(c["parameters"]["active"])),
        ("  of them embedding, output", lambda c: si(c["parameters"]["embedding"])),
        ("FLOPs a token, forward", lambda c: si(c["flops_per_token"]["forward"])),
        ("  in training", lambda c: si(c["flops_per_token"]["training"])),
        ("bytes of weights", lambda c: si(c["bytes"]["weights"])),
        ("  with masters, gradients, optimizer", lambda c: si(_training_bytes(c))),
        ("cache, bytes a token", lambda c: si(c["bytes"]["cache_per_token"])),
        ("training, FLOPs", lambda c: f"{c['training']['flops']:.3g}"),
        ("  card hours", lambda c: si(c["training"]["hours"])),
        ("  dollars", lambda c: si(c["training"]["dollars"])),
    ]
    for name, shown in rows:
        made.add_row(name, *(shown(cost) for cost in found))
    console.print(made)
    assumed = found[0]["assumed"]
    contexts = " and ".join(f"{cost['assumed']['context']:,}" for cost in found)
    console.print(
        f"Assumed: {found[0]['training']['tokens']:.3g} tokens in contexts of {contexts}; numbers kept as "
        f"{assumed['keeping']}; {assumed['accelerator']} at {assumed['utilisation']:.0%} of its "
        f"{si(assumed['peak'])}FLOP/s in bf16; ${assumed['price']:g} a card and hour. Activations, research, "
        "failed runs and people are in none of it.",
        highlight=False,
    )
    for cost in found:
        console.print(f"{cost['name']}: {cost['assumed']['source']}", highlight=False, style="dim")


def _training_bytes(cost: dict[str, Any]) -> float:
    return sum(cost["bytes"][part] for part in ("weights", "master", "gradients", "optimizer"))
