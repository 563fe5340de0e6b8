"""One model trained by several processes: to the figures of one, and to the end when one of them is lost.

The reference is always the same training in a single process. In float64 the two may differ by rounding
alone, 1e-16 of a sum, and are held to 1e-10. In float32 a sum taken in another order is off by some 1e-7 of
itself, and twenty steps of AdamW, which divides each gradient by its own size, were measured to leave losses
within 2e-7 and weights within 1e-7; they are held to 1e-5. Of the bugs tried (a factor of P or W, counts or
norms of one process alone) the faintest moved losses by 3e-5, and what is held to 1e-10 by far more.

W processes, in groups of P that hold the experts between them.
"""

import contextlib
import errno
import io
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from process_group import run
from safetensors.torch import load_file

from minimoe.cli import main as cli
from minimoe.data.corpus import Batch
from minimoe.distributed import elastic
from minimoe.distributed.data_expert_parallel import DataExpertParallel
from minimoe.distributed.errors import PeerFailure, TrainingError
from minimoe.distributed.spawn import METHOD
from minimoe.distributed.strategy import SingleProcess
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.moe.expert_parallel.all_to_all import AllToAll
from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.tools import records
from minimoe.training import checkpoint
from minimoe.training.checkpoint import CheckpointError, load_model
from minimoe.training.config import TrainConfig
from minimoe.training.loop import Interrupted, train
from minimoe.training.progress import Silent
from minimoe.training.trainer import Trainer

CONTEXT = multiprocessing.get_context(METHOD)
MODEL = ModelConfig(dim=16, n_layers=2, n_heads=2, context=16, n_experts=8, top_k=2, expert_dim=8)
CONFIG = TrainConfig(steps=8, batch_size=8, warmup=4, eval_sequences=20)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
BALANCE = {"balance_weight": 1.0}  # enough to be seen in every weight
RUNS: dict[str, tuple[dict, dict]] = {  # changes of the model's settings, and of the training's
    "bias": ({}, {"steps": 20, "accumulate": 2, "average": 0.5, "balance_speed": 0.01}),
    "switch": ({"n_layers": 1}, {"balance": "switch", **BALANCE}),
    "sequence": ({"n_layers": 1}, {"balance": "sequence", "average": 0.2, **BALANCE}),
    # Of 2 validation batches; the others have 6, in batches of 8, 8 and 4.
    "bias+sequence": ({"n_layers": 1}, {"balance": "bias+sequence", "eval_sequences": 8, **BALANCE}),
    "first dense": ({"first_dense": 1, "n_shared": 0}, {"balance": "none"}),
    "dense": ({"n_experts": 0}, {}),
}
GROUPS = {  # W, P: the runs tried
    (1, 1): ("bias",),
    (2, 1): ("bias", "dense"),
    (2, 2): ("bias", "switch", "sequence"),
    (4, 2): ("bias", "switch", "bias+sequence", "first dense"),
    (4, 4): ("bias", "switch"),
}


class Exact(Trainer):
    """Learns from a loss in the model's own precision; a Trainer's is in float32."""

    def objective(self, logits_BLV, batch, micro, loss):
        return F.cross_entropy(logits_BLV.flatten(0, 1), batch.targets_BL.flatten())


def make(corpus, group, model=MODEL, config=CONFIG, dtype=torch.float32, crowded=False) -> Trainer:
    """A trainer in groups of ``group``; 0 is a process alone. All begin with the same weights."""
    torch.manual_seed(config.seed)
    gpt = GPT(model).to(dtype)
    if crowded:  # all tokens want the first experts
        for block in gpt.blocks:
            block.feed_forward.gate.e_score_correction_bias[: model.top_k] = 100.0
    kind = Exact if dtype == torch.float64 else Trainer
    strategy = DataExpertParallel(group) if group else SingleProcess()
    return kind(strategy.wrap_model(gpt, config.batch_size), corpus, config, strategy=strategy)


def settings(name: str) -> tuple[ModelConfig, TrainConfig]:
    model, config = RUNS[name]
    return replace(MODEL, **model), replace(CONFIG, **config)


def state(trainer) -> dict[str, torch.Tensor]:
    """Everything a checkpoint holds, of all experts: weights (and averages), biases, moments, generators."""
    tensors = checkpoint._model_tensors(trainer) | checkpoint._training_tensors(trainer)
    return {name: tensor.clone() for name, tensor in trainer.strategy.gather_experts(tensors).items()}


def figures(trainer, steps: int) -> dict[str, torch.Tensor]:
    """What that many steps and an evaluation report, and what they leave behind."""
    done = [trainer.train_step() for _ in range(steps)]
    evaluation = trainer.evaluate()
    found = {
        "losses": [step.loss for step in done],
        "grad norms": [step.grad_norm for step in done],
        "balance losses": [step.balance_loss or 0.0 for step in done],
        "bits per byte": list(evaluation.domains.values()),
    }
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}
    if done[0].counts_ME is not None:
        tensors["counts"] = torch.stack([step.counts_ME for step in done])
        tensors["counts of the evaluation"] = evaluation.counts_NME
    return tensors | state(trainer)


def assert_close(actual: dict, expected: dict, tolerance: float, about: str = "") -> None:
    """Relative to a tensor's norm; counts and biases, which are made of them, to the bit. The process's own
    generators, which nothing here draws from, may differ."""
    assert actual.keys() == expected.keys(), about
    for name, b in expected.items():
        a = actual[name]
        if name == "generator.cpu":
            continue
        if not b.is_floating_point() or name.endswith("correction_bias"):
            assert torch.equal(a, b), f"{about} {name}"
            continue
        assert a.shape == b.shape, f"{about} {name}"
        off = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)
        assert off <= tolerance, f"{about} {name}: {off:.1e} off"


# ---- as one process


def trained(corpus, group, names):
    """{(run, dtype): its figures}."""
    found = {}
    for name, dtype in itertools.product(names, TOLERANCE):
        model, config = settings(name)
        steps = config.steps if dtype == torch.float32 else 3
        found[name, dtype] = figures(make(corpus, group, model, config, dtype), steps)
    return found


@pytest.fixture(scope="module")
def alone():
    """The references, made once each."""
    made = {}

    def reference(corpus, name):
        if name not in made:
            made.update(trained(corpus, 0, [name]))
        return made

    return reference


@pytest.mark.parametrize(("size", "group"), GROUPS)
def test_several_processes_train_as_one_does(corpus, alone, size, group):
    names = GROUPS[size, group]
    everywhere = run(trained, size, corpus, group, names, timeout=60)
    for name, dtype in itertools.product(names, TOLERANCE):
        expected = alone(corpus, name)[name, dtype]
        for process, found in enumerate(everywhere):
            about = f"{name} in {dtype}, process {process}:"
            # Its losses are float32 in any case, and so is what is made of them.
            loose = {key: expected[key] for key in ("losses", "balance losses", "bits per byte")}
            assert_close({key: found[name, dtype].pop(key) for key in loose}, loose, 1e-5, about)
            exact = {key: value for key, value in expected.items() if key not in loose}
            assert_close(found[name, dtype], exact, TOLERANCE[dtype], about)


def test_the_references_clip_and_learn(corpus, alone):
    """Or the test before this one would not see a wrong norm."""
    for name in RUNS:
        found = alone(corpus, name)[name, torch.float32]
        assert found["grad norms"].max() > CONFIG.clip, name
        assert found["losses"][-1] < found["losses"][0] - 0.2, name


CROWDED = replace(MODEL, top_k=1, normalize=False), replace(CONFIG, balance="none", steps=3)


def crowd(corpus, group):
    return {dtype: figures(make(corpus, group, *CROWDED, dtype, crowded=True), 3) for dtype in TOLERANCE}


@pytest.mark.parametrize("group", [2, 4])
def test_processes_whose_experts_nobody_wants_keep_up(corpus, group):
    """Process 0 of each group gets every token, the others none, and yet must take part."""
    expected = crowd(corpus, 0)
    assert expected[torch.float32]["counts"][..., 1:].sum() == 0
    for found in run(crowd, 4, corpus, group):
        for dtype, tolerance in TOLERANCE.items():
            assert_close(found[dtype], expected[dtype], max(tolerance, 1e-5), str(dtype))
            weights = {name: t for name, t in found[dtype].items() if "." in name}
            assert_close(weights, {name: expected[dtype][name] for name in weights}, tolerance, str(dtype))


def first_gradients(corpus, group, limits):
    """Of one batch in float64: logits; for each limit the norm, and the whole model's clipped gradients."""
    trainer = make(corpus, group, config=replace(CONFIG, balance="switch", **BALANCE), dtype=torch.float64)
    logits_BLV, _ = trainer.network(trainer.batch(0).tokens_BL)
    clipped = []
    for limit in limits:
        trainer.optimizer.zero_grad()
        trainer._backward(0, bf16=False)
        norm = trainer.strategy.clip_grad_norm(trainer.parameters, limit)
        grads = trainer.strategy.gather_experts({name: p.grad for name, p in trainer.parameters.items()})
        clipped.append((norm.item(), {name: grad.clone() for name, grad in grads.items()}))
    return logits_BLV.detach(), clipped


def test_outputs_and_clipped_gradients_are_those_of_one_process(corpus):
    """The norm is that of all the model's gradients, which are all scaled alike."""
    limits = 1e9, 1e-2
    logits_BLV, alone = first_gradients(corpus, 0, limits)
    plain = alone[0][1]
    norm = sum(grad.square().sum().item() for grad in plain.values()) ** 0.5
    found = run(first_gradients, 4, corpus, 2, limits)
    torch.testing.assert_close(torch.cat([logits for logits, _ in found]), logits_BLV, rtol=1e-10, atol=0)
    for _, clipped in found:
        for limit, (its_norm, its_grads), (_, expected) in zip(limits, clipped, alone, strict=True):
            assert its_norm == pytest.approx(norm, rel=1e-10)
            assert_close(its_grads, expected, 1e-10, f"limit {limit}:")
            # And by hand; torch adds 1e-6 to the norm.
            by_hand = {name: grad * min(1.0, limit / (norm + 1e-6)) for name, grad in plain.items()}
            assert_close(its_grads, by_hand, 1e-10, f"limit {limit}:")


def half_a_step(corpus):
    """Gradients after the first micro-batch of two, and after the second."""
    trainer = make(corpus, 2, config=replace(CONFIG, accumulate=2))
    found = []
    for micro in range(2):
        trainer._backward(micro, bf16=False)
        found.append({name: p.grad.clone() for name, p in trainer.parameters.items()})
    return found


def test_gradients_travel_with_the_last_micro_batch_alone(corpus):
    """Processes 0 and 2 hold copies of the same experts, 0 and 1 of everything else."""
    found = run(half_a_step, 4, corpus)
    for name in found[0][0]:
        first, last = ([its[micro][name] for its in found] for micro in range(2))
        spread = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        for other in (2,) if spread else (1, 2, 3):
            assert not torch.equal(first[0], first[other]), name
            assert torch.equal(last[0], last[other]), name


def chosen(corpus):
    """Every process measures, in vain: the figures are made up, and process 1's say the opposite."""
    seconds = {"float32": 1.0, "bf16": 0.5 if dist.get_rank() == 0 else 2.0}

    def measured(tasks, *_, **__):
        for task in tasks.values():
            task()
        return seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minimoe.training.trainer.interleaved_seconds", measured)
        trainer = make(corpus, 2, config=replace(CONFIG, autocast="auto"))
    untouched = all(p.grad is None for p in trainer.parameters.values())
    return trainer.bf16, untouched, trainer.train_step().loss


def test_all_choose_the_precision_that_process_0_measured(corpus):
    found = run(chosen, 2, corpus)
    assert [bf16 for bf16, _, _ in found] == [True, True]
    assert all(untouched for _, untouched, _ in found)
    reference = make(corpus, 0, config=replace(CONFIG, autocast="bf16")).train_step().loss
    for _, _, loss in found:
        assert loss == pytest.approx(reference, rel=1e-2)


def wired(corpus):
    """Of a step over each wire: the loss, and the bytes that this process sent."""
    found = []
    for dispatch_dtype in ("full", "bf16", "fp8"):
        torch.manual_seed(0)
        meter = Meter()
        strategy = DataExpertParallel(2, dispatch_dtype, meter)
        network = strategy.wrap_model(GPT(MODEL), CONFIG.batch_size)
        trainer = Trainer(network, corpus, CONFIG, strategy=strategy)
        found.append((trainer.train_step().loss, meter.bytes["dispatch"]))
    return found


def test_the_wire_is_the_one_that_was_asked_for(corpus):
    reference = make(corpus, 0).train_step().loss
    for (full, most), (bf16, fewer), (fp8, fewest) in run(wired, 2, corpus):
        assert full == pytest.approx(reference, rel=1e-6)
        assert len({full, bf16, fp8}) == 3
        assert [bf16, fp8] == pytest.approx([reference] * 2, rel=1e-2)
        assert most > fewer > fewest > 0


# ---- batches, and what all must know


def dealt(batches_of):
    """For each number of batches what deal gives; for each size of a batch what share gives."""
    strategy = DataExpertParallel(1)
    dist.barrier()
    deals = [list(strategy.shard_batches(range(n))) for n in range(11)]
    shares = []
    for size in batches_of:
        tokens_BL = torch.arange(size * 5).view(size, 5)
        shares.append(strategy.shard_batch(Batch(tokens_BL, tokens_BL + 1, torch.arange(size))))
    return deals, shares


def test_each_batch_is_dealt_once_and_all_get_as_many():
    sizes = (3, 6, 12)
    found = run(dealt, 3, sizes)
    for n in range(11):
        mine = [deals[n] for deals, _ in found]
        assert len({len(deal) for deal in mine}) == 1
        assert sorted(batch for deal in mine for batch, counts in deal if counts) == list(range(n))
        for process, deal in enumerate(mine):  # in rounds: process p gets p, p + 3, ...
            assert [batch for batch, counts in deal if counts] == list(range(process, n, 3))
    for i, size in enumerate(sizes):
        whole = Batch(*(torch.cat(parts) for parts in zip(*(shares[i] for _, shares in found), strict=True)))
        assert torch.equal(whole.tokens_BL, torch.arange(size * 5).view(size, 5))
        assert torch.equal(whole.targets_BL, whole.tokens_BL + 1)
        assert torch.equal(whole.domains_B, torch.arange(size))
        assert {len(shares[i].domains_B) for _, shares in found} == {size // 3}


def test_alone_has_it_all():
    alone = SingleProcess()
    assert list(alone.shard_batches("abc")) == [("a", True), ("b", True), ("c", True)]
    assert alone.run_on_rank0(lambda: 7) == 7
    assert [alone.any_rank(stop) for stop in (True, False)] == [True, False]
    with pytest.raises(OSError, match="full"):
        alone.run_on_rank0(lambda: fail(OSError("full")))


def fail(error: Exception):
    raise error


def spoken():
    """What the small words between processes come to, in one of three."""
    strategy = DataExpertParallel(1)
    agreed = [strategy.any_rank(strategy.rank == one) for one in (0, 1, 2, 3)]
    once = strategy.run_on_rank0(lambda: ("result", strategy.rank))
    errors = []
    for error in (OSError("full"), KeyboardInterrupt()):
        try:
            strategy.run_on_rank0(lambda error=error: fail(error))
        except BaseException as raised:
            errors.append(type(raised).__name__)
    x = torch.tensor([1.0, float(strategy.rank)], requires_grad=True)
    counts = torch.tensor([1, strategy.rank])
    added = strategy.all_reduce_sum(x), strategy.all_reduce_mean(x), strategy.all_reduce_sum(counts)
    assert x.tolist() == [1.0, strategy.rank]  # what was given is left alone
    assert counts.tolist() == [1, strategy.rank]
    assert not added[0].requires_grad
    return agreed, once, errors, [t.tolist() for t in added], strategy.is_rank0


def test_all_learn_of_wishes_results_and_errors():
    found = run(spoken, 3)
    for process, (agreed, once, errors, added, writes) in enumerate(found):
        assert agreed == [True, True, True, False]  # any one process's wish is enough
        assert once == ("result", 0)
        assert errors == (["OSError", "KeyboardInterrupt"] if process == 0 else ["PeerFailure"] * 2)
        assert added == [[3.0, 3.0], [1.0, 1.0], [3, 3]]
        assert writes == (process == 0)


# ---- checkpoints

STOP, GO_ON = 3, 3
SAVED = MODEL, replace(CONFIG, average=0.5, balance_speed=0.01, accumulate=2)


def losses(trainer, steps):
    return torch.tensor([trainer.train_step().loss for _ in range(steps)])


def save_and_go_on(corpus, group, folder):
    """Stop-over at step 3: the state there, and the losses of the steps after it."""
    trainer = make(corpus, group, *SAVED)
    losses(trainer, STOP)
    checkpoint.save(folder / "checkpoints", trainer)
    return state(trainer), losses(trainer, GO_ON)


def load_and_go_on(corpus, group, folders):
    found = []
    for folder in folders:
        trainer = make(corpus, group, *SAVED)
        losses(trainer, 1)  # whatever it did before is forgotten
        checkpoint.restore(checkpoint.latest(folder / "checkpoints"), trainer)
        assert trainer.step == STOP
        found.append((state(trainer), losses(trainer, GO_ON)))
    return found


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Two runs of the same: by 4 processes in groups of 2, and by one. Their folders, states and losses."""
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


def test_a_checkpoint_does_not_show_how_many_wrote_it(corpus, stopped):
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
def test_any_number_of_processes_goes_on_from_it(corpus, stopped, size, group):
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
    """The disk fills up after one checkpoint; then there is room again."""
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


def test_a_full_disk_is_told_where_it_is_and_known_to_all(corpus, tmp_path):
    found = run(fill_the_disk, 4, corpus, tmp_path / "checkpoints", timeout=20)
    (kind, message), *others = (error for error, _, _ in found)
    assert kind is CheckpointError
    assert "step 1" in message
    assert "No space left" in message
    assert "step-00000000 is intact" in message
    assert [kind for kind, _ in others] == [PeerFailure] * 3
    assert all(left == ["step-00000000"] for _, left, _ in found)
    assert {path.name for _, _, path in found} == {"step-00000001"}


# ---- as torchrun starts them, without the four seconds that it takes


def torchrun(function, size, folder, *arguments, store=None, attempt=0, gone=()):
    """``function(*arguments)`` in processes that find what torchrun tells its own: a store to meet at, which
    outlives them, and how often they were started. What each returned; those that are ``gone`` return
    nothing, are not waited for, and are killed in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    store = store or dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    for rank in range(size):
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": "a test",
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(attempt),
        }  # fmt: skip
        process = CONTEXT.Process(
            target=_started,
            args=(function, environment, folder / f"{rank}-{attempt}", arguments),
            daemon=True,
        )
        processes.append(process)
        process.start()
    deadline = time.monotonic() + 40
    for rank, process in enumerate(processes):
        if rank not in gone:
            process.join(max(0, deadline - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive() and rank not in gone]
    for process in processes:
        process.kill()
    failed = list(folder.glob(f"*-{attempt}.err"))
    assert not failed, failed[0].read_text()
    assert not late, f"processes {late} of {size} hang"
    ended = [folder / f"{rank}-{attempt}.pt" for rank in range(size)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in ended]


def _started(function, environment, path, arguments):
    torch.set_num_threads(1)
    os.environ.update(environment)
    try:
        torch.save(function(*arguments), path.with_suffix(".pt"))
    except BaseException:
        path.with_suffix(".err").write_text(f"{path.name}: {traceback.format_exc()}")
    os._exit(0)  # what it waits for in vain must not keep it


def command(*arguments):
    """``minimoe ...`` in this process: exit status, standard error."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
    return status, error.getvalue()


# ---- processes that are lost

PLACES = {  # what a process is about to do when it is lost, and for which time
    "forward": (AllToAll, "send", 8 * STOP + 1),  # 2 layers of 2 exchanges, each with its gradient
    "backward": (AllToAll, "send", 8 * STOP + 6),
    "update": (torch.optim.AdamW, "step", STOP),
    "evaluation": (Trainer, "evaluate", 1),
    "writing": (checkpoint, "_write", 2),
}


def strike_at(place, strike):
    """Have this process do ``strike`` in the middle of things."""
    owner, name, times = PLACES[place]
    original, calls = getattr(owner, name), itertools.count(1)

    def struck(*arguments, **named):
        if next(calls) == times:
            strike()
        return original(*arguments, **named)

    setattr(owner, name, struck)


def train_until_lost(corpus, group, folder, timeout, place, victim, number):
    """What the others raise, and how many seconds after the victim was struck."""
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
def test_when_one_is_killed_the_others_tell_at_once(corpus, tmp_path, size, group, place, victim):
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
        assert seconds < timeout  # its connections closed, that was enough
    assert load_model(tmp_path / "out").config == MODEL  # what was saved is whole


def test_when_one_stalls_the_others_wait_as_long_as_they_were_told(corpus, tmp_path):
    """Also process 0, whose tokens process 1 has, and which waits in a group of those two."""
    timeout = 8
    found = torchrun(
        train_until_lost, 4, tmp_path, corpus, 2, tmp_path, timeout, "forward", 1, signal.SIGSTOP,
        gone=(1,),
    )  # fmt: skip
    assert found.pop(1) is None
    for message, seconds in found:
        assert "got no response within 8 s" in message
        # Some may have begun to wait before the process stopped, and on a busy machine all are late.
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
    """By its class where there is one; each of Gloo's messages was seen."""
    assert elastic._is_peer_failure(error)


def test_other_errors_are_not_peer_failures():
    for message in ("mat1 and mat2 shapes cannot be multiplied (4x8 and 4x8)", "the connection of x and y"):
        assert not elastic._is_peer_failure(RuntimeError(message))


def come_alone(timeout):
    """Process 1 has died before it could join."""
    if os.environ["RANK"] == "1":
        os._exit(1)
    begin = time.monotonic()
    try:
        with elastic.init_distributed(2, "full", timeout, "cpu"):
            pass
    except TrainingError as error:
        return str(error), time.monotonic() - begin


def test_one_that_never_comes_is_waited_for_as_long(tmp_path):
    message, seconds = torchrun(come_alone, 2, tmp_path, 2, gone=(1,))[0]
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


def test_an_error_of_ones_own_is_not_taken_for_a_loss():
    errors = RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no"), PeerFailure()
    assert run(own_errors, 2, errors) == [[True] * 3] * 2


# ---- the command


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
    """Without the clock, and what describes the run."""
    lines = list(records.read(folder / "records.jsonl"))
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["kind"] != "run"]


def assert_same_records(folder, reference):
    """Each step and evaluation once, in order, with the same figures but for rounding."""
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
    """The same runs by one process that nothing happens to."""
    made = {}

    def reference(steps):
        if steps not in made:
            made[steps] = tmp_path_factory.mktemp("straight") / "out"
            torch.set_num_threads(1)
            assert command(*flags(text, made[steps], steps)) == (0, "")
        return made[steps]

    return reference


def command_until(place, victim, number, arguments):
    """The command, one of whose processes gets a signal."""
    if int(os.environ["RANK"]) == victim:
        strike_at(place, lambda: os.kill(os.getpid(), number))
    return command(*arguments)


def test_after_a_restart_they_go_on_from_the_checkpoint(text, tmp_path, straight):
    """As torchrun --max-restarts does it: the same command again, which meets at the same store, and must
    neither refuse the folder nor clear it. And then it is finished for good."""
    out = tmp_path / "out"
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = flags(text, out, 12, "--expert-parallel", "2", "--overwrite")
    options = {"store": store, "gone": (0,)}
    with pytest.MonkeyPatch.context() as patch:  # the 2nd writing is of step 8, lost before it is there
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
    assert "holds a finished run" in refused[0][1]  # process 0 alone speaks
    assert refused[0][1].count("\n") == 1
    assert refused[1][1] == ""


def test_ctrl_c_in_one_stops_all_at_the_same_step(text, tmp_path, straight):
    out = tmp_path / "out"
    arguments = flags(text, out, 12, "--expert-parallel", "2")
    found = torchrun(command_until, 4, tmp_path / "jobs", "update", 2, signal.SIGINT, arguments)
    assert [status for status, _ in found] == [130] * 4
    assert "everything is saved. To continue: the same torchrun, with -m minimoe train" in found[0][1]
    assert "--resume" in found[0][1]
    assert [said for _, said in found[1:]] == [""] * 3
    assert checkpoint.latest(out / "checkpoints").name == f"step-{STOP:08d}"
    assert [line["step"] for line in recorded(out)] == [1, 2, 3]
    resumed = torchrun(command, 2, tmp_path / "more", *arguments[:-2], "--resume")  # and by others
    assert resumed == [(0, "")] * 2
    assert_same_records(out, straight(12))


class Watched(Silent):
    """Remembers the steps; interrupts one process after the second."""

    def __init__(self, interrupt):
        self.steps, self.interrupt = [], interrupt

    def step(self, name, step):
        self.steps.append(step.step)
        if self.interrupt and step.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def interrupted(corpus, folder):
    display = Watched(dist.get_rank() == 1)
    try:
        train(GPT(MODEL), corpus, CONFIG, out=folder, display=display, strategy=DataExpertParallel(2))
    except Interrupted:
        return display.steps
    return None


def test_a_wish_to_stop_is_heard_before_the_next_step(corpus, tmp_path):
    assert run(interrupted, 2, corpus, tmp_path / "out") == [[1, 2], [1, 2]]
    assert checkpoint.latest(tmp_path / "out" / "checkpoints").name == "step-00000002"


def differently(text, out, flags_of_all, differing):
    """Process 1 was started with other flags."""
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
def test_processes_of_different_commands_do_not_start(tmp_path, monkeypatch, same, differing, message):
    monkeypatch.chdir(tmp_path)
    for name, words in (("text", "one two three four "), ("other", "five six seven eight ")):
        (tmp_path / name).mkdir()
        for file in "ab":
            (tmp_path / name / f"{file}.txt").write_text(file + words * 300)
    arguments = "text", tmp_path / "out", same.split(), differing.split()
    found = torchrun(differently, 4 if same else 2, tmp_path / "jobs", *arguments)
    for status, said in found:  # each tells its own terminal
        assert status == 1
        assert f"process 0 was made with {message}" in said
        assert "start all processes with the same settings" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


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


def refused(corpus):
    """What cannot be, one after another; all processes refuse it alike."""
    attempts = [
        lambda: DataExpertParallel(3),
        lambda: DataExpertParallel(0),
        lambda: make(corpus, 2, config=replace(CONFIG, batch_size=6)),
        lambda: make(corpus, 2, model=replace(MODEL, jitter=0.01)),
        lambda: make(corpus, 4, model=replace(MODEL, n_experts=6)),
    ]
    said = []
    for attempt in attempts:
        try:
            attempt()
        except ValueError as error:
            said.append(str(error))
    dist.barrier()
    return said


def test_what_cannot_be_is_refused_with_its_numbers(corpus):
    for said in run(refused, 4, corpus):
        three, none, batch, jitter, experts = said
        assert "the number of processes (4) must be a multiple of expert_parallel (3)" in three
        assert "must be a multiple of expert_parallel (0)" in none
        assert "batch_size (6) must be divisible by the number of processes (4)" in batch
        assert "jitter (0.01) is supported in a single process only; set it to 0" in jitter
        assert "n_experts (6) must be divisible by the number of processes (4)" in experts


def test_a_process_alone_is_told_how_to_start_several(text, tmp_path):
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
def test_a_timeout_that_cannot_be_is_refused(text, tmp_path, timeout):
    status, said = command(*flags(text, tmp_path / "out", 12, "--timeout", str(timeout)))
    assert (status, said) == (1, f"minimoe: error: timeout ({float(timeout)}) must be above 0 seconds\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - {"train"}))
def test_torchrun_starts_train_alone(monkeypatch, tmp_path, name):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a test")
    monkeypatch.chdir(tmp_path)
    status, said = command(name)
    assert status == 1
    assert "torchrun starts several processes, which only the command train supports" in said
    assert not list(tmp_path.iterdir())


def test_a_lone_process_has_no_group(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not elastic.is_torchrun()
    assert elastic.local_device("cuda") == "cuda"
    with elastic.init_distributed(None, "full", 5, "cpu") as strategy:
        assert type(strategy) is SingleProcess
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not elastic.is_restart()


def test_torchruns_processes_know_their_place(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a test")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert elastic.is_torchrun()
    assert [elastic.local_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]
    for count, expected in (("0", False), ("1", True), ("2", True)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert elastic.is_restart() is expected


# ---- torchrun itself


def children(parent: int) -> list[int]:
    """The processes that a process started, by what the kernel says."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            _, fields = stat.read_text().rsplit(")", 1)  # a name may hold blanks
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
