"""Make the notebooks: every NN_name.py here executed and written as NN_name.ipynb beside it.

    python tutorials/build.py            # all of them, under 6 minutes on 2 CPU cores
    python tutorials/build.py 01 03      # some of them

Needs the extra: pip install -c constraints.txt -e ".[tutorials]". A notebook has the cells of its .py, their
output, and nothing that differs from machine to machine but what was measured.
"""

import sys
import time
from pathlib import Path

import jupytext
from nbclient import NotebookClient

HERE = Path(__file__).parent


def build(source: Path) -> None:
    """Execute one tutorial as Jupyter would, in this folder. Raises nbclient's error where a cell fails."""
    notebook = jupytext.read(source)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    begin = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=300,
        resources={"metadata": {"path": str(HERE)}},
        extra_arguments=["--log-level=ERROR"],  # a kernel warns each time that it talks over TCP
    ).execute()
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        cell.metadata.pop("execution", None)
    target = source.with_suffix(".ipynb")
    jupytext.write(notebook, target)
    print(f"{target.name}: {time.perf_counter() - begin:.0f} s, {target.stat().st_size / 1000:.0f} kB")


def chosen(numbers: list[str]) -> list[Path]:
    """The sources with these numbers, or all. Raises ValueError for a number that none has."""
    found = {path.name[:2]: path for path in sorted(HERE.glob("[0-9][0-9]_*.py"))}
    if unknown := [number for number in numbers if number not in found]:
        raise ValueError(f"there is no tutorial {unknown[0]!r}; choose among {', '.join(found)}")
    return [path for number, path in found.items() if not numbers or number in numbers]


if __name__ == "__main__":
    try:
        sources = chosen(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"build.py: {error}")
    for source in sources:
        build(source)
