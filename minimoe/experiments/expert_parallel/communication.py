"""[evidence] Communication of expert parallelism: bytes predicted and metered, and a layer's step time."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from typing import Any, get_args

import torch
import torch.distributed as dist
from matplotlib.figure import Figure

from minimoe.cost import PUBLISHED, all_to_all, processes_visited, traffic
from minimoe.distributed.spawn import run_processes
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured, Untestable
from minimoe.models.config import ModelConfig
from minimoe.moe import Meter, MoE, Routing, expert_parallel_
from minimoe.moe.expert_parallel.row_format import DispatchDtype
from minimoe.reporting.figures import BLUE, draw_dots
from minimoe.reporting.tables import TextTable

PROCESSES, TOKENS = 4, 512

LAYER = ModelConfig(dim=256, n_experts=64, top_k=8, expert_dim=64, n_groups=PROCESSES)

RULES = {"free": None, "at most 2": 2, "at most 1": 1}  # processes that a token may visit

CASES: list[tuple[str, DispatchDtype]] = [
    (rule, dtype) for rule in RULES for dtype in get_args(DispatchDtype)
]

TIMED: dict[str, tuple[str, DispatchDtype]] = {
    "free, bf16": ("free", "bf16"),
    "free, fp8": ("free", "fp8"),
    "limited, bf16": ("at most 2", "bf16"),
    "limited, fp8": ("at most 2", "fp8"),
}


def metered_step(config: ModelConfig, dispatch_dtype: DispatchDtype) -> tuple[Callable[[], Routing], Meter]:
    """Forward and backward pass of a layer on this process's tokens, and the meter of what it sends."""
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

    def step() -> Routing:
        y, routing = layer(x)
        y.square().sum().backward()
        return routing

    return step, meter


def run_steps(rounds: int, repeats: int) -> tuple[list[tuple[int, int, int]], dict[str, list[float]]]:
    """In every process, one step per case: (token, other process) pairs by the routing, bytes and messages
    sent. Then the timed steps, in turns: the median seconds of each repeat."""
    sent, steps = [], {}
    for rule, dtype in CASES:
        step, meter = metered_step(replace(LAYER, top_groups=RULES[rule]), dtype)
        process_TK = step().ids_TK // (LAYER.n_experts // PROCESSES)
        pairs = sum(len(set(visited) - {dist.get_rank()}) for visited in process_TK.tolist())
        sent.append((pairs, meter.bytes.total(), meter.messages.total()))
        steps[rule, dtype] = step
    seconds: dict[str, list[float]] = {name: [] for name in TIMED}
    for _ in range(repeats):
        times: dict[str, list[float]] = {name: [] for name in TIMED}
        for name, case in rounds * list(TIMED.items()):
            dist.barrier()
            begin = time.perf_counter()
            steps[case]()
            times[name].append(time.perf_counter() - begin)
        for name, values in times.items():
            seconds[name].append(statistics.median(values))
    return sent, seconds


def bytes_rows(sent_by_process: list[list[tuple[int, int, int]]]) -> list[dict[str, Any]]:
    """A row per case: what all processes sent in one step, and what is predicted."""
    rows = []
    for (rule, dtype), sent in zip(CASES, zip(*sent_by_process, strict=True), strict=True):
        config = replace(LAYER, top_groups=RULES[rule])
        pairs, n_bytes, messages = map(sum, zip(*sent, strict=True))
        rows.append(
            {"rule": rule, "dispatch_dtype": dtype, "pairs": pairs / (PROCESSES * TOKENS)}
            | {"chance": processes_visited(config, PROCESSES) * (PROCESSES - 1) / PROCESSES}
            | {"predicted": traffic(config, dtype).total(pairs, PROCESSES)}
            | {"bytes": n_bytes, "messages": messages}
        )
    return rows


def predict() -> list[dict[str, Any]]:
    """Communication per token of one layer of DeepSeek-V3, on 8 GPUs of one node and on 64 of 8 nodes."""
    v3, rows = PUBLISHED["deepseek-v3"], []
    cases = ((8, "free"), (64, "free"), (64, "at most 4 nodes"))
    dtypes: tuple[DispatchDtype, ...] = ("bf16", "fp8")
    for (gpus, rule), dtype in product(cases, dtypes):
        config = replace(v3, top_groups=None if rule == "free" else v3.top_groups)
        sent = all_to_all(config, dtype, n_nodes=gpus // 8)
        row = {"gpus": gpus, "rule": rule, "dispatch_dtype": dtype, "pairs": sent.destinations}
        rows.append(row | {"bytes": sent.bytes, "link": sent.link, "us": sent.microseconds})
    return rows


def measure(context: RunContext) -> Measured:
    if not (dist.is_available() and dist.is_gloo_available()):
        raise Untestable("this build of torch has no gloo backend, which the processes need to communicate")
    rounds = context.pick(5, 15)
    sent, seconds_by_process = zip(*run_processes(run_steps, PROCESSES, rounds, context.seeds), strict=True)
    rows = bytes_rows(list(sent))
    sent_by_case = {case: row["bytes"] for case, row in zip(CASES, rows, strict=True)}
    kilobytes = {name: sent_by_case[case] / 1e3 / (PROCESSES * TOKENS) for name, case in TIMED.items()}
    # A step ends when the slowest process has finished.
    seconds = {
        name: [max(times) for times in zip(*(each[name] for each in seconds_by_process), strict=True)]
        for name in TIMED
    }
    free, best = "free, bf16", "limited, fp8"
    return Measured(
        {
            "bytes": [kilobytes[best] / kilobytes[free]],
            "seconds": [ours / theirs for ours, theirs in zip(seconds[best], seconds[free], strict=True)],
            **{f"kB per token, {name}": [value] for name, value in kilobytes.items()},
            **{f"ms, {name}": [1e3 * s for s in values] for name, values in seconds.items()},
        },
        {"layer": asdict(LAYER), "tokens": TOKENS, "bytes": rows, "predicted": predict()}
        | {"kilobytes": kilobytes, "seconds": seconds},
        f"A layer of {LAYER.n_experts} experts, {LAYER.top_k} per token, width {LAYER.dim}, on {PROCESSES} "
        f"processes of this machine with {TOKENS} tokens each, forward and backward: routing free to visit "
        f"every process, in bf16, against routing to at most 2 of {PROCESSES}, in FP8. Bytes are metered as "
        f"they are sent; seconds are those of the slowest process, median of {rounds} turns, measured "
        f"{context.seeds} times.",
    )


def draw(figure: Figure, detail: Detail) -> None:
    left, right = figure.subplots(1, 2)
    names = [name.replace(", ", "\n") for name in detail["kilobytes"]]
    bars = left.bar(names, list(detail["kilobytes"].values()), color=BLUE, width=0.6)
    left.bar_label(bars, fmt="%.2f", padding=2)
    left.set_ylabel("kB sent per token per layer")
    milliseconds = ([1e3 * s for s in values] for values in detail["seconds"].values())
    draw_dots(right, dict(zip(names, milliseconds, strict=True)))
    right.set(ylabel="ms per step, slowest process", ylim=(0, 1.1 * right.get_ylim()[1]))


BYTES_COLUMNS = {
    "processes visited": "{rule}",
    "dispatch dtype": "{dispatch_dtype}",
    "other processes per token, expected": "{chance:.3f}",
    "counted": "{pairs:.3f}",
    "bytes predicted": "{predicted:,.0f}",
    "metered": "{bytes:,}",
    "share": "{share:.0%}",
    "messages": "{messages}",
}

PREDICTED_COLUMNS = {
    "GPUs": "{gpus}",
    "routing": "{rule}",
    "dispatch dtype": "{dispatch_dtype}",
    "destinations per token": "{pairs:.2f}",
    "kB per token per layer": "{kilobytes:.0f}",
    "link": "{link}",
    "µs per token": "{us:.1f}",
}


def tables(detail: Detail) -> list[TextTable]:
    """From ``Measured.detail``, or from docs/results/parallel.json."""
    sent = [row | {"share": row["bytes"] / detail["bytes"][0]["bytes"]} for row in detail["bytes"]]
    about_sent = (
        f"Bytes that {PROCESSES} processes of {detail['tokens']} tokens send in one step of a layer, by how "
        "many processes a token may visit and by dispatch dtype."
    )
    predicted = [row | {"kilobytes": row["bytes"] / 1e3} for row in detail["predicted"]]
    about_predicted = (
        "Predicted communication of one layer of DeepSeek-V3 in training, at its report's bandwidths."
    )
    return [
        TextTable.from_rows("bytes", about_sent, BYTES_COLUMNS, sent),
        TextTable.from_rows("predicted", about_predicted, PREDICTED_COLUMNS, predicted),
    ]


UNITS = {"bytes": "x", "seconds": "x"}
UNITS |= {f"kB per token, {name}": " kB" for name in TIMED} | {f"ms, {name}": " ms" for name in TIMED}

EXPERT_PARALLEL = Experiment(measure, draw, tables=tables, seconds=(12, 30), units=UNITS)
