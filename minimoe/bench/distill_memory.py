"""[evidence] Peak memory and time of the chunked distillation loss, against the loss on all logits at once.

    python -m minimoe.bench.distill_memory          # a few minutes on one CPU core

``plain`` computes the logits of student and teacher and calls ``kd_loss``; ``chunked`` is
``chunked_kd_loss``. Both are measured with their backward pass. The peak is ``ru_maxrss`` minus its value
before the call; that high-water mark never falls, so each measurement runs in its own process. Prints a table
and writes a record.

Dimensions: T tokens, V vocabulary, D width.
"""

import json
import multiprocessing
import resource
import sys
import time
from itertools import product
from pathlib import Path

import torch
import tyro
from torch import Tensor

from minimoe.bench.distillation import LOSSES
from minimoe.distill.checks import Kind
from minimoe.reporting.tables import TextTable
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine

RESULTS = Path("docs/results")
T, V, D_STUDENT, D_TEACHER = 4096, 32768, 256, 512
KINDS: tuple[Kind, ...] = ("forward", "jsd")
MB = 2**20
Records = dict[str, dict[str, dict[str, float]]]  # by divergence and loss


def make_inputs(n_tokens: int, vocabulary: int) -> list[Tensor]:
    """Hidden states and head of student and teacher, and targets; scaled so that logits are near 1."""
    torch.manual_seed(0)
    tensors = []
    for width in (D_STUDENT, D_TEACHER):
        tensors += [torch.randn(n_tokens, width) * width**-0.5, torch.randn(vocabulary, width)]
    for x in tensors[:2]:
        x.requires_grad_()
    return [*tensors, torch.randint(vocabulary, (n_tokens,))]


def peak_bytes() -> int:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(loss: str, kind: Kind, threads: int = 1) -> dict[str, float]:
    """Peak (MB, beyond inputs and libraries), seconds and loss, of one call and its backward pass."""
    torch.set_num_threads(threads)
    function, inputs = LOSSES[loss], make_inputs(T, V)
    function(*make_inputs(2, 8), kind=kind).backward()
    before, start = peak_bytes(), time.perf_counter()
    value = function(*inputs, kind=kind, alpha=0.5)
    value.backward()
    seconds = time.perf_counter() - start
    return {"peak_mb": (peak_bytes() - before) / MB, "seconds": seconds, "loss": value.item()}


def memory_table(records: Records) -> TextTable:
    columns = {
        "divergence": "{kind}",
        "plain, MB": "{plain[peak_mb]:.0f}",
        "chunked, MB": "{chunked[peak_mb]:.0f}",
        "ratio": "{ratio:.3f}",
        "plain, s": "{plain[seconds]:.1f}",
        "chunked, s": "{chunked[seconds]:.1f}",
    }
    rows = []
    for kind, losses in records.items():
        ratio = losses["chunked"]["peak_mb"] / losses["plain"]["peak_mb"]
        rows.append({"kind": kind, "ratio": ratio, **losses})
    return TextTable.from_rows("distill-memory", "", columns, rows)


def main(threads: int = 1, out: Path | None = None) -> None:
    """Measure both losses for all divergences.

    Args:
        threads: CPU threads.
        out: file of the record [default: distill-memory.json, in docs/results if that folder exists].
    """
    torch.set_num_threads(threads)
    records: Records = {kind: {} for kind in KINDS}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process per task
        for kind, loss in product(KINDS, LOSSES):
            records[kind][loss] = pool.apply(measure, (loss, kind, threads))
    about = {"tokens": T, "vocabulary": V, "widths": [D_STUDENT, D_TEACHER], "dtype": "float32", "alpha": 0.5}
    data = about | {"machine": describe_machine("cpu"), "found": records}
    out = out or (RESULTS if RESULTS.is_dir() else Path()) / "distill-memory.json"
    write_atomically(out, json.dumps(data, indent=1) + "\n")
    print(memory_table(records).markdown())


if __name__ == "__main__":
    tyro.cli(main)
