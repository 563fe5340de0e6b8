"""MoE against dense: the comparison's arithmetic, on made-up curves with known answers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from minimoe.cost import flops_per_token, parameters
from minimoe.experiments.curves import Curve, read_curve
from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE
from minimoe.experiments.moe_vs_dense.results import Comparison
from minimoe.experiments.presets import PRESETS
from minimoe.models.config import ModelConfig
from minimoe.reporting.tables import print_table
from minimoe.training.config import TrainConfig

MODELS = PRESETS["quick"].models()


def curve(bits, *, step_seconds=1.0, flops=1.0, violation=None):
    steps = np.arange(1, len(bits) + 1, dtype=float)
    spent = {"tokens": 100 * steps, "flops": flops * steps, "seconds": step_seconds * steps}
    bits = np.array(bits)
    return Curve(spent, {"all": bits, "prose": bits + 1}, violation, 100 / step_seconds)


def made_up():
    """MoE: better per token, twice as slow as dense-active, half of dense-total's time."""
    return Comparison(
        {
            "dense-active": [curve([4.0, 3.5, 3.2, 3.1])],
            "dense-total": [curve([3.8, 3.0, 2.6, 2.4], step_seconds=4, flops=4)],
            "moe": [curve([4.0, 3.4, 3.0, 2.8], step_seconds=2, violation=0.5)],
        },
        MODELS,
    )


def test_budgets_are_the_cheapest_models_whole_run():
    comparison = made_up()
    assert [comparison.budget(axis, 0) for axis in ("tokens", "flops", "seconds")] == [400, 4, 4]
    assert comparison.reached("moe", "tokens") == [2.8]
    assert comparison.reached("moe", "seconds") == [3.4]  # two steps' worth
    assert comparison.reached("dense-total", "seconds") == [3.8]  # one step's
    assert curve([4.0, 3.0]).at("seconds", 1.5) == 3.5  # a straight line between evaluations
    assert curve([4.0, 3.0]).at("seconds", 0.5) == 6.0  # and from 8 bits to the first


def test_the_best_evaluation_within_a_budget():
    assert curve([4.0, 3.0, 3.5]).best == 3.0
    assert curve([4.0, 3.0, 3.5]).best_within("seconds", 1.5) == 3.5  # a straight line between evaluations
    assert curve([4.0, 3.0, 3.5]).best_within("seconds", 3) == 3.0


def test_the_verdict_says_both_ways():
    text = made_up().verdict()
    assert "Against dense-active the mixture won at equal tokens (by 0.300), " in text
    assert "won at equal FLOPs (by 0.300), LOST at equal seconds (by 0.300)." in text
    assert "Against dense-total the mixture LOST at equal tokens (by 0.400), " in text
    assert "won at equal FLOPs (by 1.000), won at equal seconds (by 0.400)." in text
    assert "one seed" in text


def test_seeds_are_paired():
    curves = {
        "dense-active": [curve([4.0, 3.0]), curve([5.0, 4.0])],
        "moe": [curve([3.9, 2.9]), curve([4.9, 3.9])],
    }
    comparison = Comparison(curves, {name: MODELS[name] for name in curves})
    assert comparison.leads("dense-active", "tokens") == pytest.approx([0.1, 0.1])
    assert comparison.rows()[0]["tokens"]["all"]["deviation"] == pytest.approx(0.707, abs=1e-3)
    assert "2 paired seeds" in comparison.verdict()


def test_a_curve_is_read_from_records_with_the_median_second(tmp_path):
    lines = [{"kind": "run"}]
    for step in range(1, 7):
        lines.append({"kind": "step", "step": step, "seconds": 50.0 if step == 3 else 2.0})
        if step % 2 == 0:
            lines.append(
                {"kind": "evaluation", "step": step, "bits_per_byte": 5 - step / 2, "domains": {"prose": 1.0}}
            )
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "step", "st')
    model, training = ModelConfig(context=32), TrainConfig(batch_size=4, accumulate=2)
    read = read_curve(path, model, training)
    assert read.spent["seconds"].tolist() == [4, 8, 12]  # step 3 was slow, and does not count
    assert read.spent["steps"].tolist() == [2, 4, 6]
    assert read.spent["tokens"].tolist() == [512, 1024, 1536]
    assert read.spent["flops"][0] == 512 * flops_per_token(model)
    assert read.bits_per_byte["all"].tolist() == [4, 3, 2]
    assert read.bits_per_byte["prose"].tolist() == [1, 1, 1]
    assert read.tokens_per_second == 128
    path.write_text('{"kind": "run"}\n')
    with pytest.raises(ValueError, match="no evaluation"):
        read_curve(path, model, training)


def test_table_and_json_carry_the_figures(tmp_path):
    comparison = made_up()
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
    data = json.loads(json.dumps(comparison.as_dict()))
    for table in MOE_VS_DENSE.tables(data):
        print_table(table, console)
    text = console.export_text()
    for figure in ("2.800", "3.400", "4.400", "0.50", f"{parameters(MODELS['moe']):,}"):
        assert figure in text
    assert data["verdict"] == comparison.verdict()
    moe = next(row for row in data["models"] if row["model"] == "moe")
    assert moe["tokens"]["all"] == {"mean": 2.8, "deviation": None}
    assert moe["seconds"]["prose"]["mean"] == 4.4  # a domain is read at the same budget
    assert moe["parameters"] == parameters(MODELS["moe"])
    assert data["curves"]["moe"][0]["seconds"] == [2, 4, 6, 8]


def test_figure_is_drawn(tmp_path):
    assert MOE_VS_DENSE.save_figure(made_up().as_dict(), tmp_path / "figure.png", "a title")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_presets_are_fair():
    for preset in PRESETS.values():
        models = preset.models()
        assert list(preset.lr) == list(models)
        moe = models["moe"]
        assert models["dense-active"] == replace(
            moe, n_experts=0, hidden_dim=models["dense-active"].hidden_dim
        )
        assert 1 <= parameters(models["dense-active"]) / parameters(moe, active=True) < 1.03
        assert 1 <= parameters(models["dense-total"]) / parameters(moe) < 1.03
        assert preset.training.schedule == "constant"
