"""Cost estimate: every cost that follows from a configuration, with its assumptions, as plain data."""

from dataclasses import asdict
from typing import Any

from minimoe.cost.activations import activations
from minimoe.cost.architecture import Architecture
from minimoe.cost.communication import GPUS_PER_NODE, all_to_all, nvlink_forwards
from minimoe.cost.memory import memory_footprint
from minimoe.cost.parameters import count, forward_flops, training_flops
from minimoe.cost.published import PUBLISHED_RUNS
from minimoe.cost.roofline import roofline, total
from minimoe.cost.training_run import ACCELERATORS, Accelerator, training_cost
from minimoe.tools.timing import Peaks

TOKENS = (1, 4096)  # of the roofline: a decoding step, and a forward pass over many tokens

NODES = 8  # of the all-to-all


def estimate(
    a: Architecture,
    *,
    storage_precision: str,
    tokens: float,
    accelerator: str,
    mfu: float,
    price: float,
    peaks: Peaks | None = None,
) -> dict[str, Any]:
    """Plain data. The roofline is the accelerator's, or that of measured ``peaks``.

    Raises:
        ValueError: an unknown accelerator or storage precision, or an invalid training run.
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(f"accelerator must be one of {', '.join(ACCELERATORS)}, not {accelerator!r}")
    n, footprint, gpu = count(a), memory_footprint(a, storage_precision), ACCELERATORS[accelerator]
    run = training_cost(a, tokens, peak=gpu.bf16, mfu=mfu, price=price)
    held = activations(a, a.context, storage_precision)
    activation_bytes = {"activations_per_token": held.peak / a.context, "activations_peak_at": held.peak_at}
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
        "bytes": asdict(footprint) | {"training": footprint.training} | activation_bytes,
        "training": asdict(run) | {"dollars": run.dollars},
        "all_to_all": _all_to_all(a),
        "roofline": _roofline(a, gpu if peaks is None else peaks, storage_precision),
        "published_run": _published_run(a, mfu),
        "assumed": {
            "context": a.context,
            "keeping": storage_precision,
            "accelerator": gpu.name,
            "peak": gpu.bf16,
            "memory": gpu.memory,
            "mfu": mfu,
            "price": price,
            "source": a.source,
        },
    }


def _all_to_all(a: Architecture) -> dict[str, Any] | None:
    """On the GPUs of all nodes; None if a model has no experts, or they are not divisible by the GPUs."""
    try:
        forwards = nvlink_forwards(a, n_nodes=NODES)
    except ValueError:
        return None
    costs = {dtype: all_to_all(a, dtype, n_nodes=NODES) for dtype in ("bf16", "fp8")}
    return {
        "nodes": NODES,
        "gpus": NODES * GPUS_PER_NODE,
        "other_nodes": costs["bf16"].destinations,
        "nvlink_forwards": forwards,
        "bytes_per_token_and_layer": {dtype: cost.bytes for dtype, cost in costs.items()},
        "microseconds_per_token_and_layer": {dtype: cost.microseconds for dtype, cost in costs.items()},
        "layers": a.n_moe_layers,
    }


def _roofline(a: Architecture, machine: Accelerator | Peaks, storage_precision: str) -> dict[str, Any]:
    """Seconds of the whole model and of its parts, by number of tokens, for forward pass and training."""

    def seconds(tokens: int, training: bool) -> dict[str, Any]:
        parts = roofline(a, tokens, machine, storage_precision=storage_precision, training=training)
        by_name = {p.name: asdict(p) | {"seconds": p.seconds, "bound": p.bound} for p in parts}
        return {"seconds": total(parts), "parts": by_name}

    about = (
        {"machine": "measured"} | asdict(machine) if isinstance(machine, Peaks) else {"machine": machine.name}
    )
    return about | {
        str(tokens): {"forward": seconds(tokens, False), "training": seconds(tokens, True)}
        for tokens in TOKENS
    }


def _published_run(a: Architecture, assumed_mfu: float) -> dict[str, Any] | None:
    """The published run, with the GPU-hours of pre-training that the assumed MFU predicts."""
    if a.name not in PUBLISHED_RUNS:
        return None
    run = PUBLISHED_RUNS[a.name]
    peak = ACCELERATORS[run.accelerator].bf16
    predicted = training_cost(a, run.tokens, peak=peak, mfu=assumed_mfu, price=run.price)
    derived = {name: getattr(run, name) for name in ("pretraining", "total_hours", "dollars", "days")}
    return asdict(run) | derived | {"mfu": run.mfu(a), "predicted_hours": predicted.hours}
