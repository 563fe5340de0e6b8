"""The experiments on expert parallelism: their tables from the recorded run, and small runs of their own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from minimoe.cost import processes_visited, traffic
from minimoe.experiments.context import RunContext
from minimoe.experiments.expert_parallel import communication, placement, speed
from minimoe.experiments.expert_parallel.communication import LAYER

RECORD = json.loads((Path(__file__).parents[2] / "docs" / "results" / "parallel.json").read_text())


def test_the_recorded_prediction_is_todays():
    assert RECORD["predicted"] == communication.predict()


def test_the_recorded_run_makes_all_tables():
    tables = [t for module in (communication, speed, placement) for t in module.tables(RECORD)]
    assert [table.name for table in tables] == ["bytes", "predicted", "speed", "placement"]
    assert [len(table.rows) for table in tables] == [9, 6, 5, 5]
    sent, predicted, steps, placed = (table.rows for table in tables)
    assert sent[0] == ["free", "full", "2.744", "2.703", "23,114,256", "23,114,256", "100%", "60"]
    assert predicted[-1] == ["64", "at most 4 nodes", "fp8", "3.18", "137", "InfiniBand", "2.7"]
    assert steps[-1] == ["4", "1", "full", "158", "50", "0.63"]
    assert placed[1] == ["programming", "1.25", "1.22", "1.03"]


class OneTurn(RunContext):
    """A single turn of what is repeated for its time."""

    def pick(self, *sizes):
        return 1


@pytest.mark.distributed
def test_bytes_are_those_predicted_and_recorded(tmp_path):
    """As ``cost`` predicts them: two of four processes, FP8 there and bf16 back."""
    measured = communication.measure(OneTurn(tmp_path, seeds=2))
    assert measured.detail["bytes"] == RECORD["bytes"]
    every, two = (traffic(LAYER, dispatch_dtype).training for dispatch_dtype in ("bf16", "fp8"))
    limits = (replace(LAYER, top_groups=limit) for limit in (None, 2))
    free, limited = (processes_visited(config, 4) * 3 / 4 for config in limits)  # others, per token
    assert measured.values["bytes"][0] == pytest.approx(two * limited / (every * free), rel=0.03)
    assert measured.values["kB per token, free, bf16"][0] == pytest.approx(every * free / 1e3, rel=0.03)
    assert len(measured.values["seconds"]) == 2
    assert set(communication.EXPERT_PARALLEL.units) <= set(measured.values)
    detail = json.loads(json.dumps(measured.detail))
    assert communication.tables(detail) == communication.tables(RECORD)
    communication.draw(Figure(), detail)


def test_placement_evens_out_loads(tmp_path, monkeypatch):
    loads_ME = torch.tensor([[90.0, 10, 10, 10, 10, 10, 10, 10] + [5] * 24])
    monkeypatch.setattr(
        placement, "validation_loads", lambda context: {"all": loads_ME, "x": loads_ME.flip(1)}
    )
    measured = placement.measure(RunContext(tmp_path))
    first, other = measured.detail["placement"]
    assert first["in order"] == pytest.approx(120 / 280 * 8)
    assert first["for all text"] == first["for this text"] == pytest.approx(other["for this text"])
    assert first["for all text"] < 1.2
    assert other["for all text"] > 1.2  # balanced for other loads
