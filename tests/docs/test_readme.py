"""The README says what the project does: its output is that of the recorded run, its picture is true."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from minimoe.cost import parameters
from minimoe.experiments.distillation.setup import ALONE, SETUPS
from minimoe.experiments.distillation.report import print_distillation
from minimoe.experiments.lr_search import lr_table
from minimoe.reporting.tables import TextTable

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = {"quick": 3, "standard": 1}  # recorded presets, and the seeds of each
DISTILLED = {"quick": 1.0, "scarce": 0.05}  # recorded runs of distill, and the students' share of the text


def recorded(kind: str, preset: str) -> dict:
    return json.loads((ROOT / "docs" / "results" / f"{kind}-{preset}.json").read_text())


@pytest.mark.parametrize("name", DISTILLED)
def test_the_distillation_shown_is_the_recorded_one_of_todays_preset(tmp_path, name):
    found, setup = recorded("distill", name), SETUPS["quick"]
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
    print_distillation(found, console)
    printed = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    mark = f"<!-- output of docs/distill-{name}.json -->\n"
    shown = re.search(mark + r"```text\n(.*?)\n```", README, re.S)[1]
    assert shown.strip() == printed.strip()
    assert (found["seeds"], found["data_fraction"]) == (3, DISTILLED[name])
    assert found["steps"] == setup.training.steps
    assert {row["method"] for row in found["methods"]} == set(setup.methods())
    for row, config in zip(found["models"], (setup.student, setup.teacher, setup.mixture), strict=False):
        assert row["parameters"] == parameters(config)


def test_the_students_rate_follows_its_search():
    found = recorded("search", "distill")["detail"]["runs"]
    assert (
        f"<!-- table of docs/results/search-distill.json -->\n{lr_table('', '', found).markdown()}\n"
        in README
    )
    for schedule in {entry["schedule"] for entry in found}:
        alone = [e for e in found if (e["model"], e["schedule"]) == (ALONE, schedule)]
        best = min(alone, key=lambda entry: entry["bits_per_byte"])
        assert best["lr"] == SETUPS["quick"].training.lr


def test_the_tables_shown_are_the_recorded_ones():
    tables = {
        name: json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())["tables"]
        for name in ("precision", "digits")
    }
    assert len(tables["digits"]) == 3
    for file, several in tables.items():
        for table in several:
            shown = TextTable(**table).markdown()
            assert f"<!-- table {table['name']} of docs/{file}.json -->\n{shown}\n" in README


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_the_python_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_imports_point_one_way():
    """Nothing in moe/ and precision/ knows of data, loops, files or the terminal."""
    for folder, allowed in (("precision", ("precision",)), ("moe", ("moe", "precision"))):
        for path in (ROOT / "minimoe" / folder).glob("*.py"):
            for module in re.findall(r"^from (minimoe[\w.]*) import", path.read_text(), re.M):
                assert module.startswith(tuple(f"minimoe.{name}" for name in allowed)), (path.name, module)


@pytest.mark.parametrize("name", ["train-step", "moe-layer", "precision-speed"])
def test_the_times_shown_are_the_recorded_ones(name):
    assert (ROOT / "docs" / "results" / f"{name}.txt").read_text().rstrip() in README
