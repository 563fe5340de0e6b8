"""The command ``minimoe train`` under torchrun: restarts, interruptions, refusals."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fake_torchrun import PLACES, STOP, command, strike_at, torchrun

from minimoe.cli import main as cli
from minimoe.distributed import elastic
from minimoe.tools import records
from minimoe.training import checkpoint
from minimoe.training.checkpoint import load_model

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(0)
    words = ["expert", "router", "shared", "token", "weight", "load", "bias", "score"]
    for i in range(12):
        (folder / f"{i}.txt").write_text(" ".join(generator.choice(words) for _ in range(400)))
    return folder


def flags(text, out, steps, *more) -> list[str]:
    return [
        *f"train --data {text} --out {out} --device cpu --train.steps {steps} --train.checkpoint-every 4 "
        "--train.eval-every 6 --train.batch-size 4 --train.eval-sequences 5 --train.warmup 4 --model.dim 16 "
        "--model.n-layers 1 --model.n-heads 2 --model.context 16 --model.n-experts 4 --model.top-k 2 "
        "--model.expert-dim 8 --train.average 0.2".split(),
        *more,
    ]


def recorded(folder) -> list[records.Record]:
    """Records of steps and evaluations, without their times."""
    lines = list(records.read(folder / "records.jsonl"))
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["kind"] != "run"]


def assert_same_records(folder, reference):
    """Each step and evaluation once, in order, with equal figures up to rounding."""
    actual, expected = recorded(folder), recorded(reference)
    assert [(line["kind"], line["step"]) for line in actual] == [
        (line["kind"], line["step"]) for line in expected
    ]
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for key in b:
            exact = key in ("kind", "data", "loads")
            assert a[key] == (b[key] if exact else pytest.approx(b[key], rel=1e-5)), (a["step"], key)


@pytest.fixture(scope="module")
def straight(text, tmp_path_factory):
    """The same runs in a single process without interruption."""
    made = {}

    def reference(steps):
        if steps not in made:
            made[steps] = tmp_path_factory.mktemp("straight") / "out"
            torch.set_num_threads(1)
            assert command(*flags(text, made[steps], steps)) == (0, "")
        return made[steps]

    return reference


def command_until(place, victim, number, arguments):
    """The command; one process gets a signal."""
    if int(os.environ["RANK"]) == victim:
        strike_at(place, lambda: os.kill(os.getpid(), number))
    return command(*arguments)


def test_after_a_restart_training_resumes_from_the_checkpoint(text, tmp_path, straight):
    """As with torchrun --max-restarts: the same command again, with the same store, must neither refuse nor
    clear the folder. A third start finds a finished run."""
    out = tmp_path / "out"
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = flags(text, out, 12, "--expert-parallel", "2", "--overwrite")
    options = {"store": store, "gone": (0,)}
    with pytest.MonkeyPatch.context() as patch:  # the 2nd checkpoint, of step 8, is not written
        patch.setitem(PLACES, "writing", (checkpoint, "_write", 2))
        _, lost = torchrun(
            command_until, 2, tmp_path / "jobs", "writing", 0, signal.SIGKILL, arguments, **options
        )
    assert lost[0] == 1
    assert "start all processes again with --resume" in lost[1]
    assert checkpoint.latest(out / "checkpoints").name == "step-00000004"
    again = torchrun(command, 2, tmp_path / "jobs", *arguments, store=store, attempt=1)
    assert again == [(0, "")] * 2
    assert_same_records(out, straight(12))
    assert json.loads((out / "run.json").read_text())["finished"]
    refused = torchrun(command, 2, tmp_path / "jobs", *flags(text, out, 12), store=store, attempt=2)
    assert [status for status, _ in refused] == [1, 1]
    assert "holds a finished run" in refused[0][1]  # only rank 0 prints
    assert refused[0][1].count("\n") == 1
    assert refused[1][1] == ""


def test_ctrl_c_in_one_process_stops_all_at_the_same_step(text, tmp_path, straight):
    out = tmp_path / "out"
    arguments = flags(text, out, 12, "--expert-parallel", "2")
    found = torchrun(command_until, 4, tmp_path / "jobs", "update", 2, signal.SIGINT, arguments)
    assert [status for status, _ in found] == [130] * 4
    assert "everything is saved. To continue: the same torchrun, with -m minimoe train" in found[0][1]
    assert "--resume" in found[0][1]
    assert [said for _, said in found[1:]] == [""] * 3
    assert checkpoint.latest(out / "checkpoints").name == f"step-{STOP:08d}"
    assert [line["step"] for line in recorded(out)] == [1, 2, 3]
    resumed = torchrun(
        command, 2, tmp_path / "more", *arguments[:-2], "--resume"
    )  # by another number of processes
    assert resumed == [(0, "")] * 2
    assert_same_records(out, straight(12))


def differently(text, out, flags_of_all, differing):
    """Process 1 is started with other flags."""
    more = differing if os.environ["RANK"] == "1" else ()
    return command(*flags(text, out, 12, "--timeout", "10", *flags_of_all), *more)


@pytest.mark.parametrize(
    ("same", "differing", "message"),
    [
        ("", "--train.lr 0.5", "training.lr = 0.003, in process 1 it is 0.5;"),
        ("", "--expert-parallel 2", "expert_parallel = None, in process 1 it is 2;"),
        ("--expert-parallel 2", "--expert-parallel 4", "expert_parallel = 2, in process 1 it is 4;"),
        ("", "--dispatch-dtype bf16", "dispatch_dtype = full, in process 1 it is bf16;"),
        ("", "--data other", "data = text, in process 1 it is other;"),
    ],
)
def test_processes_with_different_flags_do_not_start(tmp_path, monkeypatch, same, differing, message):
    monkeypatch.chdir(tmp_path)
    for name, words in (("text", "one two three four "), ("other", "five six seven eight ")):
        (tmp_path / name).mkdir()
        for file in "ab":
            (tmp_path / name / f"{file}.txt").write_text(file + words * 300)
    arguments = "text", tmp_path / "out", same.split(), differing.split()
    found = torchrun(differently, 4 if same else 2, tmp_path / "jobs", *arguments)
    for status, said in found:  # each prints to its own terminal
        assert status == 1
        assert f"process 0 was made with {message}" in said
        assert "start all processes with the same settings" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_expert_parallel_without_torchrun_is_refused_with_the_remedy(text, tmp_path):
    remedy = "start with torchrun --nproc-per-node 2 -m minimoe train --expert-parallel"
    with pytest.raises(ValueError, match=remedy), elastic.init_distributed(2, "full", 5, "cpu"):
        pass
    status, said = command(*flags(text, tmp_path / "out", 12, "--expert-parallel", "2"))
    assert status == 1
    assert said.startswith("minimoe: error: ")
    assert remedy in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_an_invalid_timeout_is_refused(text, tmp_path, timeout):
    status, said = command(*flags(text, tmp_path / "out", 12, "--timeout", str(timeout)))
    assert (status, said) == (1, f"minimoe: error: timeout ({float(timeout)}) must be above 0 seconds\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - {"train"}))
def test_torchrun_is_refused_by_all_commands_but_train(monkeypatch, tmp_path, name):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a test")
    monkeypatch.chdir(tmp_path)
    status, said = command(name)
    assert status == 1
    assert "torchrun starts several processes, which only the command train supports" in said
    assert not list(tmp_path.iterdir())


def children(parent: int) -> list[int]:
    """The child processes of a process, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process ended meanwhile
            _, fields = stat.read_text().rsplit(")", 1)  # a name may contain blanks
            if int(fields.split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_torchrun_restarts_a_run_whose_worker_was_killed(text, tmp_path, straight):
    steps, out = 50, tmp_path / "out"
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--max-restarts", "1", "-m", "minimoe", *flags(text, out, steps, "--expert-parallel", "2")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "500"}
    process = subprocess.Popen(
        starter + arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    killed = None
    deadline = time.monotonic() + 60
    while killed is None and time.monotonic() < deadline and process.poll() is None:
        if (out / "checkpoints" / "step-00000004").exists():
            killed = random.choice(children(process.pid))
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.01)
    said = process.communicate(timeout=60)[1].decode()
    assert killed is not None, said
    assert process.returncode == 0, said
    assert_same_records(out, straight(steps))
    assert load_model(out).config.n_experts == 4
