"""``minimoe cost``: its table, its JSON and its errors."""

import json
from pathlib import Path

import pytest

from minimoe import GPT, ModelConfig
from minimoe.cli import main as cli
from minimoe.cli.commands.cost import Cost
from minimoe.cost import PUBLISHED, activations, all_to_all
from minimoe.tools import timing
from minimoe.tools.timing import Peaks

PAGE = Path(__file__).parents[2] / "docs" / "results" / "model-cost.md"


def test_the_command_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "cost.json"
    assert cli.main(["cost", "gpt-2", "--compare-with", "olmoe", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "124.44 M" in printed
    assert "6.92 G" in printed
    first, second = json.loads(out.read_text())
    assert (first["name"], second["name"]) == ("gpt-2", "olmoe")
    assert first["parameters"]["total"] == 124_439_808
    assert {"parameters", "flops_per_token", "bytes", "training", "assumed"} <= first.keys()
    assert cli.main(["cost", "gpt-2", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["parameters"]["active"] == 124_439_808


def test_the_json_has_every_figure(tmp_path, capsys):
    out = tmp_path / "cost.json"
    assert cli.main(["cost", "--keeping", "deepseek-v3", "--json", str(out)]) == 0
    found, a = json.loads(out.read_text()), PUBLISHED["deepseek-v3"]
    held = activations(a, 4096, "deepseek-v3")
    assert found["bytes"]["activations_per_token"] == held.peak / 4096
    assert found["all_to_all"]["bytes_per_token_and_layer"]["fp8"] == all_to_all(a, "fp8").bytes
    routed = found["roofline"]["4096"]["forward"]["parts"]["routed"]
    assert (routed["layers"], routed["bound"]) == (58, "memory")
    assert found["roofline"]["1"]["training"]["seconds"] > found["roofline"]["1"]["forward"]["seconds"]
    assert found["roofline"]["machine"] == "h800"
    run = found["published_run"]
    assert run["dollars"] == pytest.approx(5.576e6)
    assert run["predicted_hours"] == pytest.approx(2.664e6 * run["mfu"] / 0.4)
    printed = capsys.readouterr().out
    for shown in ("2.79 M", "5.58 M", "54 on 2,048 h800", "39.1%", "2.66 M / 2.60 M", "182 / 137", "23.75 M"):
        assert shown in printed
    assert "Assumptions:" in printed
    assert len([line for line in printed.splitlines() if line.startswith("│")]) <= 35


def test_our_own_model_alone_and_beside_a_published_one(tmp_path, capsys):
    out = tmp_path / "cost.json"
    flags = ["--config.n-experts", "32", "--config.dim", "64"]
    assert cli.main(["cost", "ours", *flags, "--compare-with", "olmoe", "--json", str(out)]) == 0
    ours, olmoe = json.loads(out.read_text())
    config = ModelConfig(n_experts=32, dim=64)
    assert ours["name"] == "ours"
    assert ours["parameters"]["total"] == sum(p.numel() for p in GPT(config).parameters())
    assert (ours["assumed"]["keeping"], olmoe["assumed"]["keeping"]) == ("float32", "bf16")
    assert ours["all_to_all"] is ours["published_run"] is olmoe["published_run"] is None
    assert "published run" not in capsys.readouterr().out
    assert cli.main(["cost", "ours", "--keeping", "bf16", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["assumed"]["keeping"] == "bf16"


def test_measured_peaks_replace_the_accelerators(tmp_path, capsys, monkeypatch):
    peaks = Peaks({"float32": 1e11, "bfloat16": 2e11}, bandwidth=2e10, threads=1)
    monkeypatch.setattr(timing, "peaks", lambda: peaks)
    out = tmp_path / "cost.json"
    assert cli.main(["cost", "ours", "--measure-peaks", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["roofline"]
    assert (found["machine"], found["flops"]) == ("measured", peaks.flops)
    dense = found["4096"]["forward"]["parts"]["dense"]
    assert dense["seconds"] == peaks.seconds(dense["flops"], dense["bytes"])
    assert "peaks measured here" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["gpt-2", "--config.n-experts", "8"],
            "--config describes ours, not gpt-2; use minimoe cost ours",
        ),
        (["gpt-3"], "unknown model 'gpt-3'; choose one of deepseek-v3"),
        (["--compare-with", "gpt-3"], "unknown model 'gpt-3'"),
        (["--keeping", "int4"], "storage precision must be one of"),
        (["--accelerator", "abacus"], "accelerator must be one of h100"),
        (["--mfu", "2"], "mfu (2.0) must be above 0 and at most 1"),
        (["--json", "nowhere/cost.json"], "there is no folder nowhere; create it first"),
    ],
)
def test_an_invalid_command_is_refused_in_one_line(capsys, arguments, message):
    assert cli.main(["cost", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_the_documentation_states_the_figures_of_the_command():
    command = Cost(compare_with="llama-3.1-405b", keeping="deepseek-v3")
    v3, llama = command.estimates()
    run, text = v3["published_run"], " ".join(PAGE.read_text(encoding="utf-8").split())
    for prose in (
        "minimoe cost deepseek-v3 --compare-with llama-3.1-405b --keeping deepseek-v3 ```",
        f"{run['total_hours'] / 1e6:.2f} million GPU-hours at {run['price']:g} dollars are "
        f"${run['dollars'] / 1e6:.2f} million, with {run['days']:.0f} days of pre-training on "
        f"{run['gpus']:,} GPUs",
        f"at {command.mfu:.0%} of the GPUs' bf16 peak the counted operations take "
        f"{run['predicted_hours'] / 1e6:.2f} million hours; the published "
        f"{run['hours']['pre-training'] / 1e6:.2f} million of pre-training imply {run['mfu']:.1%}",
        f"and Llama's imply {llama['published_run']['mfu']:.1%}",
    ):
        assert prose in text
    assert round(llama["flops_per_token"]["training"] / v3["flops_per_token"]["training"]) == 10
    assert v3["roofline"]["4096"]["forward"]["parts"]["routed"]["bound"] == "memory"
    assert {part["bound"] for part in v3["roofline"]["1"]["forward"]["parts"].values()} == {"memory"}
