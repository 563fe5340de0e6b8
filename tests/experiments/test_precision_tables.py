"""The experiments on precision: what their tables show, and the command that prints them."""

import json
from pathlib import Path

import pytest

from minimoe.cli import main as cli
from minimoe.cli.commands import precision as command
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.experiments.precision import accumulation, outliers, quantization_noise
from minimoe.experiments.precision.matmul_error import (
    bound_ratios,
    bound_tables,
    product_errors,
    product_tables,
)
from minimoe.experiments.precision.quantization_noise import signal_to_noise

RECORD = Path(__file__).parents[2] / "docs" / "results" / "precision.json"

SMALL = {
    "quantization-noise": lambda: signal_to_noise(128),
    "outliers": lambda: outliers.outlier_errors(128, 256),
    "accumulation": lambda: {
        "size": 4, "lengths": [512, 4096, 16384], "errors": accumulation.sum_errors([512] * 3, 4)
    },
    "matmul-error": lambda: product_errors(32, 128),
    "error-bounds": lambda: bound_ratios(8, 128),
}  # fmt: skip


def cells(table) -> dict[str, list[str]]:
    assert all(len(row) == len(table.headings) for row in table.rows)
    return {row[0]: row[1:] for row in table.rows}


def test_signal_to_noise_is_measured():
    tables = [quantization_noise.tables(signal_to_noise(256, seed))[0] for seed in (0, 1)]
    assert cells(tables[0]) != cells(tables[1])  # nothing typed in
    for table in map(cells, tables):
        assert float(table["E4M3"][1]) == pytest.approx(31.8, abs=0.2)
        assert float(table["E5M2"][0]) == pytest.approx(25.6, abs=0.3)
        assert float(table["INT8"][1]) > float(table["E4M3"][1])
        assert float(table["BF16"][0]) == pytest.approx(55.6, abs=0.3)


def test_a_scale_rounded_down_saturates():
    by_rule = cells(quantization_noise.tables(signal_to_noise(256))[1])
    table = {name: [float(x) for x in row] for name, row in by_rule.items()}
    assert table["fp32"][0] > table["power of two, up"][0] > table["OCP MX"][0]
    assert table["power of two, nearest"][0] < 28
    assert table["power of two, down"][0] < 18


def test_an_outlier_is_hidden_by_the_usual_measure():
    (table,) = outliers.tables(outliers.outlier_errors(256, 512))
    tensor, tile, _ = cells(table)["10^5"]
    assert list(cells(table)) == ["10^2", "10^3", "10^4", "10^5", "10^6"]
    assert float(tensor.split()[0]) < 10 < 20 < float(tile.split()[0])
    assert all(float(cell.split("all: ")[1].rstrip(")")) > 25 for cell in (tensor, tile))


def test_sums_lose_with_k_unless_promoted():
    lengths = [128, 512, 4096, 16384]
    errors = accumulation.sum_errors(lengths, size=8, inputs=["uniform [0, 1)"])
    (table,) = accumulation.tables({"size": 8, "lengths": lengths, "errors": errors})
    lost = {(row[0], row[1]): row[2:] for row in table.rows}
    assert len(lost) == 3
    percent = [float(lost["uniform [0, 1)", k][1].rstrip("%")) for k in ("512", "4096", "16384")]
    assert percent == sorted(percent)
    assert percent[2] > 20
    promoted = [float(lost["uniform [0, 1)", k][2].rstrip("%")) for k in ("512", "4096", "16384")]
    assert max(promoted) < 0.12


def test_products_show_what_scales_are_for():
    table = cells(product_tables(product_errors(64, 512))[0])
    assert table["naive"][1] == "100.00%"
    assert float(table["deepseek-v3"][1].rstrip("%")) < 4.5
    assert float(table["full"][0]) < 1e-6


def test_bounds_hold_and_say_something():
    rows = bound_tables(bound_ratios(16, 256))[0].rows
    assert len({(numbers, name) for name, numbers, *_ in rows}) == len(rows) == 20
    for name, numbers, *row in rows:
        (certain, _), (probable, least) = ([float(x) for x in cell[:-1].split(" (")] for cell in row)
        assert certain >= probable >= least >= 1, (numbers, name)
        if name in ("deepseek-v3", "tensorwise", "mxfp8"):
            assert certain < 100, (numbers, name)


@pytest.mark.parametrize(("name", "detail"), SMALL.items())
def test_tables_are_made_from_plain_data_and_have_the_recorded_headings(name, detail):
    tables = command.EXPERIMENTS[name].tables(detail := detail())
    assert tables == command.EXPERIMENTS[name].tables(json.loads(json.dumps(detail)))
    recorded = {table["name"]: table for table in json.loads(RECORD.read_text())["tables"]}
    for table in tables:
        assert all(len(row) == len(table.headings) for row in table.rows)
        assert table.headings == recorded[table.name]["headings"]
        assert [row[0] for row in table.rows] == [row[0] for row in recorded[table.name]["rows"]]


@pytest.mark.parametrize("name", ["quantization-noise", "matmul-error", "error-bounds"])
def test_figures_have_the_units_of_the_experiment(tmp_path, name):
    experiment = command.EXPERIMENTS[name]
    measured = experiment.measure(RunContext(tmp_path, size="quick"))
    assert set(experiment.units) <= set(measured.values)
    assert len(experiment.tables(measured.detail)[0].rows) > 5


def test_the_command_prints_and_writes_them(capsys, monkeypatch, tmp_path):
    small = Experiment(
        lambda context: Measured({}, signal_to_noise(64, context.seed)), tables=quantization_noise.tables
    )
    monkeypatch.setattr(command, "NAMES", ("small",))
    monkeypatch.setattr(command, "EXPERIMENTS", {"small": small})
    assert cli.main(["precision", "--json", str(tmp_path / "tables.json"), "--seed", "3"]) == 0
    assert "Signal to noise in dB" in capsys.readouterr().out
    data = json.loads((tmp_path / "tables.json").read_text())
    assert [table["name"] for table in data["tables"]] == ["signal-to-noise", "rules-of-scale"]
    assert data["tables"][0]["rows"] == quantization_noise.tables(signal_to_noise(64, 3))[0].rows
    assert data["seed"] == 3
    assert cli.main(["precision", "--json", str(tmp_path / "no" / "tables.json")]) == 1
    assert "create it first" in capsys.readouterr().err
