"""The tables of ``minimoe precision``: measured when asked, and what they show."""

import json
from functools import partial

import pytest

from minimoe.cli import commands
from minimoe.cli import main as cli
from minimoe.experiments.precision.tables import (
    bounds,
    outliers,
    products,
    rules_of_scale,
    signal_to_noise,
    sums,
)


def cells(numbers) -> dict[str, list[str]]:
    assert all(len(row) == len(numbers.headings) for row in numbers.rows)
    return {row[0]: row[1:] for row in numbers.rows}


def test_signal_to_noise_is_measured():
    few, other = cells(signal_to_noise(size=256)), cells(signal_to_noise(size=256, seed=1))
    assert few != other  # nothing typed in
    for table in (few, other):
        assert float(table["E4M3"][1]) == pytest.approx(31.8, abs=0.2)
        assert float(table["E5M2"][0]) == pytest.approx(25.6, abs=0.3)
        assert float(table["INT8"][1]) > float(table["E4M3"][1])
        assert float(table["BF16"][0]) == pytest.approx(55.6, abs=0.3)


def test_a_scale_rounded_down_saturates():
    table = {name: [float(x) for x in row] for name, row in cells(rules_of_scale(size=256)).items()}
    assert table["fp32"][0] > table["power of two, up"][0] > table["OCP MX"][0]
    assert table["power of two, nearest"][0] < 28
    assert table["power of two, down"][0] < 18


def test_an_outlier_is_hidden_by_the_usual_measure():
    tensor, tile, _ = cells(outliers(size=512, height=256))["10^5"]
    assert float(tensor.split()[0]) < 10 < 20 < float(tile.split()[0])
    assert all(float(cell.split("all: ")[1].rstrip(")")) > 25 for cell in (tensor, tile))


def test_sums_lose_with_k_unless_promoted():
    rows = sums(size=8).rows
    lost = {(row[0], row[1]): row[2:] for row in rows}
    percent = [float(lost["uniform [0, 1)", k][1].rstrip("%")) for k in ("512", "4096", "16384")]
    assert percent == sorted(percent)
    assert percent[2] > 20
    promoted = [float(lost["uniform [0, 1)", k][2].rstrip("%")) for k in ("512", "4096", "16384")]
    assert max(promoted) < 0.12


def test_products_show_what_scales_are_for():
    table = cells(products(size=64, depth=512))
    assert table["naive"][1] == "100.00%"
    assert float(table["deepseek-v3"][1].rstrip("%")) < 4.5
    assert float(table["full"][0]) < 1e-6


def test_bounds_hold_and_say_something():
    rows = bounds(size=16, depth=256).rows
    assert len({(draw, name) for name, draw, *_ in rows}) == len(rows) == 20
    for name, draw, *row in rows:
        (certain, _), (probable, least) = ([float(x) for x in cell[:-1].split(" (")] for cell in row)
        assert certain >= probable >= least >= 1, (draw, name)
        if name in ("deepseek-v3", "tensorwise", "mxfp8"):
            assert certain < 100, (draw, name)


def test_the_command_prints_and_writes_them(capsys, monkeypatch, tmp_path):
    small = partial(signal_to_noise, size=64)
    small.__name__ = "signal_to_noise"
    monkeypatch.setattr(commands, "TABLES", (small,))
    assert cli.main(["precision", "--out", str(tmp_path / "tables.json"), "--seed", "3"]) == 0
    assert "Signal to noise in dB" in capsys.readouterr().out
    data = json.loads((tmp_path / "tables.json").read_text())
    assert [table["name"] for table in data["tables"]] == ["signal-to-noise"]
    assert data["seed"] == 3
    assert cli.main(["precision", "--out", str(tmp_path / "no" / "tables.json")]) == 1
    assert "make it first" in capsys.readouterr().err
