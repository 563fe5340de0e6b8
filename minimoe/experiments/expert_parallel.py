"""The claim about moving data: bytes between processes, counted by their meter, and a step's time."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from matplotlib.figure import Figure

from minimoe.distributed.spawn import run_processes
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured, Untestable
from minimoe.models.config import ModelConfig
from minimoe.moe import Meter, MoE, Routing, expert_parallel_
from minimoe.moe.expert_parallel.row_format import DispatchDtype
from minimoe.reporting.figures import BLUE

PROCESSES, TOKENS = 4, 512

LAYER = ModelConfig(dim=256, n_experts=64, top_k=8, expert_dim=64, n_groups=PROCESSES)

WAYS: dict[str, tuple[int | None, DispatchDtype]] = {
    "free, bf16": (None, "bf16"),
    "free, fp8": (None, "fp8"),
    "limited, bf16": (2, "bf16"),
    "limited, fp8": (2, "fp8"),
}


def steps(rounds: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """In every process: forward and backward of the layer in every way, in turns. Bytes that this process
    sent in a step, and the median seconds of each repeat."""
    tasks, meters = {}, {}
    for name, (top_groups, dispatch_dtype) in WAYS.items():
        tasks[name], meters[name] = metered_step(replace(LAYER, top_groups=top_groups), dispatch_dtype)
        tasks[name]()
    sent = {name: [float(meter.bytes.total())] for name, meter in meters.items()}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        taken: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name, task in tasks.items():
                dist.barrier()
                begin = time.perf_counter()
                task()
                taken[name].append(time.perf_counter() - begin)
        for name, values in taken.items():
            seconds[name].append(statistics.median(values))
    return {"bytes": sent, "seconds": seconds}


def metered_step(config: ModelConfig, dispatch_dtype: DispatchDtype) -> tuple[Callable[[], Routing], Meter]:
    """Forward and backward of a layer on this process's tokens, and the meter of what that sends."""
    torch.manual_seed(0)
    layer = MoE(
        config.dim, config.expert_dim, config.n_experts, config.top_k,
        n_groups=config.n_groups, top_groups=config.top_groups,
    )  # fmt: skip
    torch.nn.init.normal_(layer.gate.weight)
    meter = Meter()
    expert_parallel_(layer, dispatch_dtype=dispatch_dtype, meter=meter)
    x = torch.randn(TOKENS, config.dim, generator=torch.Generator().manual_seed(1 + dist.get_rank()))
    x.requires_grad_()

    def run() -> Routing:
        y, routing = layer(x)
        y.square().sum().backward()
        return routing

    return run, meter


def measure(context: RunContext) -> Measured:
    if not (dist.is_available() and dist.is_gloo_available()):
        raise Untestable("torch was built without gloo here, so that processes cannot talk to each other")
    found = run_processes(steps, PROCESSES, context.pick(5, 15), context.seeds)
    sent = {name: sum(each["bytes"][name][0] for each in found) for name in WAYS}
    # A step is over when the last process has done it.
    seconds = {
        name: [max(each["seconds"][name][i] for each in found) for i in range(context.seeds)] for name in WAYS
    }
    free, best = "free, bf16", "limited, fp8"
    return Measured(
        {
            "bytes": [sent[best] / sent[free]],
            "seconds": [ours / theirs for ours, theirs in zip(seconds[best], seconds[free], strict=True)],
            **{f"kB a token, {name}": [value / 1e3 / (PROCESSES * TOKENS)] for name, value in sent.items()},
            **{f"ms, {name}": [1e3 * s for s in values] for name, values in seconds.items()},
        },
        {"kilobytes": {n: v / 1e3 / (PROCESSES * TOKENS) for n, v in sent.items()}, "seconds": seconds},
        f"A layer of {LAYER.n_experts} experts, {LAYER.top_k} a token, width {LAYER.dim}, on {PROCESSES} "
        f"processes of this machine with {TOKENS} tokens each, forward and backward: every process free to "
        f"be visited in bf16, against at most 2 of {PROCESSES} in 8 bits. Bytes by the meter of what is "
        f"sent; seconds of the slowest process, median of {context.pick(5, 15)} turns, {context.seeds} "
        "times.",
    )


def draw(figure: Figure, detail: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    names = [name.replace(", ", "\n") for name in detail["kilobytes"]]
    bars = left.bar(names, list(detail["kilobytes"].values()), color=BLUE, width=0.6)
    left.bar_label(bars, fmt="%.2f", padding=2)
    left.set_ylabel("kB sent a token and layer")
    for i, values in enumerate(detail["seconds"].values()):
        right.plot([i] * len(values), [1e3 * v for v in values], "o", color=BLUE, markerfacecolor="none")
    right.set_xticks(range(len(names)), names)
    right.set(ylabel="ms a step, slowest process", xlim=(-0.5, len(names) - 0.5))
    right.set_ylim(0, 1.1 * right.get_ylim()[1])


EXPERT_PARALLEL = Experiment(
    measure,
    draw,
    seconds=(12, 30),
    labels={f"ms, {name}": " ms" for name in WAYS},
)
