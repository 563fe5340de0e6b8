"""What the benchmarks share: the machine in every record, its threads, and what it does with freed memory."""

import pytest
import torch

from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.machine import describe_machine


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["minimoe"] = describe_machine("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def rounds(request) -> int:
    """How often to measure: once where timing is off, to see that it runs."""
    option = request.config.getoption  # the project's settings disable timing; the command line enables it
    timed = option("benchmark_enable") or not option("benchmark_disable")
    return 15 if timed else 1


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Freed:
    """Whether this process keeps freed memory; once it does, it does for the rest of its life."""

    kept = False


@pytest.fixture(scope="session")
def kept_memory():
    keep_freed_memory()
    Freed.kept = True


@pytest.fixture
def memory(request, rounds) -> str:
    """ "given back" or "kept": what the C library does with freed memory while this test measures."""
    if request.param == "kept":
        request.getfixturevalue("kept_memory")
    elif Freed.kept and rounds > 1:
        pytest.skip("this process keeps freed memory already; to measure without, run this file alone")
    return request.param
