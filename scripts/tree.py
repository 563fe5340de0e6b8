"""What the source tree says of itself: rooms, imports between them, and the first sentence of every file."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minimoe"
MARKS = ("speed", "portability", "evidence")  # what a file off the reading path is there for


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line and without its [mark]."""
    paragraph = " ".join(docstring(path).split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.?!])\s+(?=[A-Z\[`])", paragraph)[0]
    return re.sub(rf"^\[({'|'.join(MARKS)})\]\s+", "", sentence).replace("``", "`")


def mark(path: Path) -> str | None:
    """ "speed", "portability" or "evidence" where a file stands off the reading path."""
    found = re.match(rf"\[({'|'.join(MARKS)})\] ", docstring(path))
    return found[1] if found else None


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def rooms() -> dict[str, list[Path]]:
    """The folders of the package and their files, in the import order of tests/test_architecture.py."""
    text = (ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8")
    order = ast.literal_eval(text.split("\nORDER = ")[1].split("\n)")[0] + ")")
    present = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    if unknown := present - set(order):
        raise ValueError(f"tests/test_architecture.py does not order the room {sorted(unknown)[0]!r}")
    return {name: sorted((PACKAGE / name).rglob("*.py")) for name in order if name in present}


def arrows() -> Counter[tuple[str, str]]:
    """(importing room, imported room): in how many files of the first the second is imported."""
    found: Counter[tuple[str, str]] = Counter()
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).parts[0]
        if here not in folders:
            continue
        there = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module == "minimoe":
                names = [f"minimoe.{alias.name}" for alias in node.names]
            there |= {name.split(".")[1] for name in names if name.startswith("minimoe.")}
        for room in (there & folders) - {here}:
            found[here, room] += 1
    return found


def floors(order: list[str], edges: Counter[tuple[str, str]]) -> dict[str, int]:
    """How many rooms lie below one, along the longest way down."""
    floor: dict[str, int] = {}
    for room in order:
        floor[room] = max((floor[b] + 1 for a, b in edges if a == room), default=0)
    return floor


def direct(edges: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arrows that no longer way replaces (the transitive reduction)."""
    below: dict[str, set[str]] = {}

    def reach(room: str) -> set[str]:
        if room not in below:
            below[room] = set()
            for a, b in edges:
                if a == room:
                    below[room] |= {b} | reach(b)
        return below[room]

    return sorted((a, b) for a, b in edges if not any(b in reach(c) for x, c in edges if x == a and c != b))
