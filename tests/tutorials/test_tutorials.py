"""Every tutorial runs from its first cell to its last, its exercises can be solved, and its notebook is of
the same cells."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
LONGEST = 14  # lines of code in a cell that a reader can type

pytestmark = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def cells(path: Path) -> list[tuple[str, str]]:
    """(kind, source) of each cell of a percent-format file; markdown without its comment signs."""
    found = []
    for part in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
        head, _, source = part.partition("\n")
        if "[markdown]" in head:
            found.append(("markdown", re.sub(r"^# ?", "", source, flags=re.M).strip()))
        else:
            found.append(("code", source.strip()))
    return found


def solutions(path: Path) -> list[str]:
    """The folded ones, in order."""
    text = "\n\n".join(source for kind, source in cells(path) if kind == "markdown")
    folded = r"<details>\s*<summary>Solution</summary>\s*```python\n(.*?)```\s*</details>"
    return re.findall(folded, text, re.S)


def checks(path: Path) -> list[str]:
    """The cells that check an answer, in order."""
    return [source for kind, source in cells(path) if kind == "code" and re.match(r"check_\w+\(", source)]


# Runs where a notebook would, and is told on its standard input what. Of every check it also notes which of
# its hints are not given to whoever makes that mistake.
RUN = """
import json, sys
import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt
import checks
compare, silent = checks.compare, []
def listening(answer, cases, *, hints=(), **options):
    cases, hints = list(cases), list(hints)
    for mistake, hint in hints:
        verdict = compare(mistake, cases, hints=hints, **options)
        if verdict or verdict.said != hint:
            silent.append([hint, repr(verdict)])
    return compare(answer, cases, hints=hints, **options)
checks.compare = listening
job = json.load(sys.stdin)
space = {"__name__": "__main__"}
figures = 0
for i, source in enumerate(job["cells"]):
    exec(compile(source, f"cell {i}", "exec"), space)
    figures += len(plt.get_fignums())
    plt.close("all")
said = []
for check, solution in zip(job["checks"], job["solutions"], strict=True):
    before = eval(check, space)
    exec(compile(solution, "solution", "exec"), space)
    after = eval(check, space)
    said.append([bool(before), repr(before), bool(after), repr(after)])
print("\\n" + json.dumps({"said": said, "figures": figures, "silent": silent}))
"""


def run(path: Path) -> subprocess.CompletedProcess[str]:
    job = {
        "cells": [source for kind, source in cells(path) if kind == "code"],
        "checks": checks(path),
        "solutions": solutions(path),
    }
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(job), text=True, cwd=FOLDER, env=environment,
        capture_output=True, timeout=300,
    )  # fmt: skip


@pytest.mark.tutorial
def test_it_runs_and_its_exercises_can_be_solved(path):
    done = run(path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 2 <= len(found["said"]) <= 4
    assert found["figures"] >= 2
    assert not found["silent"]
    for before, first, after, second in found["said"]:
        assert not before, first
        assert re.match(r"Not yet\. \S.*", first, re.S)
        assert after, second
        assert second.startswith("Right. ")


def test_its_notebook_is_of_the_same_cells_executed(path):
    target = path.with_suffix(".ipynb")
    assert target.exists(), f"make it: python tutorials/build.py {path.name[:2]}"
    assert target.stat().st_size < 300_000
    notebook = json.loads(target.read_text(encoding="utf-8"))
    there = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    assert there == cells(path), f"make it anew: python tutorials/build.py {path.name[:2]}"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"]
            assert all(output["output_type"] != "error" for output in cell["outputs"])


def test_it_is_made_as_the_others_are(path):
    found = cells(path)
    kind, first = found[0]
    assert kind == "markdown"
    assert re.match(r"# \d\. \S", first)
    assert "you will be able to" in first.lower()
    assert re.search(r"^## What this leaves out", found[-1][1], re.M)
    for kind, source in found:
        if kind == "code":
            lines = [line for line in source.splitlines() if line.strip()]
            assert len(lines) <= LONGEST, source
    words = sum(len(source.split()) for kind, source in found if kind == "markdown")
    assert words > 500
    prose = "\n".join(re.sub(r"```.*?```", "", s, flags=re.S) for k, s in found if k == "markdown")
    assert not re.search(r"\S\n1\. ", prose), "a line of a paragraph that Markdown takes for a list"
    assert "predict" in prose.lower() or "guess" in prose.lower()
