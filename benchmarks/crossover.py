"""Where one dispatcher overtakes another: the measurement behind ``dispatch="auto"``.

    python benchmarks/crossover.py                  # on a CPU about 5 minutes
    python benchmarks/crossover.py --device cuda

Times the experts alone (no router, no shared expert), ``loop`` and ``grouped`` in turn, over shapes,
directions, dtypes and threads; prints grouped's time over loop's (above 1: loop is faster) and writes
docs/results/crossover-DEVICE.json. Freed memory is kept, as in training; without that, ``grouped`` loses by a third
where its rows exceed 32 MB (``benchmarks/test_moe_layer.py``).
"""

import itertools
import json
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from minimoe.moe import Experts, route
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.tools.timing import interleaved_seconds

DOCS = Path(__file__).parent.parent / "docs" / "results"
TOKENS = (1, 16, 128, 1024, 4096)
EXPERTS = ((8, 2), (32, 4), (64, 8))  # E, K
WIDTHS = ((64, 32), (256, 128), (512, 128))  # D, H


def ratio(
    tokens: int, experts: tuple, widths: tuple, backward: bool, dtype: torch.dtype, device: str
) -> float:
    """grouped's median time over loop's."""
    (n_experts, top_k), (dim, expert_dim) = experts, widths
    layer = Experts(dim, expert_dim, n_experts).to(device, dtype)
    x = torch.randn(tokens, dim, device=device, dtype=dtype)
    upstream = torch.randn_like(x)
    routing = route(torch.randn(tokens, n_experts, device=device), top_k)

    def task(dispatch: str):
        def run() -> None:
            with torch.set_grad_enabled(backward):
                y = layer(x, routing, dispatch)
            if backward:
                layer.zero_grad()
                y.backward(upstream)

        return run

    rounds = 5 if tokens * dim > 1e5 else 15
    tasks = {name: task(name) for name in ("loop", "grouped")}
    seconds = interleaved_seconds(tasks, torch.device(device), rounds=rounds)
    return seconds["grouped"] / seconds["loop"]


def crossover(device: str = "cpu", threads: tuple[int, ...] = (1, 2)) -> None:
    """Measure every shape, print the ratios, write them down."""
    keep_freed_memory()
    threads = threads if device == "cpu" else (torch.get_num_threads(),)
    cases = list(
        itertools.product(threads, (torch.float32, torch.bfloat16), (False, True), WIDTHS, EXPERTS, TOKENS)
    )
    found = []
    for n_threads, dtype, backward, widths, experts, tokens in track(cases, "measuring"):
        torch.set_num_threads(n_threads)
        found.append(
            {
                "threads": n_threads,
                "dtype": str(dtype).removeprefix("torch."),
                "backward": backward,
                "dim": widths[0],
                "expert_dim": widths[1],
                "n_experts": experts[0],
                "top_k": experts[1],
                "tokens": tokens,
                "grouped_over_loop": ratio(tokens, experts, widths, backward, dtype, device),
            }
        )
    data = {"machine": describe_machine(device), "found": found}
    write_atomically(DOCS / f"crossover-{device}.json", json.dumps(data, indent=1) + "\n")
    table = Table("threads", "dtype", "direction", "D, H", "E, K", *(f"T={t}" for t in TOKENS))
    for _, row in itertools.groupby(found, key=lambda entry: [entry[k] for k in list(entry)[:7]]):
        cells = list(row)
        one = cells[0]
        direction = "forward+backward" if one["backward"] else "forward"
        shape = (f"{one['dim']}, {one['expert_dim']}", f"{one['n_experts']}, {one['top_k']}")
        ratios = (f"{cell['grouped_over_loop']:.2f}" for cell in cells)
        table.add_row(str(one["threads"]), one["dtype"], direction, *shape, *ratios)
    Console(width=130).print(table)


if __name__ == "__main__":
    tyro.cli(crossover)
