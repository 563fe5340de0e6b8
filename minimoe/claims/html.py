"""[evidence] The ledger as a self-contained HTML page with embedded figures."""

from base64 import b64encode
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from minimoe.claims.claim import FAILS, HOLDS, NOT_BUILT, OPEN
from minimoe.claims.ledger import picture
from minimoe.claims.report import duration, summary
from minimoe.tools.files import write_atomically

CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open", NOT_BUILT: "unbuilt"}


def write_page(entries: list[dict[str, Any]], folder: Path, path: Path) -> None:
    """Write the page of the entries, with their figures from the ledger's ``folder``. All text is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    template = environment.from_string((files(__package__) / "page.html").read_text(encoding="utf-8"))
    paths = {entry["id"]: picture(folder, entry["id"]) for entry in entries}
    pictures = {id: b64encode(path.read_bytes()).decode() for id, path in paths.items() if path.exists()}
    html = template.render(entries=entries, pictures=pictures, summary=summary(entries), classes=CLASSES)
    write_atomically(path, html)
