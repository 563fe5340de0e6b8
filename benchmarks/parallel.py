"""What experts across processes cost: bytes sent, measured and predicted, and time.

    python benchmarks/parallel.py              # five minutes on 2 CPU cores

Four tables, which the README shows, and what they are made from in docs/results/parallel.json:

bytes      one step of a layer on 4 processes, by rule of routing and by wire: the (token, other process)
           pairs that chance predicts and those there were, the bytes that ``cost`` makes of them, the metered
speed      training steps of ``minimoe compare``'s mixture on 1, 2 and 4 processes, in turns, and how much of
           them a process waits for others
predicted  what a layer of DeepSeek-V3 would send on 8 and 64 GPUs, and how long that takes at the bandwidths
           of its report
placement  how much busier than the mean the busiest of 8 ranks is, by the text that a trained mixture reads:
           experts in their order, and as ``place`` puts them with 8 slots to spare
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro

from minimoe import GPT, ModelConfig, load_corpus
from minimoe.cost import PUBLISHED, all_to_all, processes_visited, traffic
from minimoe.distributed.data_expert_parallel import DataExpertParallel
from minimoe.distributed.spawn import run_processes
from minimoe.experiments.expert_parallel import LAYER, PROCESSES, TOKENS, metered_step
from minimoe.experiments.presets import PRESETS
from minimoe.moe import place
from minimoe.moe.eplb import contiguous
from minimoe.moe.expert_parallel.all_to_all import Journey
from minimoe.moe.expert_parallel.row_format import DispatchDtype
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.training.trainer import Trainer

DOCS = Path(__file__).parent.parent / "docs" / "results"
RULES = {"free": None, "at most 2": 2, "at most 1": 1}
WIRES: tuple[DispatchDtype, ...] = ("full", "bf16", "fp8")


def one_step(config: ModelConfig, wire: DispatchDtype) -> dict[str, int]:
    """Forward and backward of a layer on this process's tokens: the pairs counted from the routing alone, and
    the meter's bytes and messages."""
    step, meter = metered_step(config, wire)
    rank, size, routing = dist.get_rank(), dist.get_world_size(), step()
    visits = [set(row) for row in (routing.ids_TK // (config.n_experts // size)).tolist()]
    pairs = sum(len(row - {rank}) for row in visits)
    return {"pairs": pairs, "bytes": meter.bytes.total(), "messages": meter.messages.total()}


def measure_bytes(size: int = PROCESSES) -> list[dict[str, Any]]:
    found = []
    for rule, top_groups in RULES.items():
        for wire in WIRES:
            config = replace(LAYER, top_groups=top_groups)
            seen = run_processes(one_step, size, config, wire)
            pairs = sum(each["pairs"] for each in seen)
            chance = processes_visited(config, size) * (size - 1) / size
            found.append(
                {"rule": rule, "wire": wire, "chance": chance, "pairs": pairs / (size * TOKENS)}
                | {"predicted": traffic(config, wire).total(pairs, size)}
                | {name: sum(each[name] for each in seen) for name in ("bytes", "messages")}
            )
    return found


def seconds_a_step(wire: DispatchDtype, threads: int, steps: int) -> tuple[float, float]:
    """The median training step of the quick mixture, its batch shared by the processes there are; and how
    long in it this process waited for tokens and their gradients."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    preset, corpus, waited = PRESETS["quick"], load_corpus(), [0.0]
    torch.manual_seed(0)
    trainer = Trainer(
        GPT(preset.moe), corpus, preset.training, processes=DataExpertParallel(dist.get_world_size(), wire)
    )
    Journey.finish = _timed(Journey.finish, waited)  # type: ignore[method-assign]
    times = []
    for _ in range(steps + 3):
        waited[0], begin = 0.0, time.perf_counter()
        trainer.train_step()
        times.append((time.perf_counter() - begin, waited[0]))
    whole, waiting = zip(*times[3:], strict=True)
    return statistics.median(whole), statistics.median(waiting)


def _timed(function: Callable[..., Any], total: list[float]) -> Callable[..., Any]:
    """The function, which then adds its seconds to ``total[0]``."""

    def run(*arguments: Any) -> Any:
        begin = time.perf_counter()
        result = function(*arguments)
        total[0] += time.perf_counter() - begin
        return result

    return run


def measure_speed(rounds: int, steps: int = 12) -> list[dict[str, Any]]:
    """Each number of processes in turn, so that all see the same machine; of several the slowest."""
    cases: list[tuple[int, int, DispatchDtype]] = [
        (1, 1, "full"),
        (1, 2, "full"),
        (2, 1, "full"),
        (2, 1, "fp8"),
        (4, 1, "full"),
    ]
    times: list[list[tuple[float, float]]] = [[] for _ in cases]
    for _ in range(rounds):
        for (size, threads, wire), found in zip(cases, times, strict=True):
            found.append(max(run_processes(seconds_a_step, size, wire, threads, steps)))
    return [
        {"processes": size, "threads": threads, "wire": wire}
        | {"ms": 1e3 * statistics.median(step for step, _ in found)}
        | {"waiting": 1e3 * statistics.median(waiting for _, waiting in found) if size > 1 else 0.0}
        | {"speedup": statistics.median(a / b for (a, _), (b, _) in zip(times[0], found, strict=True))}
        for (size, threads, wire), found in zip(cases, times, strict=True)
    ]


def predict() -> list[dict[str, Any]]:
    """A layer of V3, a token: on 8 GPUs of one node, and on 64 of 8 nodes (``cost.all_to_all``)."""
    v3, found = PUBLISHED["deepseek-v3"], []
    for gpus, rule in ((8, "free"), (64, "free"), (64, "at most 4 nodes")):
        config = replace(v3, top_groups=None if rule == "free" else v3.top_groups)
        for wire in WIRES[1:]:
            sent = all_to_all(config, wire, n_nodes=gpus // 8)
            found.append(
                {"gpus": gpus, "rule": rule, "wire": wire, "pairs": sent.pairs, "bytes": sent.bytes}
                | {"over": sent.over, "us": sent.microseconds}
            )
    return found


def measure_placement(steps: int = 200, n_ranks: int = 8, n_slots: int = 40) -> list[dict[str, Any]]:
    """By loads over the validation text of each domain: the busiest rank over the mean, mean over layers."""
    preset, corpus = PRESETS["quick"], load_corpus()
    torch.manual_seed(0)
    trainer = Trainer(GPT(preset.moe), corpus, preset.training.shortened(steps))
    for _ in range(steps):
        trainer.train_step()
    counts_NME = trainer.evaluate().counts_NME
    assert counts_NME is not None
    loads = {"all": counts_NME.sum(0)} | dict(zip(corpus.domains, counts_NME, strict=True))
    layers, n_experts = loads["all"].shape
    in_order, for_all = contiguous(n_experts, n_ranks, layers), place(loads["all"], n_slots, n_ranks=n_ranks)
    return [
        {
            "text": name,
            "in order": in_order.imbalance(loads_ME, n_ranks).mean().item(),
            "for all text": for_all.imbalance(loads_ME, n_ranks).mean().item(),
            "for this text": place(loads_ME, n_slots, n_ranks=n_ranks)
            .imbalance(loads_ME, n_ranks)
            .mean()
            .item(),
        }
        for name, loads_ME in loads.items()
    ]


def markdown(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """The tables."""
    lines = [
        "| processes visited | wire | pairs a token, by chance | counted | bytes predicted | metered | share "
        "| messages |",
        "|---|---|---|---|---|---|---|---|",
    ]
    most = found["bytes"][0]["bytes"]
    for row in found["bytes"]:
        lines.append(
            f"| {row['rule']} | {row['wire']} | {row['chance']:.3f} | {row['pairs']:.3f} | "
            f"{row['predicted']:,.0f} | {row['bytes']:,} | {row['bytes'] / most:.0%} | {row['messages']} |"
        )
    speed = [
        "| processes | threads each | wire | ms a step | of them waiting | times as fast as one |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["speed"]:
        speed.append(
            f"| {row['processes']} | {row['threads']} | {row['wire']} | {row['ms']:.0f} | "
            f"{row['waiting']:.0f} | {row['speedup']:.2f} |"
        )
    predicted = [
        "| GPUs | routing | wire | pairs a token | kB a token and layer | over | µs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["predicted"]:
        predicted.append(
            f"| {row['gpus']} | {row['rule']} | {row['wire']} | {row['pairs']:.2f} | "
            f"{row['bytes'] / 1e3:.0f} | {row['over']} | {row['us']:.1f} |"
        )
    placed = ["| text read | in order | placed for all text | placed for this text |", "|---|---|---|---|"]
    for row in found["placement"]:
        cells = (f"{row[how]:.2f}" for how in ("in order", "for all text", "for this text"))
        placed.append(f"| {row['text']} | {' | '.join(cells)} |")
    tables = {"bytes": lines, "speed": speed, "predicted": predicted, "placement": placed}
    return {name: "\n".join(table) for name, table in tables.items()}


def main(rounds: int = 5) -> None:
    """Measure, predict, print and record."""
    found = {"bytes": measure_bytes(), "speed": measure_speed(rounds), "predicted": predict()}
    found["placement"] = measure_placement()
    data = {"machine": describe_machine("cpu"), "layer": vars(LAYER), "tokens": TOKENS, **found}
    write_atomically(DOCS / "parallel.json", json.dumps(data, indent=1) + "\n")
    print("\n\n".join(markdown(found).values()))


if __name__ == "__main__":
    tyro.cli(main)
