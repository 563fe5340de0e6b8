"""[evidence] Crossover of the dispatchers ``grouped`` and ``loop``: the measurement behind
``dispatch="auto"``.

    python -m minimoe.bench.dispatch_crossover                  # about 5 minutes on a CPU
    python -m minimoe.bench.dispatch_crossover --device cuda

Times the experts alone (no router, no shared expert), both dispatchers in turns, over shapes, directions,
dtypes and threads; prints grouped's time over loop's (above 1: loop is faster) and writes a record. Freed
memory is kept, as in training; otherwise ``grouped`` is a third slower if its rows exceed 32 MB
(``benchmarks/test_moe_layer.py``).
"""

import itertools
import json
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import track

from minimoe.moe import Experts, route
from minimoe.reporting.tables import rich_table
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.tools.timing import Task, interleaved_seconds

RESULTS = Path("docs/results")
TOKENS = (1, 16, 128, 1024, 4096)
EXPERTS = ((8, 2), (32, 4), (64, 8))  # E, K
WIDTHS = ((64, 32), (256, 128), (512, 128))  # D, H
DTYPES = ("float32", "bfloat16")


def grouped_over_loop(
    tokens: int, experts: tuple[int, int], widths: tuple[int, int], backward: bool, dtype: str, device: str
) -> float:
    """Ratio of the median times of ``grouped`` and ``loop``."""
    (n_experts, top_k), (dim, expert_dim) = experts, widths
    layer = Experts(dim, expert_dim, n_experts).to(device, getattr(torch, dtype))
    x = torch.randn(tokens, dim, device=device, dtype=getattr(torch, dtype))
    upstream = torch.randn_like(x)
    routing = route(torch.randn(tokens, n_experts, device=device), top_k)

    def task(dispatch: str) -> Task:
        def run() -> None:
            with torch.set_grad_enabled(backward):
                y = layer(x, routing, dispatch)  # type: ignore[arg-type]
            if backward:
                layer.zero_grad()
                y.backward(upstream)

        return run

    rounds = 5 if tokens * dim > 1e5 else 15
    tasks = {name: task(name) for name in ("loop", "grouped")}
    seconds = interleaved_seconds(tasks, torch.device(device), rounds=rounds)
    return seconds["grouped"] / seconds["loop"]


def main(device: str = "cpu", threads: tuple[int, ...] = (1, 2), out: Path | None = None) -> None:
    """Measure all shapes, print the ratios and write them to a file.

    Args:
        device: cpu or cuda.
        threads: numbers of CPU threads to measure.
        out: file of the record [default: crossover-DEVICE.json, in docs/results if that folder exists].
    """
    keep_freed_memory()
    threads = threads if device == "cpu" else (torch.get_num_threads(),)
    cases = list(itertools.product(threads, DTYPES, (False, True), WIDTHS, EXPERTS, TOKENS))
    records = []
    for n_threads, dtype, backward, widths, experts, tokens in track(cases, "measuring"):
        torch.set_num_threads(n_threads)
        records.append(
            {
                "threads": n_threads,
                "dtype": dtype,
                "backward": backward,
                "dim": widths[0],
                "expert_dim": widths[1],
                "n_experts": experts[0],
                "top_k": experts[1],
                "tokens": tokens,
                "grouped_over_loop": grouped_over_loop(tokens, experts, widths, backward, dtype, device),
            }
        )
    data = {"machine": describe_machine(device), "found": records}
    out = out or (RESULTS if RESULTS.is_dir() else Path()) / f"crossover-{device}.json"
    write_atomically(out, json.dumps(data, indent=1) + "\n")
    headings = ["threads, dtype, direction", "D, H", "E, K", *(f"T={tokens}" for tokens in TOKENS)]
    table = rich_table("grouped's time over loop's", headings)
    for i in range(0, len(records), len(TOKENS)):
        first = records[i]
        direction = "forward+backward" if first["backward"] else "forward"
        table.add_row(
            f"{first['threads']}, {first['dtype']}, {direction}",
            f"{first['dim']}, {first['expert_dim']}",
            f"{first['n_experts']}, {first['top_k']}",
            *(f"{record['grouped_over_loop']:.2f}" for record in records[i : i + len(TOKENS)]),
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    tyro.cli(main)
