"""Starts processes like torchrun, without its four seconds of start-up, and makes them fail."""

import contextlib
import io
import itertools
import multiprocessing
import os
import time
import traceback

import torch
import torch.distributed as dist

from minimoe.cli import main as cli
from minimoe.distributed.spawn import METHOD
from minimoe.moe.expert_parallel.all_to_all import AllToAll
from minimoe.training import checkpoint
from minimoe.training.trainer import Trainer

STOP = 3

CONTEXT = multiprocessing.get_context(METHOD)


def torchrun(function, size, folder, *arguments, store=None, attempt=0, gone=()):
    """``function(*arguments)`` in processes with torchrun's environment: the address of a store, which
    outlives them, and how often they were started. What each returned; those that are ``gone`` return
    nothing, are not waited for, and are killed in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    store = store or dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    for rank in range(size):
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": "a test",
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(attempt),
        }  # fmt: skip
        process = CONTEXT.Process(
            target=_started,
            args=(function, environment, folder / f"{rank}-{attempt}", arguments),
            daemon=True,
        )
        processes.append(process)
        process.start()
    deadline = time.monotonic() + 40
    for rank, process in enumerate(processes):
        if rank not in gone:
            process.join(max(0, deadline - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive() and rank not in gone]
    for process in processes:
        process.kill()
    failed = list(folder.glob(f"*-{attempt}.err"))
    assert not failed, failed[0].read_text()
    assert not late, f"processes {late} of {size} hang"
    ended = [folder / f"{rank}-{attempt}.pt" for rank in range(size)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in ended]


def _started(function, environment, path, arguments):
    torch.set_num_threads(1)
    os.environ.update(environment)
    try:
        torch.save(function(*arguments), path.with_suffix(".pt"))
    except BaseException:
        path.with_suffix(".err").write_text(f"{path.name}: {traceback.format_exc()}")
    os._exit(0)  # without waiting for collectives that never finish


def command(*arguments):
    """``minimoe ...`` in this process -> exit status, standard error."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
    return status, error.getvalue()


PLACES = {  # the call before which a process fails: owner, name, how many-th call
    "forward": (AllToAll, "send", 8 * STOP + 1),  # 2 layers of 2 exchanges, each with its gradient
    "backward": (AllToAll, "send", 8 * STOP + 6),
    "update": (torch.optim.AdamW, "step", STOP),
    "evaluation": (Trainer, "evaluate", 1),
    "writing": (checkpoint, "_write", 2),
}


def strike_at(place, strike):
    """Call ``strike`` in this process right before a certain call."""
    owner, name, times = PLACES[place]
    original, calls = getattr(owner, name), itertools.count(1)

    def struck(*arguments, **named):
        if next(calls) == times:
            strike()
        return original(*arguments, **named)

    setattr(owner, name, struck)
