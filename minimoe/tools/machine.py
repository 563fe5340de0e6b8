"""[portability] The machine: its description, stored with every measurement, and the choice of a device."""

import os
import platform
from pathlib import Path

import numpy
import torch

from minimoe.tools.records import Record


def describe_machine(device: str | torch.device) -> Record:
    """Processor, threads and versions, on which measurements depend."""
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
    """The first available of cuda, mps and cpu for ``auto``; any other name is checked.

    Raises:
        ValueError: the device is not available.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, present in available.items() if present)
    if not available.get(name.split(":")[0], False):
        names = ", ".join(device for device, present in available.items() if present)
        raise ValueError(f"device {name!r} is not available; choose one of {names}")
    return name
