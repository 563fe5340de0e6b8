"""The ledger as a page that needs nothing else: one HTML file, its pictures in it."""

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from minimoe.claims.claim import FAILS, HOLDS, NOT_BUILT, OPEN
from minimoe.claims.report import duration, summary
from minimoe.tools.files import write_atomically

CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open", NOT_BUILT: "unbuilt"}


def write_page(entries: list[dict[str, Any]], folder: Path, path: Path) -> None:
    """From the entries and the pictures in ``folder``. Whatever they say is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    template = environment.from_string((files(__package__) / "page.html").read_text(encoding="utf-8"))
    pictures = {entry["id"]: _embedded(folder / "pictures" / f"{entry['id']}.png") for entry in entries}
    html = template.render(entries=entries, pictures=pictures, summary=summary(entries), classes=CLASSES)
    write_atomically(path, html)


def _embedded(path: Path) -> str | None:
    """A picture as a data URL; None where a claim has none."""
    if not path.exists():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
