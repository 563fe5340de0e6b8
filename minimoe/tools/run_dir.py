"""The folder of a run: finished work is never overwritten silently, and an interrupted run can be resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

from minimoe.tools.files import write_atomically
from minimoe.tools.settings import first_difference

FORMAT = 2  # of the run's folder and all that is in it; 1 stored no format

RUN_FILE = "run.json"


def open_folder(
    out: Path, settings: dict[str, Any], *, resume: bool = False, overwrite: bool = False
) -> None:
    """Claim ``out`` for a run with these settings.

    Raises:
        ValueError: ``out`` holds a finished run, an interrupted one and neither ``resume`` nor ``overwrite``
            is set, a run with other settings or from another version, or other files.
    """
    if resume and overwrite:
        raise ValueError("--resume continues a run and --overwrite replaces it; choose one")
    run = _read(out)
    if overwrite and run is not None:
        shutil.rmtree(out)
        run = None
    if run is None:
        if resume:
            raise ValueError(f"{out} holds no run to resume; omit --resume to start one")
        out.mkdir(parents=True, exist_ok=True)
        _write(out, settings, finished=False)
        return
    _check_format(out, run)
    if run["finished"]:
        raise ValueError(f"{out} holds a finished run; choose another --out, or --overwrite to replace it")
    if not resume:
        raise ValueError(
            f"{out} holds an interrupted run; add --resume to continue it, --overwrite to replace it, or "
            "choose another --out"
        )
    if difference := first_difference(run["settings"], settings):
        raise ValueError(f"{out} was {difference}; resume with the same settings, or choose another --out")


def close_folder(out: Path) -> None:
    """Mark the run in ``out`` as finished."""
    run = _read(out)
    _write(out, run["settings"] if run else {}, finished=True)


def holds_run(out: Path) -> bool:
    """Whether ``out`` holds an unfinished run."""
    run = _read(out)
    return run is not None and not run["finished"]


def check_file(flag: str, path: Path | None) -> None:
    """Raise ValueError, before any work, if the file named by a flag cannot be written."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; name a file in it")


def _read(out: Path) -> dict[str, Any] | None:
    """The content of run.json; None if ``out`` is missing or empty. Raises ValueError for anything else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out must be a folder")
    if not out.exists() or not any(out.iterdir()):
        return None
    try:
        run = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
        return {
            "format": int(run.get("format", 1)),
            "finished": bool(run["finished"]),
            "settings": dict(run["settings"]),
        }
    except FileNotFoundError:
        raise ValueError(
            f"{out} is not empty and holds no run of minimoe; choose a new or an empty --out"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{out / RUN_FILE} is damaged; choose another --out") from None


def _check_format(out: Path, run: dict[str, Any]) -> None:
    if run["format"] != FORMAT:
        age = "an older" if run["format"] < FORMAT else "a newer"
        raise ValueError(
            f"{out} was written by {age} version of minimoe (format {run['format']}, this version reads "
            f"{FORMAT}); replace it with --overwrite, choose another --out, or use the version that wrote it"
        )


def _write(out: Path, settings: dict[str, Any], *, finished: bool) -> None:
    text = json.dumps({"format": FORMAT, "finished": finished, "settings": settings}, indent=1)
    write_atomically(out / RUN_FILE, text + "\n")
