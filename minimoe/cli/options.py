"""Flags that several commands share, each declared once; a command's dataclass inherits those that it takes.

A command that redeclares a flag has another default or another help text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minimoe.tools.files import write_json
from minimoe.tools.machine import pick_device
from minimoe.tools.run_dir import check_file, open_folder


@dataclass(frozen=True)
class DebugOption:
    debug: bool = False
    """show the traceback of an error"""


@dataclass(frozen=True)
class ThreadsOption:
    threads: int | None = None
    """CPU threads; default: one per core (fewer are faster while other programs use the machine)"""

    def set_threads(self) -> None:
        """Raises ValueError for fewer than 1."""
        if self.threads is not None:
            if self.threads < 1:
                raise ValueError(f"--threads ({self.threads}) must be at least 1")
            torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class DeviceOptions(ThreadsOption):
    device: str = "auto"
    """auto, cpu, cuda or mps"""

    def set_device(self) -> str:
        """Set the threads and return the device's name. Raises ValueError if there is no such device."""
        self.set_threads()
        return pick_device(self.device)


@dataclass(frozen=True)
class FolderOptions:
    out: Path | None = None
    """folder for everything that the run writes; default: one in runs/ named after the command"""
    resume: bool = False
    """resume the interrupted run in --out"""
    overwrite: bool = False
    """replace the run in --out"""

    def folder(self, *default: str) -> Path:
        """--out; by default runs/ and the words given, joined by dashes."""
        return self.out or Path("runs", "-".join(default))

    def open_folder(self, out: Path, settings: dict[str, Any]) -> None:
        """Claim ``out`` for a run with these settings, see ``run_dir.open_folder``."""
        open_folder(out, settings, resume=self.resume, overwrite=self.overwrite)


@dataclass(frozen=True)
class JsonOption:
    json: Path | None = None
    """also write the results to this JSON file"""

    def check_json(self) -> None:
        """Raise ValueError, before any work, if the file cannot be written."""
        check_file("--json", self.json)

    def write_json(self, content: Any, *others: Path) -> None:
        """Write the file if the flag is set, and the same content to others."""
        for path in filter(None, (*others, self.json)):
            write_json(path, content)


@dataclass(frozen=True)
class DataOption:
    data: str = "default"
    """text: default, article, all, names of domains joined by commas, or a folder of text files"""


@dataclass(frozen=True)
class SeedsOption:
    seeds: int = 1
    """number of seeds; more than one shows the spread"""


@dataclass(frozen=True)
class ExperimentOptions(DebugOption, FolderOptions, DeviceOptions, DataOption, SeedsOption):
    """The flags of a command that trains models and compares them."""
