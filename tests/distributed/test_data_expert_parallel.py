"""Several processes train one model with the same results as a single process.

The reference is the same training in one process. In float64 the two differ by rounding only, 1e-16 of a
sum, and are held to 1e-10. In float32 a sum in another order differs by about 1e-7 of itself; twenty steps of
AdamW, which divides each gradient by its own size, were measured to leave losses within 2e-7 and weights
within 1e-7, and are held to 1e-5. Of the bugs tried (a factor of P or W, counts or norms of a single process)
the faintest moved losses by 3e-5, and what is held to 1e-10 by far more.

W processes, in groups of P that share the experts.
"""

import itertools
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from process_group import run
from trainers import CONFIG, MODEL, assert_close, figures, make

from minimoe.data.corpus import Batch
from minimoe.distributed.data_expert_parallel import DataExpertParallel
from minimoe.distributed.errors import Interrupted
from minimoe.distributed.strategy import SingleProcess
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.training import checkpoint
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train
from minimoe.training.progress import Silent
from minimoe.training.trainer import Trainer

pytestmark = pytest.mark.distributed

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

BALANCE = {"balance_weight": 1.0}  # large enough to affect every weight

RUNS: dict[str, tuple[dict, dict]] = {  # changes to the model's and to the training configuration
    "bias": ({}, {"steps": 20, "accumulate": 2, "average": 0.5, "balance_speed": 0.01}),
    "switch": ({"n_layers": 1}, {"balance": "switch", **BALANCE}),
    "sequence": ({"n_layers": 1}, {"balance": "sequence", "average": 0.2, **BALANCE}),
    # 2 validation batches; the others have 6, of 8, 8 and 4 sequences.
    "bias+sequence": ({"n_layers": 1}, {"balance": "bias+sequence", "eval_sequences": 8, **BALANCE}),
    "first dense": ({"first_dense": 1, "n_shared": 0}, {"balance": "none"}),
    "dense": ({"n_experts": 0}, {}),
}

GROUPS = {  # (W, P): runs
    (1, 1): ("bias",),
    (2, 1): ("bias", "dense"),
    (2, 2): ("bias", "switch", "sequence"),
    (4, 2): ("bias", "switch", "bias+sequence", "first dense"),
    (4, 4): ("bias", "switch"),
}


def settings(name: str) -> tuple[ModelConfig, TrainConfig]:
    model, config = RUNS[name]
    return replace(MODEL, **model), replace(CONFIG, **config)


def trained(corpus, group, names):
    """(run, dtype) -> its metrics and state."""
    found = {}
    for name, dtype in itertools.product(names, TOLERANCE):
        model, config = settings(name)
        steps = config.steps if dtype == torch.float32 else 3
        found[name, dtype] = figures(make(corpus, group, model, config, dtype), steps)
    return found


@pytest.fixture(scope="module")
def alone():
    """The references of a single process, each computed once."""
    made = {}

    def reference(corpus, name):
        if name not in made:
            made.update(trained(corpus, 0, [name]))
        return made

    return reference


@pytest.mark.parametrize(("size", "group"), GROUPS)
def test_several_processes_train_like_one(corpus, alone, size, group):
    names = GROUPS[size, group]
    everywhere = run(trained, size, corpus, group, names, timeout=60)
    for name, dtype in itertools.product(names, TOLERANCE):
        expected = alone(corpus, name)[name, dtype]
        for process, found in enumerate(everywhere):
            about = f"{name} in {dtype}, process {process}:"
            # Losses are always float32, and so is what is derived from them.
            loose = {key: expected[key] for key in ("losses", "balance losses", "bits per byte")}
            assert_close({key: found[name, dtype].pop(key) for key in loose}, loose, 1e-5, about)
            exact = {key: value for key, value in expected.items() if key not in loose}
            assert_close(found[name, dtype], exact, TOLERANCE[dtype], about)


def test_the_references_clip_and_learn(corpus, alone):
    """Otherwise the previous test would not detect a wrong norm."""
    for name in RUNS:
        found = alone(corpus, name)[name, torch.float32]
        assert found["grad norms"].max() > CONFIG.clip, name
        assert found["losses"][-1] < found["losses"][0] - 0.2, name


CROWDED = replace(MODEL, top_k=1, normalize=False), replace(CONFIG, balance="none", steps=3)


def crowd(corpus, group):
    return {dtype: figures(make(corpus, group, *CROWDED, dtype, crowded=True), 3) for dtype in TOLERANCE}


@pytest.mark.parametrize("group", [2, 4])
def test_processes_whose_experts_get_no_tokens_take_part(corpus, group):
    """Process 0 of each group gets every token; the others get none and must still take part."""
    expected = crowd(corpus, 0)
    assert expected[torch.float32]["counts"][..., 1:].sum() == 0
    for found in run(crowd, 4, corpus, group):
        for dtype, tolerance in TOLERANCE.items():
            assert_close(found[dtype], expected[dtype], max(tolerance, 1e-5), str(dtype))
            weights = {name: t for name, t in found[dtype].items() if "." in name}
            assert_close(weights, {name: expected[dtype][name] for name in weights}, tolerance, str(dtype))


def first_gradients(corpus, group, limits):
    """One batch in float64 -> logits; for each limit the norm and the whole model's clipped gradients."""
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
    """The norm is that of the whole model, and all gradients are scaled by the same factor."""
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
            # Computed by hand; torch adds 1e-6 to the norm.
            by_hand = {name: grad * min(1.0, limit / (norm + 1e-6)) for name, grad in plain.items()}
            assert_close(its_grads, by_hand, 1e-10, f"limit {limit}:")


def half_a_step(corpus):
    """Gradients after the first and after the second of two micro-batches."""
    trainer = make(corpus, 2, config=replace(CONFIG, accumulate=2))
    found = []
    for micro in range(2):
        trainer._backward(micro, bf16=False)
        found.append({name: p.grad.clone() for name, p in trainer.parameters.items()})
    return found


def test_gradients_are_synchronized_in_the_last_micro_batch_only(corpus):
    """Processes 0 and 2 hold replicas of the same experts, 0 and 1 of everything else."""
    found = run(half_a_step, 4, corpus)
    for name in found[0][0]:
        first, last = ([its[micro][name] for its in found] for micro in range(2))
        spread = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        for other in (2,) if spread else (1, 2, 3):
            assert not torch.equal(first[0], first[other]), name
            assert torch.equal(last[0], last[other]), name


def chosen(corpus):
    """Every process measures, but the times are made up, and those of process 1 say the opposite."""
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


def test_all_ranks_use_the_precision_that_rank_0_measured_to_be_faster(corpus):
    found = run(chosen, 2, corpus)
    assert [bf16 for bf16, _, _ in found] == [True, True]
    assert all(untouched for _, untouched, _ in found)
    reference = make(corpus, 0, config=replace(CONFIG, autocast="bf16")).train_step().loss
    for _, _, loss in found:
        assert loss == pytest.approx(reference, rel=1e-2)


def with_dispatch_dtypes(corpus):
    """A step with each dispatch dtype -> its loss, and the bytes that this process dispatched."""
    found = []
    for dispatch_dtype in ("full", "bf16", "fp8"):
        torch.manual_seed(0)
        meter = Meter()
        strategy = DataExpertParallel(2, dispatch_dtype, meter)
        network = strategy.wrap_model(GPT(MODEL), CONFIG.batch_size)
        trainer = Trainer(network, corpus, CONFIG, strategy=strategy)
        found.append((trainer.train_step().loss, meter.bytes["dispatch"]))
    return found


def test_dispatch_dtypes(corpus):
    reference = make(corpus, 0).train_step().loss
    for (full, most), (bf16, fewer), (fp8, fewest) in run(with_dispatch_dtypes, 2, corpus):
        assert full == pytest.approx(reference, rel=1e-6)
        assert len({full, bf16, fp8}) == 3
        assert [bf16, fp8] == pytest.approx([reference] * 2, rel=1e-2)
        assert most > fewer > fewest > 0


def sharded(batches_of):
    """shard_batches for each number of batches; shard_batch for each batch size."""
    strategy = DataExpertParallel(1)
    dist.barrier()
    deals = [list(strategy.shard_batches(range(n))) for n in range(11)]
    shares = []
    for size in batches_of:
        tokens_BL = torch.arange(size * 5).view(size, 5)
        shares.append(strategy.shard_batch(Batch(tokens_BL, tokens_BL + 1, torch.arange(size))))
    return deals, shares


def test_each_batch_is_used_once_and_all_ranks_get_equally_many():
    sizes = (3, 6, 12)
    found = run(sharded, 3, sizes)
    for n in range(11):
        mine = [deals[n] for deals, _ in found]
        assert len({len(deal) for deal in mine}) == 1
        assert sorted(batch for deal in mine for batch, counts in deal if counts) == list(range(n))
        for process, deal in enumerate(mine):  # round-robin
            assert [batch for batch, counts in deal if counts] == list(range(process, n, 3))
    for i, size in enumerate(sizes):
        whole = Batch(*(torch.cat(parts) for parts in zip(*(shares[i] for _, shares in found), strict=True)))
        assert torch.equal(whole.tokens_BL, torch.arange(size * 5).view(size, 5))
        assert torch.equal(whole.targets_BL, whole.tokens_BL + 1)
        assert torch.equal(whole.domains_B, torch.arange(size))
        assert {len(shares[i].domains_B) for _, shares in found} == {size // 3}


def test_a_single_process():
    alone = SingleProcess()
    assert list(alone.shard_batches("abc")) == [("a", True), ("b", True), ("c", True)]
    assert alone.run_on_rank0(lambda: 7) == 7
    assert [alone.any_rank(stop) for stop in (True, False)] == [True, False]
    with pytest.raises(OSError, match="full"):
        alone.run_on_rank0(lambda: fail(OSError("full")))


def fail(error: Exception):
    raise error


def reductions():
    """Results of the strategy's reductions in one of three processes."""
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
    assert x.tolist() == [1.0, strategy.rank]  # inputs are unchanged
    assert counts.tolist() == [1, strategy.rank]
    assert not added[0].requires_grad
    return agreed, once, errors, [t.tolist() for t in added], strategy.is_rank0


def test_flags_results_errors_and_sums_reach_all_ranks():
    found = run(reductions, 3)
    for process, (agreed, once, errors, added, writes) in enumerate(found):
        assert agreed == [True, True, True, False]  # the flag of any rank is enough
        assert once == ("result", 0)
        assert errors == (["OSError", "KeyboardInterrupt"] if process == 0 else ["PeerFailure"] * 2)
        assert added == [[3.0, 3.0], [1.0, 1.0], [3, 3]]
        assert writes == (process == 0)


class Watched(Silent):
    """Records the steps; interrupts one process after the second."""

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


def test_an_interruption_of_one_rank_stops_all_before_the_next_step(corpus, tmp_path):
    assert run(interrupted, 2, corpus, tmp_path / "out") == [[1, 2], [1, 2]]
    assert checkpoint.latest(tmp_path / "out" / "checkpoints").name == "step-00000002"


def errors(corpus):
    """Invalid configurations, which every process refuses with the same message."""
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


def test_invalid_configurations_are_refused_with_their_numbers(corpus):
    for said in run(errors, 4, corpus):
        three, none, batch, jitter, experts = said
        assert "the number of processes (4) must be a multiple of expert_parallel (3)" in three
        assert "must be a multiple of expert_parallel (0)" in none
        assert "batch_size (6) must be divisible by the number of processes (4)" in batch
        assert "jitter (0.01) is supported in a single process only; set it to 0" in jitter
        assert "n_experts (6) must be divisible by the number of processes (4)" in experts
