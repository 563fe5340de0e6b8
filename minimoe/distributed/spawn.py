"""[evidence] Launcher: runs a function in several processes of this machine that form one gloo group."""

import multiprocessing as mp
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from minimoe.distributed.errors import PeerFailure

# Processes forked from a server that has imported torch already start in a tenth of a second, not in ten.
METHOD = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"

GRACE = 5.0  # seconds that the other processes get after a failure, or to end


class _Failure(NamedTuple):
    """Why a process failed. The earliest failure is the cause of the others; a PeerFailure never is."""

    is_peer_failure: bool
    when: float
    text: str


def run_processes(
    function: Callable[..., Any], size: int, *arguments: Any, timeout: float = 120
) -> list[Any]:
    """``function(*arguments)`` in ``size`` new processes with one thread each -> their results by rank.

    See ``ProcessPool.run``.
    """
    module = function.__module__
    with ProcessPool(size, timeout, preload=[module], import_main=module == "__main__") as pool:
        return pool.run(function, *arguments)


class ProcessPool:
    """``size`` processes in one gloo group, which stay alive for several calls of ``run``.

    Args:
        timeout: seconds that a collective operation may take, and a call unless it says otherwise.
        preload: modules to import before processes are forked; only those of the first pool count.
        import_main: whether the processes import this program's main file, for functions defined in it.

    Raises:
        RuntimeError: as ``run``.
    """

    def __init__(
        self, size: int, timeout: float = 120, *, preload: Sequence[str] = (), import_main: bool = False
    ) -> None:
        self.size, self.timeout, self.closed = size, timeout, False
        self._folder = tempfile.TemporaryDirectory()
        self._connections: list[Any] = []
        self._processes: list[Any] = []
        context: Any = mp.get_context(METHOD)
        if METHOD == "forkserver":
            context.set_forkserver_preload([__name__, *preload])
        store = Path(self._folder.name) / "store"  # they meet through a file, so no port is taken
        with _main_file(visible=import_main):
            for rank in range(size):
                connection, other_end = context.Pipe()
                task = (other_end, rank, size, store, timeout)
                self._processes.append(context.Process(target=_serve, args=task, daemon=True))
                self._connections.append(connection)
                self._processes[-1].start()
                other_end.close()
        self._results(timeout)  # until all have joined the group

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> list[Any]:
        """``function(*arguments)`` in every process -> their results by rank.

        Function, arguments and results must be picklable, so the function is defined at the top of a module.

        Raises:
            RuntimeError: a process failed (with the traceback of the failure that caused the others), or
                did not finish within ``timeout`` seconds. The pool is then closed.
        """
        assert not self.closed, "the pool is closed"
        message = pickle.dumps((function, arguments))
        for connection in self._connections:
            with suppress(OSError):  # a process that has failed; its report is on its way
                connection.send_bytes(message)
        return self._results(self.timeout if timeout is None else timeout)

    def _results(self, timeout: float) -> list[Any]:
        """One result of every process, by rank."""
        deadline = time.monotonic() + timeout
        waiting = {connection: rank for rank, connection in enumerate(self._connections)}
        results: dict[int, Any] = {}
        failures: list[tuple[_Failure, int]] = []
        while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
            for connection in ready:
                rank = waiting.pop(connection)
                result = _receive(connection) or _Failure(False, 0.0, "it was killed")
                if isinstance(result, _Failure):
                    failures.append((result, rank))
                    deadline = min(deadline, time.monotonic() + GRACE)
                else:
                    [results[rank]] = result
        if failures:
            self.close(kill=True)
            failure, rank = min(failures)
            raise RuntimeError(f"process {rank} of {self.size} failed: {failure.text}")
        if waiting:
            self.close(kill=True)
            late = sorted(waiting.values())
            raise RuntimeError(f"processes {late} of {self.size} did not finish within {timeout:g} s")
        return [results[rank] for rank in range(self.size)]

    def close(self, *, kill: bool = False) -> None:
        """End the processes."""
        self.closed = True
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(0 if kill else GRACE)
            process.kill()
            process.join()
        self._folder.cleanup()

    def __enter__(self) -> "ProcessPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def _main_file(*, visible: bool) -> Iterator[None]:
    """New processes import this program's main file if it is visible, which would run a script or a tutorial
    without a ``__main__`` guard again."""
    main = sys.modules["__main__"].__dict__
    path = None if visible else main.pop("__file__", None)
    try:
        yield
    finally:
        if path is not None:
            main["__file__"] = path


def _serve(connection: Any, rank: int, size: int, store: Path, timeout: float) -> None:
    """In each process: join the group, then run the functions that arrive until the connection closes."""
    torch.set_num_threads(1)
    limit = timedelta(seconds=timeout)
    try:
        dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size, timeout=limit)
        dist.barrier()
        connection.send_bytes(pickle.dumps([None]))
        while call := _receive(connection):
            function, arguments = call
            connection.send_bytes(pickle.dumps([function(*arguments)]))
        dist.destroy_process_group()
    except BaseException as error:
        failure = _Failure(isinstance(error, PeerFailure), time.monotonic(), traceback.format_exc())
        connection.send_bytes(pickle.dumps(failure))
        os._exit(1)  # closes its connections, so that the others fail now and not at the timeout


def _receive(connection: Any) -> Any:
    """What the other end sent; None if it was closed."""
    try:
        return pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return None
