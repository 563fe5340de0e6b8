"""Records: what a run did, one JSON object a line, so that a killed run leaves whole lines behind.

Every line carries ``kind``: ``run`` (the first: configuration, data, machine), ``step``, ``evaluation``.
"""

import os
import platform
from pathlib import Path

import numpy
import torch

from minimoe.tools.records import Record


def describe_machine(device: str | torch.device) -> Record:
    """What a figure depends on beside the code: processor, threads, versions."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def pick_device(name: str) -> str:
    """``auto`` -> cuda, mps or cpu, whichever is there first; any other name is checked.

    Raises:
        ValueError: there is no such device here.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, present in there.items() if present)
    if not there.get(name.split(":")[0], False):
        present = ", ".join(device for device, here in there.items() if here)
        raise ValueError(f"there is no device {name!r} here; available: {present}")
    return name
