"""The launcher of processes: what it returns, what it reports, and that nothing is left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from process_group import PRELOAD

from minimoe.distributed.errors import PeerFailure
from minimoe.distributed.spawn import ProcessPool

pytestmark = pytest.mark.distributed


def total(x):
    x = x + dist.get_rank()
    dist.all_reduce(x)
    return dist.get_rank(), os.getpid(), torch.get_num_threads(), x


def fails_on(rank, error):
    """One process fails, and the others wait for it in vain."""
    dist.barrier()
    if dist.get_rank() == rank:
        raise error
    dist.barrier()


def fails_first_and_is_slow_to_say_so(rank):
    """The others learn of the failure from a message, as in run_on_rank0, before it is reported."""
    failed = [dist.get_rank() == rank]
    dist.broadcast_object_list(failed, src=rank)
    if dist.get_rank() == rank:
        time.sleep(0.5)
        raise ValueError("the cause")
    raise PeerFailure


def dies(rank):
    dist.barrier()
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def hangs(rank):
    if dist.get_rank() == rank:
        time.sleep(60)


def cannot_be_pickled():
    return lambda: None


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_pool_serves_several_calls_with_the_same_processes():
    with ProcessPool(3, preload=PRELOAD) as pool:
        first = pool.run(total, torch.ones(2))
        second = pool.run(total, torch.zeros(2))
    assert [rank for rank, *_ in first] == [0, 1, 2]
    assert [pid for _, pid, *_ in first] == [pid for _, pid, *_ in second]
    assert {threads for _, _, threads, _ in first} == {1}
    assert all(x.tolist() == [6.0, 6.0] for *_, x in first)
    assert all(x.tolist() == [3.0, 3.0] for *_, x in second)
    assert not any(is_alive(pid) for _, pid, *_ in first)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (fails_on, (1, ValueError("a reason")), r"process 1 of 3 failed: (?s:.*)ValueError: a reason"),
        (fails_on, (2, KeyboardInterrupt()), r"process 2 of 3 failed: (?s:.*)KeyboardInterrupt"),
        (fails_first_and_is_slow_to_say_so, (1,), r"process 1 of 3 failed: (?s:.*)ValueError: the cause"),
        (dies, (1,), r"process 1 of 3 failed: it was killed"),
        (cannot_be_pickled, (), r"failed: (?s:.*)pickle"),
    ],
)
def test_the_process_that_caused_the_failure_is_reported(function, arguments, message):
    pool = ProcessPool(3, preload=PRELOAD)
    pids = [pid for _, pid, *_ in pool.run(total, torch.ones(1))]
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        pool.run(function, *arguments)
    assert time.monotonic() - begin < 30  # the others do not wait for the timeout, 120 s
    assert pool.closed
    assert not any(is_alive(pid) for pid in pids)


def test_a_process_that_hangs_is_ended_at_the_timeout():
    pool = ProcessPool(2, preload=PRELOAD)
    pids = [pid for _, pid, *_ in pool.run(total, torch.ones(1))]
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=r"processes \[1\] of 2 did not finish within 0.5 s"):
        pool.run(hangs, 1, timeout=0.5)
    assert time.monotonic() - begin < 30
    assert not any(is_alive(pid) for pid in pids)


SCRIPT = """
import pathlib, torch, test_spawn
from minimoe.distributed.spawn import run_processes
with open("runs", "a") as file:
    file.write("once ")
print(*(x.item() for *_, x in run_processes(test_spawn.total, 2, torch.ones(1))))
"""


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    """By each new process, as multiprocessing would."""
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = [str(Path(__file__).parents[i]) for i in range(3)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.stdout, (tmp_path / "runs").read_text()) == ("3.0 3.0\n", "once "), done.stderr


GUARDED = """
import torch.distributed as dist
from minimoe.distributed.spawn import run_processes

def rank():
    return dist.get_rank()

if __name__ == "__main__":
    print(run_processes(rank, 2))
"""


def test_a_function_of_the_main_file_can_be_run(tmp_path):
    (tmp_path / "script.py").write_text(GUARDED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "[0, 1]\n", done.stderr
