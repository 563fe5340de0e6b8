"""Records: what a run did, one JSON object a line, so that a killed run leaves whole lines behind.

Every line carries ``kind``: ``run`` (the first: configuration, data, machine), ``step``, ``evaluation``.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimoe.tools.files import write_atomically

Record = dict[str, Any]


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
