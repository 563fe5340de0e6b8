"""What the benchmarks share: the machine in every record, and few threads' worth of surprises."""

import pytest
import torch

from minimoe.memory import keep_freed_memory
from minimoe.records import machine


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["minimoe"] = machine("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def kept_memory():
    """For the rest of the process: whoever measures without it must be measured before."""
    keep_freed_memory()


@pytest.fixture
def rounds(request) -> int:
    """How often to measure: once where timing is off, to see that it runs."""
    option = request.config.getoption  # the project's settings disable timing; the command line enables it
    timed = option("benchmark_enable") or not option("benchmark_disable")
    return 15 if timed else 1
