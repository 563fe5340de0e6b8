"""Checkpoints written by several processes hold the whole model, for any number of processes."""

import errno
import json
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from process_group import run
from safetensors.torch import load_file
from trainers import CONFIG, MODEL, assert_close, make, state

from minimoe.cli import main as cli
from minimoe.distributed.errors import PeerFailure
from minimoe.training import checkpoint
from minimoe.training.checkpoint import CheckpointError, load_model

pytestmark = pytest.mark.distributed


STOP, GO_ON = 3, 3

SAVED = MODEL, replace(CONFIG, average=0.5, balance_speed=0.01, accumulate=2)


def losses(trainer, steps):
    return torch.tensor([trainer.train_step().loss for _ in range(steps)])


def save_and_go_on(corpus, group, folder):
    """The state at step 3, where a checkpoint is saved, and the losses of the steps after it."""
    trainer = make(corpus, group, *SAVED)
    losses(trainer, STOP)
    checkpoint.save(folder / "checkpoints", trainer)
    return state(trainer), losses(trainer, GO_ON)


def load_and_go_on(corpus, group, folders):
    found = []
    for folder in folders:
        trainer = make(corpus, group, *SAVED)
        losses(trainer, 1)  # overwritten by the checkpoint
        checkpoint.restore(checkpoint.latest(folder / "checkpoints"), trainer)
        assert trainer.step == STOP
        found.append((state(trainer), losses(trainer, GO_ON)))
    return found


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same run by 4 processes in groups of 2 and by one -> folders, states and losses."""
    made = {}

    def stop_over(corpus):
        if not made:
            folders = {size: tmp_path_factory.mktemp("stopped") / str(size) for size in (4, 1)}
            made[4] = folders[4], *run(save_and_go_on, 4, corpus, 2, folders[4])[0]
            made[1] = folders[1], *save_and_go_on(corpus, 0, folders[1])
        return made

    return stop_over


def saved_tensors(folder):
    path = checkpoint.latest(folder / "checkpoints")
    return load_file(path / "model.safetensors") | load_file(path / "training.safetensors")


def test_a_checkpoint_is_the_same_for_any_number_of_processes(corpus, stopped):
    saved = {size: saved_tensors(made[0]) for size, made in stopped(corpus).items()}
    assert saved[4].keys() == saved[1].keys()
    assert {name: t.shape for name, t in saved[4].items()} == {name: t.shape for name, t in saved[1].items()}
    assert_close(saved[4], saved[1], 1e-5)
    states = {
        size: json.loads((checkpoint.latest(made[0] / "checkpoints") / "state.json").read_text())
        for size, made in stopped(corpus).items()
    }
    assert {name: v for name, v in states[4].items() if name != "sha256"} == {
        name: v for name, v in states[1].items() if name != "sha256"
    }
    for size, (_, at_stop, _) in stopped(corpus).items():
        assert all(torch.equal(saved[size][name], at_stop[name]) for name in saved[size])


@pytest.mark.parametrize(("size", "group"), [(1, 0), (2, 2), (4, 4)])
def test_any_number_of_processes_resumes_from_it(corpus, stopped, size, group):
    made = stopped(corpus)
    folders = [folder for folder, _, _ in made.values()]
    if group:
        everywhere = run(load_and_go_on, size, corpus, group, folders)
    else:
        everywhere = [load_and_go_on(corpus, 0, folders)]
    for found in everywhere:
        for (loaded, after), (folder, _, straight) in zip(found, made.values(), strict=True):
            saved = saved_tensors(folder)
            assert loaded.keys() == saved.keys()
            for name in saved:
                assert torch.equal(loaded[name], saved[name]), name
            torch.testing.assert_close(after, straight, rtol=1e-5, atol=0)


def test_load_model_and_sample_read_it(corpus, stopped, capsys):
    folder, at_stop, _ = stopped(corpus)[4]
    model = load_model(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, at_stop[name]), name
    assert cli.main(["sample", "--run", str(folder), "--tokens", "5", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("The ")


def fill_the_disk(corpus, folder):
    """The disk fills up after one checkpoint; then there is space again."""
    trainer = make(corpus, 2)
    checkpoint.save(folder, trainer)
    trainer.train_step()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 0:
            patch.setattr(checkpoint, "save_file", full)
        try:
            checkpoint.save(folder, trainer)
            error = None
        except (CheckpointError, PeerFailure) as raised:
            error = type(raised), str(raised)
    left = sorted(path.name for path in folder.iterdir())
    return error, left, checkpoint.save(folder, trainer)


def test_a_full_disk_is_reported_by_rank_0_and_stops_all(corpus, tmp_path):
    found = run(fill_the_disk, 4, corpus, tmp_path / "checkpoints", timeout=20)
    (kind, message), *others = (error for error, _, _ in found)
    assert kind is CheckpointError
    assert "step 1" in message
    assert "No space left" in message
    assert "step-00000000 is intact" in message
    assert [kind for kind, _ in others] == [PeerFailure] * 3
    assert all(left == ["step-00000000"] for _, left, _ in found)
    assert {path.name for _, _, path in found} == {"step-00000001"}
