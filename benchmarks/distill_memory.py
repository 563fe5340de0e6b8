"""What a chunk at a time saves: peak memory and time of a distillation loss and its gradients.

    python benchmarks/distill_memory.py          # some minutes on one CPU core

``plain`` makes the logits of student and teacher and calls ``kd_loss``; ``chunked`` is ``chunked_kd_loss``.
The peak is ``ru_maxrss``, less what it was before: a high-water mark that never falls, so each measurement is
a process of its own. Prints the table, and writes docs/results/distill-memory.json.

Dimensions: T tokens, V vocabulary, D width.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from minimoe.distill.chunked_loss import chunked_kd_loss
from minimoe.distill.losses import Kind, kd_loss
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine

DOCS = Path(__file__).parent.parent / "docs" / "results"
T, V, D_STUDENT, D_TEACHER = 4096, 32768, 256, 512
KINDS: tuple[Kind, ...] = ("forward", "jsd")
MB = 2**20
Way = Literal["plain", "chunked"]


def plain(
    student_TD: Tensor, student_VD: Tensor, teacher_TD: Tensor, teacher_VD: Tensor, targets_T, **options
):
    return kd_loss(student_TD @ student_VD.T, teacher_TD @ teacher_VD.T, targets_T, **options)


def batch(n_tokens: int, vocabulary: int) -> list[Tensor]:
    """Hidden state and head of student and teacher, and targets; scaled, so that logits are near 1."""
    torch.manual_seed(0)
    tensors = []
    for width in (D_STUDENT, D_TEACHER):
        tensors += [torch.randn(n_tokens, width) * width**-0.5, torch.randn(vocabulary, width)]
    for x in tensors[:2]:
        x.requires_grad_()
    return [*tensors, torch.randint(vocabulary, (n_tokens,))]


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(way: Way, kind: Kind) -> dict[str, float]:
    """Peak (MB, beyond inputs and libraries), seconds, and the loss, of one call and its backward."""
    loss = chunked_kd_loss if way == "chunked" else plain
    inputs = batch(T, V)
    loss(*batch(2, 8), kind=kind).backward()
    before, start = peak_bytes(), time.perf_counter()
    value = loss(*inputs, kind=kind, alpha=0.5)
    value.backward()
    seconds = time.perf_counter() - start
    return {"peak_mb": (peak_bytes() - before) / MB, "seconds": seconds, "loss": value.item()}


def in_a_process(way: Way, kind: Kind, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--kind", kind, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def markdown(found: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        "| divergence | plain, MB | chunked, MB | ratio | plain, s | chunked, s |",
        "|---|---|---|---|---|---|",
    ]
    for kind, ways in found.items():
        (peak, seconds), (small, its_seconds) = ((x["peak_mb"], x["seconds"]) for x in ways.values())
        lines.append(
            f"| {kind} | {peak:.0f} | {small:.0f} | {small / peak:.3f} | {seconds:.1f} | {its_seconds:.1f} |"
        )
    return "\n".join(lines)


def main(way: Way | None = None, kind: Kind = "forward", threads: int = 1) -> None:
    """Measure both ways for all kinds; with --way only that one, in this process, printed as JSON."""
    torch.set_num_threads(threads)
    if way is not None:
        print(json.dumps(measure(way, kind)))
        return
    found = {kind: {way: in_a_process(way, kind, threads) for way in ("plain", "chunked")} for kind in KINDS}
    about = {"tokens": T, "vocabulary": V, "widths": [D_STUDENT, D_TEACHER], "dtype": "float32", "alpha": 0.5}
    data = about | {"machine": describe_machine("cpu"), "found": found}
    write_atomically(DOCS / "distill-memory.json", json.dumps(data, indent=1) + "\n")
    print(markdown(found))


if __name__ == "__main__":
    tyro.cli(main)
