"""Records of a run in JSON Lines: one object per line, so that a killed run leaves complete lines.

Every line has a ``kind``: ``run`` (the first: configuration, data, machine), ``step`` or ``evaluation``.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimoe.tools.files import write_atomically

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Add one line. Raises OSError if the disk is full."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> Iterator[Record]:
    """The records of a file, without a last line that was cut short by a kill."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def truncate_after(path: Path, step: int) -> None:
    """Drop the records after ``step``, because a resumed run writes them again."""
    remaining = [record for record in read(path) if record.get("step", 0) <= step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in remaining))
