"""When a process dies or stalls, the others end in time and say what to do."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch.distributed as dist
from fake_torchrun import strike_at, torchrun
from process_group import run
from trainers import CONFIG, MODEL

from minimoe.distributed import elastic
from minimoe.distributed.errors import PeerFailure, TrainingError
from minimoe.distributed.strategy import SingleProcess
from minimoe.models.gpt import GPT
from minimoe.training.checkpoint import load_model
from minimoe.training.loop import train

pytestmark = pytest.mark.distributed


def train_until_lost(corpus, group, folder, timeout, place, victim, number):
    """The other processes' error, and how many seconds after the victim's failure they raised it."""
    config = replace(CONFIG, steps=12, accumulate=1, eval_every=5, checkpoint_every=2)
    struck = folder / "struck"

    def strike():
        struck.write_text(str(time.monotonic()))
        os.kill(os.getpid(), number)

    try:
        with elastic.init_distributed(group, "full", timeout, "cpu") as strategy:
            if int(os.environ["RANK"]) == victim:
                strike_at(place, strike)
            train(GPT(MODEL), corpus, config, out=folder / "out", strategy=strategy)
    except TrainingError as error:
        return str(error), time.monotonic() - float(struck.read_text())
    return None


@pytest.mark.parametrize(
    ("size", "group", "place", "victim"),
    [
        (4, 2, "forward", 3),
        (4, 2, "backward", 1),
        (2, 1, "update", 1),
        (2, 2, "evaluation", 0),
        (2, 1, "writing", 0),
    ],
)
def test_after_a_kill_the_others_end_at_once(corpus, tmp_path, size, group, place, victim):
    timeout = 30
    found = torchrun(
        train_until_lost, size, tmp_path, corpus, group, tmp_path, timeout, place, victim, signal.SIGKILL,
        gone=(victim,),
    )  # fmt: skip
    assert found.pop(victim) is None
    for message, seconds in found:
        assert "lost the connection to another process, or got no response within 30 s" in message
        assert "start all processes again with --resume" in message
        assert len(message.splitlines()) == 1
        assert seconds < timeout  # they noticed that its connections closed
    assert load_model(tmp_path / "out").config == MODEL  # the checkpoint is intact


def test_after_a_stall_the_others_end_at_the_timeout(corpus, tmp_path):
    """Also process 0, which waits for process 1 in their expert parallel group."""
    timeout = 8
    found = torchrun(
        train_until_lost, 4, tmp_path, corpus, 2, tmp_path, timeout, "forward", 1, signal.SIGSTOP,
        gone=(1,),
    )  # fmt: skip
    assert found.pop(1) is None
    for message, seconds in found:
        assert "got no response within 8 s" in message
        # Some may have started to wait before the process stalled, and on a busy machine all are late.
        assert timeout / 2 < seconds < timeout + 20


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError(
            "[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]"
        ),
        RuntimeError(
            "[third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"
        ),
        RuntimeError("Timed out waiting 5000ms for recv operation to complete"),
        dist.DistBackendError("NCCL communicator was aborted on rank 0"),
        dist.DistNetworkError("Broken pipe"),
        dist.DistStoreError("wait timeout after 2000ms"),
    ],
    ids=str,
)
def test_a_peer_failure_is_recognized(error):
    """By its class where there is one. Each of Gloo's messages was observed."""
    assert elastic._is_peer_failure(error)


def test_other_errors_are_not_peer_failures():
    for message in ("mat1 and mat2 shapes cannot be multiplied (4x8 and 4x8)", "the connection of x and y"):
        assert not elastic._is_peer_failure(RuntimeError(message))


def join(timeout):
    """Process 1 dies before it joins the group."""
    if os.environ["RANK"] == "1":
        os._exit(1)
    begin = time.monotonic()
    try:
        with elastic.init_distributed(2, "full", timeout, "cpu"):
            pass
    except TrainingError as error:
        return str(error), time.monotonic() - begin


def test_a_process_that_never_joins_ends_the_others_at_the_timeout(tmp_path):
    message, seconds = torchrun(join, 2, tmp_path, 2, gone=(1,))[0]
    assert "process 0 lost the connection to another process, or got no response within 2 s" in message
    assert 1.9 < seconds < 30


def own_errors(errors):
    found = []
    dist.barrier()
    for error in errors:
        try:
            with elastic.init_distributed(2, "bf16", 5, "cpu") as strategy:
                assert (strategy.expert_parallel, strategy.dispatch_dtype) == (2, "bf16")
                raise error
        except Exception as raised:
            found.append(raised is error)
    return found


def test_own_errors_are_raised_unchanged():
    errors = RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no"), PeerFailure()
    assert run(own_errors, 2, errors) == [[True] * 3] * 2


def compared_settings(all_settings):
    found = []
    for settings in all_settings:
        try:
            found.append(elastic.require_same_settings(settings[dist.get_rank()]))
        except ValueError as error:
            found.append(str(error))
    return found


def test_the_setting_that_differs_is_named_with_both_values():
    same = {"data": "default", "model": {"dim": 64, "gate": {"score": "sigmoid"}}, "top_groups": None}
    deep = same | {"model": {"dim": 64, "gate": {"score": "softmax"}}}
    missing = {key: value for key, value in same.items() if key != "data"}
    more = same | {"dispatch_dtype": "fp8"}
    cases = [[same] * 3, [same, same, deep], [same, missing, same], [same, same, more], [missing, same, same]]
    for found in run(compared_settings, 3, cases):
        assert found[0] is None
        assert "process 0 was made with model.gate.score = sigmoid, in process 2 it is softmax;" in found[1]
        assert "process 0 was made with data = default, in process 1 it is None;" in found[2]
        assert "process 0 was made with dispatch_dtype = None, in process 2 it is fp8;" in found[3]
        assert "process 0 was made with data = None, in process 1 it is default;" in found[4]


def test_a_process_without_torchrun_is_a_single_process(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not elastic.is_torchrun()
    assert elastic.local_device("cuda") == "cuda"
    with elastic.init_distributed(None, "full", 5, "cpu") as strategy:
        assert type(strategy) is SingleProcess
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not elastic.is_restart()


def test_rank_and_restart_count_of_a_process_under_torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a test")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert elastic.is_torchrun()
    assert [elastic.local_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]
    for count, expected in (("0", False), ("1", True), ("2", True)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert elastic.is_restart() is expected
