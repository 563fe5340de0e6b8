"""The rooms of the package import in one direction, and a small import stays small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "minimoe"
# A room imports only from those to its left.
ORDER = (
    "tools", "reporting", "data", "kernels", "precision", "moe", "models", "cost", "distributed", "training",
    "distill", "rl", "testing", "experiments", "bench", "claims", "cli",
)  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Every module of the package that a file imports, under TYPE_CHECKING and in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "minimoe")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write the whole name of the module"
            if (node.module or "").split(".")[0] == "minimoe":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if whole in MODULES else str(node.module)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_only_the_package_s_own_files_stand_outside_a_room():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "version.py"}
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found <= set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_to_the_left(path):
    here = room(name_of(path))
    if not here or here == "__main__":
        return  # the package's face, which loads a room on first use
    for module in imports(path):
        there = room(module)
        if there == "version":
            continue
        assert there in ORDER, f"{path} imports the whole package ({module}); name the room"
        assert ORDER.index(there) <= ORDER.index(here), f"{name_of(path)} imports {module}, to its right"


def test_no_two_files_import_each_other_in_a_circle():
    """Inside a room, too. A package's face imports its files, which name each other and not the face."""
    edges = {name: {m for m in imports(path) if m in MODULES and m != name} for name, path in MODULES.items()}
    del edges["minimoe"]
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize(("here", "allowed"), [("precision", {"precision"}), ("moe", {"moe", "precision"})])
def test_a_technique_knows_nothing_of_data_loops_files_or_the_terminal(here, allowed):
    for name, path in MODULES.items():
        if room(name) == here:
            assert {room(module) for module in imports(path)} <= allowed | {"kernels"}, name


@pytest.mark.parametrize("module", ["minimoe.moe", "minimoe.precision", "minimoe.testing"])
def test_a_technique_loads_neither_trainer_nor_terminal(module):
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert module in loaded
    for unwanted in ("rich", "tyro", "matplotlib", "minimoe.training", "minimoe.data", "minimoe.cli"):
        assert unwanted not in loaded
