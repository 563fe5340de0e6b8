"""Records: what a run did, one JSON object a line, so that a killed run leaves whole lines behind.

Every line carries ``kind``: ``run`` (the first: configuration, data, machine), ``step``, ``evaluation``.
"""

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch

Record = dict[str, Any]


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: whoever reads it, or is killed meanwhile, finds the old or the new."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append(path: Path, record: Record) -> None:
    """Add one line. Raises OSError where the disk is full."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> Iterator[Record]:
    """The records of a file; a last line that a kill cut short is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def cut_after(path: Path, step: int) -> None:
    """Drop what was recorded after ``step``: a resumed run records it again."""
    kept = [record for record in read(path) if record.get("step", 0) <= step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


def machine(device: str | torch.device) -> Record:
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
