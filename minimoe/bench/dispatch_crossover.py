"""[evidence] Crossover of the dispatchers ``grouped`` and ``loop``: the measurement behind
``dispatch="auto"``.

    python -m minimoe.bench.dispatch_crossover                  # about 5 minutes on a CPU
    python -m minimoe.bench.dispatch_crossover --device cuda

Times the experts alone (no router, no shared expert), both dispatchers in turns, over shapes, directions,
dtypes and threads; prints grouped's time over loop's (above 1: loop is faster) and writes a record. Freed
memory is kept, as in training; otherwise ``grouped`` is a third slower if its rows exceed 32 MB
(``benchmarks/test_moe_layer.py``).
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track

from minimoe.bench.layers import FORWARD, FORWARD_BACKWARD, FixedRouting, layer_task
from minimoe.moe import Experts, route
from minimoe.reporting.tables import TextTable, print_table
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.tools.timing import interleaved_seconds

RESULTS = Path("docs/results")
TOKENS = (1, 16, 128, 1024, 4096)
EXPERTS = ((8, 2), (32, 4), (64, 8))  # E, K
WIDTHS = ((64, 32), (256, 128), (512, 128))  # D, H
DTYPES = ("float32", "bfloat16")


FIELDS = ("threads", "dtype", "backward", "dim", "expert_dim", "n_experts", "top_k", "tokens")


def grouped_over_loop(case: dict[str, Any], device: torch.device) -> float:
    """Ratio of the median times of ``grouped`` and ``loop``, without the gradient of the input."""
    T, D, E, dtype = case["tokens"], case["dim"], case["n_experts"], getattr(torch, case["dtype"])
    experts = Experts(D, case["expert_dim"], E).to(device, dtype)
    x_TD = torch.randn(T, D, device=device, dtype=dtype)
    routing = route(torch.randn(T, E, device=device), case["top_k"])
    layers = {name: FixedRouting(experts, routing, name) for name in ("loop", "grouped")}
    tasks = {
        name: layer_task(layer, x_TD, case["backward"], input_gradient=False)
        for name, layer in layers.items()
    }
    seconds = interleaved_seconds(tasks, device, rounds=5 if T * D > 1e5 else 15)
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
    cases = list(product(threads, DTYPES, (False, True), WIDTHS, EXPERTS, TOKENS))
    records = []
    for n_threads, dtype, backward, widths, experts, tokens in track(cases, "measuring"):
        torch.set_num_threads(n_threads)
        sizes = (n_threads, dtype, backward, *widths, *experts, tokens)
        case: dict[str, Any] = dict(zip(FIELDS, sizes, strict=True))
        records.append(case | {"grouped_over_loop": grouped_over_loop(case, torch.device(device))})
    data = {"machine": describe_machine(device), "found": records}
    out = out or (RESULTS if RESULTS.is_dir() else Path()) / f"crossover-{device}.json"
    write_atomically(out, json.dumps(data, indent=1) + "\n")
    columns = {
        "threads, dtype, direction": "{threads}, {dtype}, {direction}",
        "D, H": "{dim}, {expert_dim}",
        "E, K": "{n_experts}, {top_k}",
    } | {f"T={tokens}": f"{{ratios[{i}]:.2f}}" for i, tokens in enumerate(TOKENS)}
    rows = []
    for first in range(0, len(records), len(TOKENS)):
        ratios = [record["grouped_over_loop"] for record in records[first : first + len(TOKENS)]]
        direction = FORWARD_BACKWARD if records[first]["backward"] else FORWARD
        rows.append(records[first] | {"direction": direction, "ratios": ratios})
    table = TextTable.from_rows("dispatch-crossover", "grouped's time over loop's", columns, rows)
    print_table(table, Console(width=110))


if __name__ == "__main__":
    tyro.cli(main)
