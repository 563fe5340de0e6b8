"""A run's folder: nobody's finished work is overwritten silently, and a stopped run is found again."""

import json
import shutil
from pathlib import Path
from typing import Any

from minimoe.tools.files import write_atomically

MARK = "run.json"


def open_folder(
    out: Path, settings: dict[str, Any], *, resume: bool = False, overwrite: bool = False
) -> None:
    """Claim ``out`` for a run with these settings.

    Raises:
        ValueError: it holds a finished or unfinished run and neither ``resume`` nor ``overwrite`` says
            what to do, or a run with other settings, or things that are no run.
    """
    if resume and overwrite:
        raise ValueError("--resume goes on and --overwrite starts anew: choose one")
    settings = json.loads(json.dumps(settings))  # as they will be read back
    mark = _read_mark(out)
    if overwrite and mark is not None:
        shutil.rmtree(out)
        mark = None
    if mark is None:
        if resume:
            raise ValueError(f"{out} holds no run to resume; leave --resume out to start one")
        out.mkdir(parents=True, exist_ok=True)
        _write_mark(out, settings, finished=False)
        return
    if mark["finished"]:
        raise ValueError(f"{out} holds a finished run; choose another --out, or --overwrite to replace it")
    if not resume:
        raise ValueError(
            f"{out} holds a run that was stopped; add --resume to go on with it, --overwrite to start "
            "anew, or choose another --out"
        )
    for key in sorted(mark["settings"].keys() | settings.keys()):
        before, now = mark["settings"].get(key), settings.get(key)
        if before != now:
            raise ValueError(
                f"{out} was begun with {key} = {before}, now it is {now}; resume with the same "
                "settings, or choose another --out"
            )


def check_file(flag: str, path: Path | None) -> None:
    """Raise ValueError, before any work, where a file that a flag names could not be written."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; name a file in it")


def close_folder(out: Path) -> None:
    """Mark the run of ``out`` as finished."""
    mark = _read_mark(out)
    _write_mark(out, mark["settings"] if mark else {}, finished=True)


def holds_run(out: Path) -> bool:
    """Whether a run was begun in ``out`` and is not finished."""
    mark = _read_mark(out)
    return mark is not None and not mark["finished"]


def _read_mark(out: Path) -> dict[str, Any] | None:
    """What ``out`` says of itself; None where there is nothing. Raises ValueError for other things."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out must be a folder")
    if not out.exists() or not any(out.iterdir()):
        return None
    try:
        mark = json.loads((out / MARK).read_text(encoding="utf-8"))
        return {"finished": bool(mark["finished"]), "settings": dict(mark["settings"])}
    except FileNotFoundError:
        raise ValueError(
            f"{out} is not empty and holds no run of minimoe; choose a new or an empty --out"
        ) from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{out / MARK} is damaged; choose another --out") from None


def _write_mark(out: Path, settings: dict[str, Any], *, finished: bool) -> None:
    text = json.dumps({"finished": finished, "settings": settings}, indent=1)
    write_atomically(out / MARK, text + "\n")
