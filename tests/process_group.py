"""Running a function in several processes that can talk to each other, for the tests of what they do."""

import datetime
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Processes are forked from a server that has imported the slow modules already: a tenth of a second each.
CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "pytest", "minimoe.cli"])


def run(
    function: Callable[..., Any], size: int, folder: Path, *arguments: Any, timeout: float = 30
) -> list[Any]:
    """``function(*arguments)`` in ``size`` processes of one gloo group; what each returns, in order.

    They meet through a file, so no port is taken that another test could want. Raises AssertionError with the
    traceback of the first process that failed; a process that does not end in ``timeout`` seconds is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        CONTEXT.Process(target=_run, args=(function, rank, size, folder, timeout, arguments), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    failures = [
        (folder / f"{rank}.err").read_text() for rank in range(size) if (folder / f"{rank}.err").exists()
    ]
    failures.sort(key=lambda text: "Connection closed by peer" in text)  # victims after the cause
    assert not failures, failures[0]
    assert not late, f"processes {late} of {size} did not end in {timeout} s"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _run(function, rank: int, size: int, folder: Path, timeout: float, arguments) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=timeout)
    try:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size, timeout=limit)
        dist.barrier()  # who leaves before all have met breaks the meeting
        torch.save(function(*arguments), folder / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.err").write_text(f"process {rank}: {traceback.format_exc()}")
        os._exit(1)
