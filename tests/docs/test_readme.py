"""The README says what the project does: its output is that of the recorded run, its picture is true."""

import importlib.util
import json
import re
import statistics
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from minimoe.bench.report import print_bench
from minimoe.bench.summary import sentences, summarize
from minimoe.claims import CLAIMS
from minimoe.claims.report import markdown, summary
from minimoe.cli.commands.cost import Cost
from minimoe.cost import flops_per_token, parameters
from minimoe.cost.report import print_costs
from minimoe.experiments.distillation.experiment import ALONE, SETUPS
from minimoe.experiments.distillation.report import print_distillation
from minimoe.experiments.moe_vs_dense.report import print_comparison
from minimoe.experiments.precision.tables import TABLES
from minimoe.experiments.presets import PRESETS
from minimoe.reporting.tables import TextTable
from minimoe.training.config import Balance

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = {"quick": 3, "standard": 1}  # recorded presets, and the seeds of each
DISTILLED = {"quick": 1.0, "scarce": 0.05}  # recorded runs of distill, and the students' share of the text


def recorded(kind: str, preset: str) -> dict:
    return json.loads((ROOT / "docs" / "results" / f"{kind}-{preset}.json").read_text())


@pytest.mark.parametrize("preset", RUNS)
def test_the_output_shown_is_the_recorded_runs(tmp_path, preset):
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
    print_comparison(recorded("compare", preset), console)
    printed = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    mark = f"<!-- output of docs/compare-{preset}.json -->\n"
    shown = re.search(mark + r"```text\n(.*?)\n```", README, re.S)[1]
    assert shown.strip() == printed.strip()


@pytest.mark.parametrize("preset", RUNS)
def test_the_recorded_run_is_of_todays_preset(preset):
    models, training, run = PRESETS[preset].models(), PRESETS[preset].training, recorded("compare", preset)
    assert run["seeds"] == RUNS[preset]
    for row in run["models"]:
        assert row["parameters"] == parameters(models[row["model"]])
        assert row["flops_per_token"] == flops_per_token(models[row["model"]])
    tokens = run["curves"]["moe"][0]["tokens"][-1]
    assert tokens == training.steps * training.batch_size * models["moe"].context


@pytest.mark.parametrize("preset", RUNS)
def test_the_presets_follow_their_search(preset):
    search = recorded("search", preset)
    for name, rate in PRESETS[preset].lr.items():
        found = [e for e in search["found"] if (e["model"], e["schedule"]) == (name, "constant")]
        assert rate == min(found, key=lambda entry: entry["bits_per_byte"])["lr"]


def script(name: str):
    """A script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_the_costs_shown_are_those_that_are_counted(tmp_path):
    """Of the command that stands above them."""
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
    command = Cost(compare_with="llama-3.1-405b", keeping="deepseek-v3")
    assert (
        ".venv/bin/minimoe cost deepseek-v3 --compare-with llama-3.1-405b --keeping deepseek-v3\n" in README
    )
    v3, llama = found = command.figures()
    print_costs(found, console)
    printed = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    shown = re.search(r"<!-- output of minimoe cost -->\n```text\n(.*?)\n```", README, re.S)[1]
    assert shown.strip() == printed.strip()
    run, text = v3["published_run"], " ".join(README.split())
    for prose in (
        f"{run['total_hours'] / 1e6:.2f} million card hours at {run['price']:g} dollars are "
        f"${run['dollars'] / 1e6:.2f} million, with {run['days']:.0f} days of pre-training on "
        f"{run['cards']:,} cards",
        f"at {command.utilisation:.0%} of the cards' bf16 peak the counted operations take "
        f"{run['predicted_hours'] / 1e6:.2f} million hours, the published "
        f"{run['hours']['pre-training'] / 1e6:.2f} million of pre-training imply {run['utilisation']:.1%}",
        f"and Llama's imply {llama['published_run']['utilisation']:.1%}",
    ):
        assert prose in text
    assert round(llama["flops_per_token"]["training"] / v3["flops_per_token"]["training"]) == 10
    assert v3["roofline"]["4096"]["forward"]["parts"]["routed"]["bound"] == "bytes"
    assert {part["bound"] for part in v3["roofline"]["1"]["forward"]["parts"].values()} == {"bytes"}


def test_the_ledger_shown_is_the_recorded_one_and_todays_claims_judge_it_so():
    entries = json.loads((ROOT / "docs" / "results" / "claims.json").read_text())
    assert (
        f"{summary(entries)}\n\n<!-- table of docs/results/claims.json -->\n{markdown(entries)}\n" in README
    )
    assert [entry["id"] for entry in entries] == list(CLAIMS)
    for entry in entries:
        claim = CLAIMS[entry["id"]]
        values = {name: figure["values"] for name, figure in entry["measured"].items()}
        judgement = claim.judge(values)
        assert (entry["verdict"], entry["reason"]) == (judgement.verdict, judgement.reason)
        assert (entry["statement"], entry["source"]) == (claim.statement, claim.source)
        assert entry["size"] == "full"
        assert entry["seeds"] >= (3 if claim.learns else 1)
    assert sum(entry["seconds"] for entry in entries) < 45 * 60


def test_the_bench_shown_is_the_recorded_one(tmp_path):
    found = json.loads((ROOT / "docs" / "results" / "bench.json").read_text())
    assert found["summary"] == json.loads(json.dumps(summarize(found["records"])))
    assert found["sentences"] == sentences(found["records"])
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
    print_bench(found, console)
    printed = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    shown = re.search(r"<!-- output of docs/results/bench.json -->\n```text\n(.*?)\n```", README, re.S)[1]
    assert shown.strip() == printed.strip()


def test_the_students_rate_follows_its_search():
    found = recorded("search", "distill")["found"]
    assert (
        f"<!-- table of docs/results/search-distill.json -->\n{script('search').markdown(found)}\n" in README
    )
    for schedule in {entry["schedule"] for entry in found}:
        alone = [e for e in found if (e["model"], e["schedule"]) == (ALONE, schedule)]
        best = min(alone, key=lambda entry: entry["bits_per_byte"])
        assert best["lr"] == SETUPS["quick"].training.lr


def test_the_parallel_tables_are_the_recorded_ones():
    found = json.loads((ROOT / "docs" / "results" / "parallel.json").read_text())
    for name, table in script("parallel").markdown(found).items():
        assert f"<!-- table {name} of docs/results/parallel.json -->\n{table}\n" in README
    assert found["predicted"] == script("parallel").predict()


def test_the_memory_shown_is_the_recorded_one():
    found = json.loads((ROOT / "docs" / "results" / "distill-memory.json").read_text())["found"]
    table = script("distill_memory").markdown(found)
    assert f"<!-- table of docs/results/distill-memory.json -->\n{table}\n" in README
    assert all(ways["chunked"]["peak_mb"] < ways["plain"]["peak_mb"] / 4 for ways in found.values())


def test_the_balance_table_shown_is_the_recorded_one():
    found = recorded("balance", "quick")
    table = script("balance").markdown(found["found"])
    assert f"<!-- table of docs/results/balance-quick.json -->\n{table}\n" in README
    assert found["steps"] == PRESETS["quick"].training.steps
    runs = [(run["balance"], run["seed"]) for run in found["found"]]
    assert sorted(runs) == sorted((method, seed) for method in get_args(Balance) for seed in range(3))


def test_the_8_bit_training_shown_is_the_recorded_one():
    training = script("fp8_training")
    found = json.loads((ROOT / "docs" / "results" / "fp8-training.json").read_text())
    assert (
        f"<!-- table of docs/results/fp8-training.json -->\n{training.markdown(found['found'])}\n" in README
    )
    runs = [(run["model"], run["seed"]) for run in found["found"]]
    assert sorted(runs) == sorted((model, seed) for model in training.MODELS for seed in range(3))
    for model in training.MODELS:
        assert abs(statistics.fmean(training.gaps(found["found"], model, "deepseek-v3"))) < 0.25
        assert statistics.fmean(training.gaps(found["found"], model, "naive")) > 10


def test_the_tables_shown_are_the_recorded_ones():
    tables = {
        name: json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())["tables"]
        for name in ("precision", "digits")
    }
    names = [table["name"] for table in tables["precision"]]
    assert names == [measure.__name__.replace("_", "-") for measure in TABLES]
    assert len(tables["digits"]) == 3
    for file, several in tables.items():
        for table in several:
            shown = TextTable(**table).markdown()
            assert f"<!-- table {table['name']} of docs/{file}.json -->\n{shown}\n" in README


def test_the_search_shown_is_the_recorded_one():
    search = script("search")
    quick = recorded("search", "quick")
    assert f"<!-- table of docs/results/search-quick.json -->\n{search.markdown(quick['found'])}\n" in README
    assert quick["steps"] == PRESETS["quick"].training.steps


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
