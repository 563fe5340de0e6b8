"""Records: what a run did, one JSON object a line, so that a killed run leaves whole lines behind.

Every line carries ``kind``: ``run`` (the first: configuration, data, machine), ``step``, ``evaluation``.
"""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: whoever reads it, or is killed meanwhile, finds the old or the new."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
