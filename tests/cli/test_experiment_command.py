"""minimoe experiment and compare: record, figure and tables; a stopped run resumes to the same results."""

import json

import pytest

from minimoe.cli import main as cli
from minimoe.experiments import context as context_module
from minimoe.experiments import jobs
from minimoe.experiments.presets import PRESETS, Preset
from minimoe.training.config import TrainConfig
from minimoe.training.loop import Interrupted


def test_an_experiment_that_trains_nothing(tmp_path, capsys):
    out, path = tmp_path / "out", tmp_path / "record.json"
    assert cli.main(["experiment", "mixtral", "--out", str(out), "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "46.7 billion" in printed
    record = json.loads(path.read_text())
    assert json.loads((out / "mixtral.json").read_text()) == record
    assert (record["experiment"], record["size"], record["data"]) == ("mixtral", "full", None)
    assert record["measured"]["parameters"]["values"][0] == pytest.approx(46.70, abs=0.01)
    assert (out / "mixtral.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["experiment", "mixtral", "--out", str(out)]) == 1
    assert "holds a finished run" in capsys.readouterr().err


@pytest.fixture
def stop(monkeypatch, corpus, tiny_moe):
    """A tiny quick preset; a replacement of ``train_in_turns`` that is interrupted the second time, and the
    names of the models at each call."""
    training = TrainConfig(steps=2, batch_size=2, warmup=1, eval_every=1, eval_sequences=2)
    lr = dict.fromkeys(("dense-active", "dense-total", "moe"), 1e-3)
    monkeypatch.setitem(PRESETS, "quick", Preset(tiny_moe, training, lr))
    monkeypatch.setattr(context_module, "load_corpus", lambda data: corpus)
    train_in_turns, trained = jobs.train_in_turns, []

    def stopped_once(trainers, folders, **options):
        trained.append(sorted(trainers))
        if len(trained) == 2:
            raise Interrupted
        train_in_turns(trainers, folders, **options)

    return stopped_once, trained


@pytest.mark.resume
def test_a_stopped_experiment_resumes_to_the_same_results(tmp_path, capsys, monkeypatch, stop):
    command = ["experiment", "shared-expert", "--size", "long", "--seeds", "2", "--device", "cpu", "--out"]
    whole, out = str(tmp_path / "whole"), tmp_path / "out"
    assert cli.main([*command, whole]) == 0
    stopped_once, trained = stop
    monkeypatch.setattr(jobs, "train_in_turns", stopped_once)
    assert cli.main([*command, str(out)]) == 130
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*command, str(out), "--resume"]) == 0
    assert trained == 3 * [["moe", "routed-only"]]  # the first seed once, the second twice
    assert {p.parent.relative_to(out).as_posix() for p in out.rglob("records.jsonl")} == {
        f"seed-{seed}/{name}" for seed in (0, 1) for name in ("moe", "routed-only")
    }
    records = [
        json.loads((tmp_path / name / "shared-expert.json").read_text())["measured"]
        for name in ("whole", "out")
    ]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "there is no experiment 'nonsense'; choose among moe-vs-dense, load-balance"),
        (["load-balance", "--seeds", "0"], "--seeds (0) must be at least 1"),
        (["mixtral", "--json", "nowhere/x.json"], "there is no folder nowhere; create it first"),
        (["load-balance", "--data", "nowhere"], "'nowhere' is neither a folder nor a domain"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["experiment", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.resume
def test_a_stopped_comparison_resumes(tmp_path, capsys, monkeypatch, stop):
    stopped_once, trained = stop
    monkeypatch.setattr(jobs, "train_in_turns", stopped_once)
    out = tmp_path / "out"
    command = ["compare", "--seeds", "2", "--device", "cpu", "--out", str(out)]
    assert cli.main(command) == 130
    capsys.readouterr()
    assert cli.main(command) == 1
    assert "add --resume" in capsys.readouterr().err
    assert cli.main([*command, "--resume", "--steps", "1"]) == 1
    assert "training" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0
    assert trained == 3 * [["dense-active", "dense-total", "moe"]]
    data = json.loads((out / "comparison.json").read_text())
    assert data["seeds"] == 2
    assert len(data["curves"]["moe"]) == 2
    assert (out / "seed-1" / "moe" / "checkpoints").is_dir()
