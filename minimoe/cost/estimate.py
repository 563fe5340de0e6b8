"""All that a configuration says of a model's cost, as plain data, with what was assumed for it."""

from dataclasses import asdict
from typing import Any

from minimoe.cost.activations import activations
from minimoe.cost.architecture import Architecture
from minimoe.cost.communication import all_to_all, passed_on
from minimoe.cost.memory import memory_footprint
from minimoe.cost.parameters import count, forward_flops, training_flops
from minimoe.cost.published import PUBLISHED_RUNS
from minimoe.cost.roofline import roofline, total
from minimoe.cost.training_run import ACCELERATORS, Accelerator, bill
from minimoe.tools.timing import Peaks

TOKENS = (1, 4096)  # of the roofline: one being written, many being read

NODES, NODE = 8, 8  # of the all-to-all: nodes, and GPUs of each


def estimate(
    a: Architecture,
    *,
    keeping: str,
    tokens: float,
    accelerator: str,
    utilisation: float,
    price: float,
    here: Peaks | None = None,
) -> dict[str, Any]:
    """Plain data. The roofline is the accelerator's, or with ``here`` that of measured peaks.

    Raises:
        ValueError: an unknown accelerator or way to keep numbers, or a bill that cannot be.
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(f"accelerator must be one of {', '.join(ACCELERATORS)}, not {accelerator!r}")
    n, bytes_, card = count(a), memory_footprint(a, keeping), ACCELERATORS[accelerator]
    run = bill(a, tokens, peak=card.bf16, utilisation=utilisation, price=price)
    held = activations(a, a.context, keeping)
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
        "bytes": asdict(bytes_)
        | {"activations_per_token": held.peak / a.context, "activations_peak_at": held.at},
        "training": {"tokens": tokens, "flops": run.flops, "hours": run.hours, "dollars": run.dollars},
        "all_to_all": _all_to_all(a),
        "roofline": _roofline(a, card if here is None else here, keeping),
        "published_run": _published_run(a, utilisation),
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


def _all_to_all(a: Architecture) -> dict[str, Any] | None:
    """On 64 GPUs in 8 nodes; None where a model has no experts, or they do not divide."""
    grouped = a.top_groups is not None and a.top_groups < a.n_groups
    if not a.n_experts or a.n_experts % (NODES * NODE) or (grouped and a.n_groups != NODES):
        return None
    sent = {
        dispatch_dtype: all_to_all(a, dispatch_dtype, n_nodes=NODES) for dispatch_dtype in ("bf16", "fp8")
    }
    return {
        "nodes": NODES,
        "gpus": NODES * NODE,
        "other_nodes": sent["bf16"].pairs,
        "passed_on": passed_on(a, n_nodes=NODES, node=NODE),
        "bytes_per_token_and_layer": {dispatch_dtype: each.bytes for dispatch_dtype, each in sent.items()},
        "microseconds_per_token_and_layer": {
            dispatch_dtype: each.microseconds for dispatch_dtype, each in sent.items()
        },
        "layers": a.n_mixtures,
    }


def _roofline(a: Architecture, machine: Accelerator | Peaks, keeping: str) -> dict[str, Any]:
    """By number of tokens: the parts of the forward pass, of training, and the seconds of all."""
    found: dict[str, Any] = {"machine": "measured" if isinstance(machine, Peaks) else machine.name}
    if isinstance(machine, Peaks):
        found |= asdict(machine)
    for tokens in TOKENS:
        ways = {
            "forward": roofline(a, tokens, machine, keeping=keeping),
            "training": roofline(a, tokens, machine, keeping=keeping, training=True),
        }
        found[str(tokens)] = {
            way: {
                "seconds": total(parts),
                "parts": {
                    p.name: {"layers": p.layers, "flops": p.flops, "bytes": p.bytes}
                    | {"seconds": p.seconds, "bound": p.bound}
                    for p in parts
                },
            }
            for way, parts in ways.items()
        }
    return found


def _published_run(a: Architecture, share: float) -> dict[str, Any] | None:
    """With the hours of pre-training that the assumed share of its cards' peak predicts."""
    if a.name not in PUBLISHED_RUNS:
        return None
    run = PUBLISHED_RUNS[a.name]
    peak = ACCELERATORS[run.accelerator].bf16
    predicted = bill(a, run.tokens, peak=peak, utilisation=share, price=run.price)
    own = {"total_hours": run.total_hours, "dollars": run.dollars, "days": run.days}
    return asdict(run) | own | {"utilisation": run.utilisation(a), "predicted_hours": predicted.hours}
