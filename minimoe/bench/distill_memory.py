"""[evidence] Peak memory and time of the chunked distillation loss, against the loss on all logits at once.

    python -m minimoe.bench.distill_memory          # a few minutes on one CPU core

``plain`` computes the logits of student and teacher and calls ``kd_loss``; ``chunked`` is
``chunked_kd_loss``. Both are measured with their backward pass. The peak is ``ru_maxrss`` minus its value
before the call; that high-water mark never falls, so each measurement runs in its own process. Prints a table
and writes a record.

Dimensions: T tokens, V vocabulary, D width.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from minimoe.distill.checks import Kind
from minimoe.distill.chunked_loss import chunked_kd_loss
from minimoe.distill.losses import kd_loss
from minimoe.reporting.tables import TextTable
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine

RESULTS = Path("docs/results")
T, V, D_STUDENT, D_TEACHER = 4096, 32768, 256, 512
KINDS: tuple[Kind, ...] = ("forward", "jsd")
MB = 2**20
Loss = Literal["plain", "chunked"]
Records = dict[str, dict[str, dict[str, float]]]  # by divergence and loss


def plain_kd_loss(
    student_TD: Tensor,
    student_VD: Tensor,
    teacher_TD: Tensor,
    teacher_VD: Tensor,
    targets_T: Tensor,
    **options: Any,
) -> Tensor:
    return kd_loss(student_TD @ student_VD.T, teacher_TD @ teacher_VD.T, targets_T, **options)


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


def measure(loss: Loss, kind: Kind) -> dict[str, float]:
    """Peak (MB, beyond inputs and libraries), seconds and loss, of one call and its backward pass."""
    function = chunked_kd_loss if loss == "chunked" else plain_kd_loss
    inputs = make_inputs(T, V)
    function(*make_inputs(2, 8), kind=kind).backward()
    before, start = peak_bytes(), time.perf_counter()
    value = function(*inputs, kind=kind, alpha=0.5)
    value.backward()
    seconds = time.perf_counter() - start
    return {"peak_mb": (peak_bytes() - before) / MB, "seconds": seconds, "loss": value.item()}


def measure_in_process(loss: Loss, kind: Kind, threads: int) -> dict[str, float]:
    flags = ["--loss", loss, "--kind", kind, "--threads", str(threads)]
    command = [sys.executable, "-m", "minimoe.bench.distill_memory", *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def memory_table(records: Records) -> TextTable:
    headings = ["divergence", "plain, MB", "chunked, MB", "ratio", "plain, s", "chunked, s"]
    rows = []
    for kind, losses in records.items():
        plain, chunked = losses["plain"], losses["chunked"]
        sizes = [plain["peak_mb"], chunked["peak_mb"]]
        row = [f"{size:.0f}" for size in sizes] + [f"{sizes[1] / sizes[0]:.3f}"]
        rows.append([kind, *row, f"{plain['seconds']:.1f}", f"{chunked['seconds']:.1f}"])
    return TextTable("distill-memory", "", headings, rows)


def main(loss: Loss | None = None, kind: Kind = "forward", threads: int = 1, out: Path | None = None) -> None:
    """Measure both losses for all divergences.

    Args:
        loss: measure only this loss, in this process, and print JSON.
        kind: divergence to measure with --loss.
        threads: CPU threads.
        out: file of the record [default: distill-memory.json, in docs/results if that folder exists].
    """
    torch.set_num_threads(threads)
    if loss is not None:
        print(json.dumps(measure(loss, kind)))
        return
    losses: tuple[Loss, ...] = ("plain", "chunked")
    records: Records = {k: {loss: measure_in_process(loss, k, threads) for loss in losses} for k in KINDS}
    about = {"tokens": T, "vocabulary": V, "widths": [D_STUDENT, D_TEACHER], "dtype": "float32", "alpha": 0.5}
    data = about | {"machine": describe_machine("cpu"), "found": records}
    out = out or (RESULTS if RESULTS.is_dir() else Path()) / "distill-memory.json"
    write_atomically(out, json.dumps(data, indent=1) + "\n")
    print(memory_table(records).markdown())


if __name__ == "__main__":
    tyro.cli(main)
