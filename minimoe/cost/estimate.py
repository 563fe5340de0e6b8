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
    activation = activations(a, a.context, storage_precision)
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
        "bytes": asdict(footprint)
        | {
            "activations_per_token": activation.peak / a.context,
            "activations_peak_at": activation.peak_at,
        },
        "training": {"tokens": tokens, "flops": run.flops, "hours": run.hours, "dollars": run.dollars},
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
    gpus = NODES * GPUS_PER_NODE
    limited = a.top_groups is not None and a.top_groups < a.n_groups
    if not a.n_experts or a.n_experts % gpus or (limited and a.n_groups != NODES):
        return None
    bf16, fp8 = all_to_all(a, "bf16", n_nodes=NODES), all_to_all(a, "fp8", n_nodes=NODES)
    return {
        "nodes": NODES,
        "gpus": gpus,
        "other_nodes": bf16.destinations,
        "nvlink_forwards": nvlink_forwards(a, n_nodes=NODES),
        "bytes_per_token_and_layer": {"bf16": bf16.bytes, "fp8": fp8.bytes},
        "microseconds_per_token_and_layer": {"bf16": bf16.microseconds, "fp8": fp8.microseconds},
        "layers": a.n_moe_layers,
    }


def _roofline(a: Architecture, machine: Accelerator | Peaks, storage_precision: str) -> dict[str, Any]:
    """Seconds of the whole model and of its parts, by number of tokens, for forward pass and training."""
    result: dict[str, Any] = {"machine": "measured" if isinstance(machine, Peaks) else machine.name}
    if isinstance(machine, Peaks):
        result |= asdict(machine)
    for tokens in TOKENS:
        result[str(tokens)] = {}
        for name in ("forward", "training"):
            parts = roofline(
                a, tokens, machine, storage_precision=storage_precision, training=name == "training"
            )
            result[str(tokens)][name] = {
                "seconds": total(parts),
                "parts": {
                    p.name: {"layers": p.layers, "flops": p.flops, "bytes": p.bytes}
                    | {"seconds": p.seconds, "bound": p.bound}
                    for p in parts
                },
            }
    return result


def _published_run(a: Architecture, assumed_mfu: float) -> dict[str, Any] | None:
    """The published run, with the GPU-hours of pre-training that the assumed MFU predicts."""
    if a.name not in PUBLISHED_RUNS:
        return None
    run = PUBLISHED_RUNS[a.name]
    peak = ACCELERATORS[run.accelerator].bf16
    predicted = training_cost(a, run.tokens, peak=peak, mfu=assumed_mfu, price=run.price)
    derived = {"total_hours": run.total_hours, "dollars": run.dollars, "days": run.days, "mfu": run.mfu(a)}
    return asdict(run) | derived | {"predicted_hours": predicted.hours}
