"""Recorded runs in docs/results: of today's presets, with figures and verdicts that follow from details."""

import json
import statistics
from pathlib import Path
from typing import get_args

import pytest
from matplotlib.figure import Figure

from minimoe.claims import CLAIMS
from minimoe.cost import flops_per_token, parameters
from minimoe.experiments import fp8_training, load_balance
from minimoe.experiments.presets import PRESETS
from minimoe.experiments.registry import EXPERIMENTS
from minimoe.training.config import Balance

RESULTS = Path(__file__).parents[2] / "docs" / "results"
COMPARED = {"quick": 3, "standard": 1}  # presets of recorded comparisons, and their seeds
RECORDED = ("balance-quick", "fp8-training", "search-quick", "search-standard")  # by `minimoe experiment`


def record(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("preset", COMPARED)
def test_the_recorded_comparison_is_of_todays_preset(preset):
    models, training, run = PRESETS[preset].models(), PRESETS[preset].training, record(f"compare-{preset}")
    assert run["seeds"] == COMPARED[preset]
    for row in run["models"]:
        assert row["parameters"] == parameters(models[row["model"]])
        assert row["flops_per_token"] == flops_per_token(models[row["model"]])
    tokens = run["curves"]["moe"][0]["tokens"][-1]
    assert tokens == training.steps * training.batch_size * models["moe"].context
    EXPERIMENTS["moe-vs-dense"].draw(Figure(), run)


@pytest.mark.parametrize("preset", COMPARED)
def test_the_presets_follow_their_search(preset):
    runs = record(f"search-{preset}")["detail"]["runs"]
    for name, rate in PRESETS[preset].lr.items():
        constant = [run for run in runs if (run["model"], run["schedule"]) == (name, "constant")]
        assert rate == min(constant, key=lambda run: run["bits_per_byte"])["lr"]
    if preset == "quick":
        assert record("search-quick")["detail"]["steps"] == PRESETS["quick"].training.steps


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_experiments_can_be_shown_again(name):
    """From plain data: the tables, and the figure if there is one."""
    run = record(name)
    experiment = EXPERIMENTS[run["experiment"]]
    assert experiment.tables(run["detail"])
    if experiment.draw is not None:
        experiment.draw(Figure(), run["detail"])
    for figure in run["measured"].values():
        assert figure["mean"] == pytest.approx(statistics.fmean(figure["values"]))


def test_the_recorded_load_balance():
    run = record("balance-quick")
    runs = run["detail"]["runs"]
    assert run["detail"]["steps"] == PRESETS["quick"].training.steps
    assert list(runs) == list(get_args(Balance))
    assert all(len(values) == run["seeds"] == 3 for figures in runs.values() for values in figures.values())
    assert {name: figure["values"] for name, figure in run["measured"].items()} == load_balance.values(runs)


def test_the_recorded_fp8_training():
    run = record("fp8-training")
    curves = run["detail"]["curves"]
    assert run["seeds"] == 3
    assert list(curves) == ["dense", "moe"]
    assert {name: figure["values"] for name, figure in run["measured"].items()} == fp8_training.values(curves)
    for of_recipes in curves.values():
        assert abs(statistics.fmean(fp8_training.gaps(of_recipes, "deepseek-v3"))) < 0.25
        assert statistics.fmean(fp8_training.gaps(of_recipes, "naive")) > 10


def test_the_recorded_ledger_is_what_todays_claims_conclude():
    entries = record("claims")
    assert [entry["id"] for entry in entries] == list(CLAIMS)
    for entry in entries:
        claim = CLAIMS[entry["id"]]
        values = {name: figure["values"] for name, figure in entry["measured"].items()}
        judgement = claim.judge(values)
        assert (entry["verdict"], entry["reason"]) == (judgement.verdict, judgement.reason)
        assert [bound["outcome"] for bound in entry["bound"]] == judgement.outcomes
        assert (entry["statement"], entry["source"]) == (claim.statement, claim.source)
        assert [bound["what"] for bound in entry["bound"]] == [bound.what for bound in claim.bounds]
        assert entry["size"] == "full"
        assert entry["seeds"] >= (3 if claim.learns else 1)
        if claim.experiment is not None:
            claim.experiment.draw(Figure(), entry["detail"])
    assert sum(entry["seconds"] for entry in entries) < 45 * 60
