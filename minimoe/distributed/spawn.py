"""A function run in several processes of this machine that can talk to each other (torch.distributed)."""

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_processes(
    function: Callable[..., Any], size: int, *arguments: Any, timeout: float = 120
) -> list[Any]:
    """``function(*arguments)`` in ``size`` processes of one gloo group, a thread each; what each returns.

    Function, arguments and results must pickle, so the function stands in a module. The processes meet
    through a file, and no port is taken. Raises what torch.multiprocessing raises where one of them fails.
    """
    # Forked from a server that has imported torch already: a second and not ten.
    method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
    if method == "forkserver":
        mp.set_forkserver_preload([function.__module__])
    with tempfile.TemporaryDirectory() as folder:
        task = (function, size, folder, timeout, arguments)
        mp.start_processes(_run, task, nprocs=size, start_method=method)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _run(
    rank: int,
    function: Callable[..., Any],
    size: int,
    folder: str,
    timeout: float,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=timeout)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size, timeout=limit)
    torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    dist.barrier()  # who leaves before all have done breaks the others' last words
    dist.destroy_process_group()
