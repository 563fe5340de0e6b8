"""Runs that are interrupted in every way resume bit-identically; checkpoints are intact or refused."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minimoe.distributed.errors import TrainingError
from minimoe.models.gpt import GPT
from minimoe.tools import records
from minimoe.training import checkpoint
from minimoe.training.checkpoint import CheckpointError, load_model, restore, save
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train, train_in_turns
from minimoe.training.trainer import Trainer

CONFIG = TrainConfig(
    steps=24, batch_size=2, warmup=4, eval_every=6, eval_sequences=2, checkpoint_every=4, average=0.2
)


def make(model_config, corpus, config=CONFIG):
    torch.manual_seed(config.seed)
    return Trainer(GPT(model_config), corpus, config)


def bits(trainer):
    """Every tensor of a trainer's state."""
    return checkpoint._model_tensors(trainer) | checkpoint._training_tensors(trainer)


def assert_same_bits(a, b):
    a, b = bits(a), bits(b)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def loss_records(folder: Path):
    """The records, without times."""
    lines = records.read(folder / "records.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["kind"] != "run"]


# ---- in one process


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, average=0.0, accumulate=2)])
@pytest.mark.parametrize("stop_at", [4, 20])
def test_resume_is_bit_identical(tiny, corpus, tmp_path, config, stop_at):
    straight = make(tiny, corpus, config)
    train_in_turns({"m": straight}, {"m": tmp_path / "straight"})

    first = make(tiny, corpus, config)
    for _ in range(stop_at):
        first.train_step()
    torch.randn(3)  # the states of random generators are restored
    save(tmp_path / "checkpoints", first)
    expected = torch.randn(5)
    second = make(tiny, corpus, config)
    torch.randn(1000)
    restore(checkpoint.latest(tmp_path / "checkpoints"), second)
    assert torch.equal(torch.randn(5), expected)
    assert_same_bits(first, second)
    while second.step < config.steps:
        second.train_step()
    straight_tensors, resumed = bits(straight), bits(second)
    for name in straight_tensors.keys() - {"generator.cpu"}:
        assert torch.equal(straight_tensors[name], resumed[name]), name


def test_models_trained_in_turns_equal_models_trained_alone(tiny_dense, tiny_moe, corpus, tmp_path):
    both = {"dense": make(tiny_dense, corpus), "moe": make(tiny_moe, corpus)}
    train_in_turns(both, {name: tmp_path / "both" / name for name in both})
    for name, model_config in (("dense", tiny_dense), ("moe", tiny_moe)):
        alone = make(model_config, corpus)
        train_in_turns({name: alone}, {name: tmp_path / "alone" / name})
        assert loss_records(tmp_path / "alone" / name) == loss_records(tmp_path / "both" / name)


def test_train_returns_evaluations_and_records_them(tiny_moe, corpus, tmp_path):
    evaluations = train(GPT(tiny_moe), corpus, CONFIG, out=tmp_path / "run")
    assert [e.step for e in evaluations] == [6, 12, 18, 24]
    lines = list(records.read(tmp_path / "run" / "records.jsonl"))
    assert lines[0]["kind"] == "run"
    assert lines[0]["training"]["steps"] == 24
    assert {line["data"] for line in lines} == {"a fingerprint"}
    recorded = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["bits_per_byte"] for line in recorded] == [e.bits_per_byte for e in evaluations]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 25))
    assert all(0 <= line["idlest"] <= 2 / 8 <= line["busiest"] * 2 for line in steps)
    model = load_model(tmp_path / "run")
    assert model.config == tiny_moe
    with pytest.raises(TrainingError, match="already holds a run"):
        train(GPT(tiny_moe), corpus, CONFIG, out=tmp_path / "run")


def test_saved_model_is_the_one_that_was_evaluated(tiny, corpus, tmp_path):
    trainer = make(tiny, corpus)
    train_in_turns({"m": trainer}, {"m": tmp_path})
    reported = trainer.evaluate().bits_per_byte
    loaded = Trainer(load_model(tmp_path), corpus, replace(CONFIG, average=0.0))
    assert loaded.evaluate().bits_per_byte == reported


def test_the_last_two_checkpoints_are_kept(tiny, corpus, tmp_path):
    train(GPT(tiny), corpus, CONFIG, out=tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000020", "step-00000024"]


# ---- what goes wrong


@pytest.fixture
def saved(tiny_moe, corpus, tmp_path):
    """A run's folder with checkpoints of steps 4 and 8."""
    trainer = make(tiny_moe, corpus)
    for _ in range(2):
        for _ in range(4):
            trainer.train_step()
        save(tmp_path / "checkpoints", trainer)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("file", ["model.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "binary", "empty"])
def test_a_damaged_checkpoint_is_named_with_the_remedy(saved, tiny_moe, corpus, file, damage):
    path = saved / "step-00000008" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage in ("flipped", "binary"):
        content[len(content) // 2] ^= 1 if damage == "flipped" else 0xFF
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    trainer = make(tiny_moe, corpus)
    fresh = {name: tensor.clone() for name, tensor in bits(trainer).items()}
    with pytest.raises(CheckpointError, match=r"step-00000008 is damaged.*resume from step-00000004"):
        restore(checkpoint.latest(saved), trainer)
    assert all(torch.equal(fresh[name], tensor) for name, tensor in bits(trainer).items())
    restore(saved / "step-00000004", trainer)  # the remedy works
    assert trainer.step == 4


def test_an_edited_state_counts_as_damaged(saved, tiny_moe, corpus):
    path = saved / "step-00000008" / "state.json"
    path.write_text(path.read_text().replace('"step": 8', '"step": 9'))
    with pytest.raises(CheckpointError, match=r"state.json does not match its checksum"):
        restore(path.parent, make(tiny_moe, corpus))


def test_a_checkpoint_of_another_run_is_refused_with_both_values(saved, tiny_moe, tiny_dense, corpus):
    newest = checkpoint.latest(saved)
    with pytest.raises(CheckpointError, match=r"training\.lr = 0\.003, now it is 0\.1"):
        restore(newest, make(tiny_moe, corpus, replace(CONFIG, lr=0.1)))
    with pytest.raises(CheckpointError, match=r"model\.n_experts = 8, now it is 0"):
        restore(newest, make(replace(tiny_moe, n_experts=0), corpus))
    with pytest.raises(CheckpointError, match=r"other text \(fingerprint a fingerprint, now another"):
        restore(newest, make(tiny_moe, replace(corpus, fingerprint="another")))


def test_an_empty_folder_has_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint; train one with"):
        load_model(tmp_path)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_intact(saved, tiny_moe, corpus, monkeypatch):
    trainer = make(tiny_moe, corpus)
    restore(checkpoint.latest(saved), trainer)
    trainer.train_step()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"step 9.*No space left.*step-00000008 is intact.*Free some"):
        save(saved, trainer)
    monkeypatch.undo()
    assert sorted(p.name for p in saved.iterdir()) == ["step-00000004", "step-00000008"]
    restore(checkpoint.latest(saved), trainer)


def test_too_little_disk_is_refused_before_any_work(tiny, corpus, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(TrainingError, match=r"checkpoints need .* MB .* only 0 MB are free"):
        train(GPT(tiny), corpus, CONFIG, out=tmp_path)


@pytest.mark.parametrize("average", [0.0, 0.2])
def test_the_disk_space_is_predicted(tiny_moe, corpus, tmp_path, average):
    trainer = make(replace(tiny_moe, dim=64), corpus, replace(CONFIG, average=average))
    trainer.train_step()
    used = sum(f.stat().st_size for f in save(tmp_path, trainer).iterdir())
    assert checkpoint.needed_bytes(trainer) == pytest.approx(3 * used, rel=0.1)


def test_what_a_kill_left_is_removed(saved, tiny_moe, corpus):
    (saved / "step-00000006.tmp").mkdir()
    (saved / "step-00000006.tmp" / "model.safetensors").write_bytes(b"half")
    trainer = make(tiny_moe, corpus)
    restore(checkpoint.latest(saved), trainer)
    trainer.train_step()
    save(saved, trainer)
    assert sorted(p.name for p in saved.iterdir()) == ["step-00000008", "step-00000009"]


# ---- in processes of their own, through the command line

STEPS = 120  # many more than are done before the test notices


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(0)
    words = ["expert", "router", "shared", "token", "weight", "load", "bias", "score"]
    for i in range(12):
        (folder / f"{i}.txt").write_text(" ".join(generator.choice(words) for _ in range(400)))
    return folder


def command(text: Path, out: Path, *more: str) -> list[str]:
    flags = (
        f"--data {text} --out {out} --device cpu --train.steps {STEPS} --train.checkpoint-every 5 "
        "--train.eval-every 20 --train.batch-size 2 --train.eval-sequences 2 --model.dim 16 "
        "--model.n-layers 2 --model.n-heads 2 --model.context 32 --model.n-experts 4 --model.top-k 2 "
        "--model.expert-dim 8 --train.average 0.1"
    )
    return [sys.executable, "-m", "minimoe", "train", *flags.split(), *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "500"}


def run(arguments: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=120, env=environment(), **options
    )


@pytest.fixture(scope="module")
def straight(text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "straight"
    finished = run(command(text, out))
    assert finished.returncode == 0, finished.stderr
    return out


def stop(arguments: list[str], file: Path, after_steps: int, number: int) -> subprocess.Popen:
    """Start or resume a run and send it a signal once its file has so many records of steps."""
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment()
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and file.read_bytes().count(b'"kind": "step"') >= after_steps:
            process.send_signal(number)
            break
        time.sleep(0.002)
    process.stderr_text = process.communicate(timeout=60)[1].decode()
    return process


def same_end(straight: Path, out: Path) -> None:
    assert loss_records(out) == loss_records(straight)
    for file in ("model", "training"):
        a, b = (
            (folder / "checkpoints" / f"step-{STEPS:08d}" / f"{file}.safetensors").read_bytes()
            for folder in (straight, out)
        )
        assert a == b


@pytest.mark.resume
def test_kill_9_at_random_points_and_resume_gives_the_same_bits(text, straight, tmp_path):
    out = tmp_path / "killed"
    points = sorted(random.sample(range(1, STEPS // 3), 2))
    file = out / "records.jsonl"
    killed = stop(command(text, out), file, points[0], signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr_text
    killed = stop(command(text, out, "--resume"), file, points[1], signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr_text
    finished = run(command(text, out, "--resume"))
    assert finished.returncode == 0, finished.stderr
    same_end(straight, out)


@pytest.mark.resume
def test_ctrl_c_saves_and_says_how_to_resume(text, straight, tmp_path):
    out = tmp_path / "stopped"
    stopped = stop(command(text, out), out / "records.jsonl", 7, signal.SIGINT)
    assert stopped.returncode == 130
    assert "everything is saved" in stopped.stderr_text
    assert "--resume" in stopped.stderr_text
    assert "Traceback" not in stopped.stderr_text
    done = json.loads((checkpoint.latest(out / "checkpoints") / "state.json").read_text())["step"]
    assert done >= 7
    again = run(command(text, out))  # nothing is overwritten without --resume
    assert again.returncode == 1
    assert "holds an interrupted run; add --resume" in again.stderr
    finished = run(command(text, out, "--resume"))
    assert finished.returncode == 0, finished.stderr
    same_end(straight, out)


@pytest.mark.resume
def test_a_killed_comparison_resumes_to_the_same_curves(text, tmp_path):
    def compare(out, *more):
        flags = f"compare --steps 4 --data {text} --out {out} --device cpu --threads 1"
        return [sys.executable, "-m", "minimoe", *flags.split(), *more]

    killed = stop(
        compare(tmp_path / "killed"), tmp_path / "killed/seed-0/moe/records.jsonl", 2, signal.SIGKILL
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr_text
    for arguments in (compare(tmp_path / "killed", "--resume"), compare(tmp_path / "straight")):
        finished = run(arguments)
        assert finished.returncode == 0, finished.stderr

    def bits(out):
        models = json.loads((tmp_path / out / "comparison.json").read_text())["curves"]
        return {name: [curve["bits_per_byte"] for curve in curves] for name, curves in models.items()}

    assert bits("killed") == bits("straight")


@pytest.mark.resume
def test_a_file_size_limit_ends_in_one_line_and_loses_nothing(text, tmp_path):
    """A real error of the kernel in the middle of a run, when a checkpoint exceeds the limit."""
    out = tmp_path / "limited"
    limit = 60_000  # between the records' size and a checkpoint's
    failed = run(
        command(text, out), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert failed.returncode == 1
    assert len(failed.stderr.strip().splitlines()) == 1, failed.stderr
    assert "could not write the checkpoint of step 5" in failed.stderr
    assert "Free some space" in failed.stderr
    assert not list((out / "checkpoints").glob("*"))
    finished = run(command(text, out, "--resume"))
    assert finished.returncode == 0, finished.stderr
