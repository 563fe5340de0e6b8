"""One training step and one evaluation: what they change and what they leave alone."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from test_architecture import ORDER
from torch import nn

from minimoe.data.corpus import Batch
from minimoe.distributed.errors import TrainingError
from minimoe.distributed.strategy import SingleProcess
from minimoe.models.gpt import GPT
from minimoe.moe.load_balancing import switch_loss
from minimoe.training import config as config_module
from minimoe.training.config import Balance, TrainConfig
from minimoe.training.loop import train
from minimoe.training.trainer import Trainer, cross_entropy

CONFIG = TrainConfig(steps=20, batch_size=4, warmup=4, eval_sequences=4)


def make(model_config, corpus, **changes):
    torch.manual_seed(0)
    return Trainer(GPT(model_config), corpus, replace(CONFIG, **changes))


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


class Wrapper(nn.Module):
    """Like DistributedDataParallel: keeps the model in ``module`` and counts forward passes."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, tokens_BL):
        self.calls += 1
        return self.module(tokens_BL)


class Wrapping(SingleProcess):
    def __init__(self):
        self.wrapped = []

    def wrap_model(self, model, batch_size):
        self.wrapped.append((Wrapper(model), batch_size))
        return self.wrapped[-1][0]


def test_the_trainer_trains_through_the_network_that_its_strategy_wrapped(tiny, corpus):
    strategy, model = Wrapping(), GPT(tiny)
    network = strategy.wrap_model(model, CONFIG.batch_size)
    trainer = Trainer(network, corpus, replace(CONFIG, accumulate=2), strategy=strategy)
    assert trainer.model is model
    assert trainer.parameters.keys() == dict(model.named_parameters()).keys()
    plain = make(tiny, corpus, accumulate=2)
    plain.model.load_state_dict(model.state_dict())
    assert trainer.train_step().loss == plain.train_step().loss
    assert network.calls == 2
    assert len(strategy.wrapped) == 1  # the trainer itself wraps nothing


def test_train_has_the_strategy_wrap_the_model_once(tiny, corpus):
    strategy = Wrapping()
    train(GPT(tiny), corpus, replace(CONFIG, steps=3), strategy=strategy)
    [(network, batch_size)] = strategy.wrapped
    assert (network.calls, batch_size) == (3, CONFIG.batch_size)


def test_a_step_calls_only_rooms_to_the_left(tiny_moe, corpus):
    """A step and an evaluation never call back, say from the distributed strategy into the trainer."""
    trainer = make(tiny_moe, corpus)
    upward = set()

    def room(frame):
        package, _, rest = frame.f_globals.get("__name__", "").partition(".")
        return ORDER.index(rest.split(".")[0]) if package == "minimoe" else None

    def on_event(frame, event, _):
        if event != "call" or (callee := room(frame)) is None:
            return
        caller = frame.f_back
        while caller is not None and room(caller) is None:  # torch, and this test
            caller = caller.f_back
        if caller is not None and callee > room(caller):
            upward.add(f"{caller.f_code.co_name} -> {frame.f_code.co_name}")

    sys.setprofile(on_event)
    try:
        trainer.train_step()
        trainer.evaluate()
    finally:
        sys.setprofile(None)
    assert not upward


def test_a_tiny_model_memorizes_a_page(tiny, corpus, monkeypatch):
    page = Path(__file__).parents[2].joinpath("LICENSE").read_bytes()[200 : 200 + 8 * 128 + 1]
    text = torch.tensor(list(page))
    batch = Batch(text[:-1].view(8, 128), text[1:].view(8, 128), torch.zeros(8, dtype=torch.int64))
    long = replace(corpus, train=(np.zeros(200, np.uint8),), validation=(np.zeros(200, np.uint8),))
    model_config = replace(tiny, dim=48, hidden_dim=96, expert_dim=32, context=128)
    trainer = make(model_config, replace(long, domains=("page",)), steps=200, lr=1e-2)
    monkeypatch.setattr(trainer, "batch", lambda micro: batch)
    for _ in range(200):
        last = trainer.train_step()
    assert last.loss / math.log(2) < 0.1


def test_micro_batches_give_the_gradient_of_one_batch(tiny, corpus, monkeypatch):
    """Four micro-batches of two sequences, against the same eight in one batch."""
    parts = make(tiny, corpus, batch_size=2, accumulate=4, clip=1e9)
    whole = make(tiny, corpus, batch_size=8, clip=1e9)
    batches = [parts.batch(micro) for micro in range(4)]
    together = type(batches[0])(*(torch.cat(column) for column in zip(*batches, strict=True)))
    monkeypatch.setattr(whole, "batch", lambda micro: together)
    a, b = parts.train_step(), whole.train_step()
    assert a.loss == pytest.approx(b.loss, rel=1e-6)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
    assert a.tokens == b.tokens == 8 * 16
    if a.counts_ME is not None:
        assert torch.equal(a.counts_ME, b.counts_ME)
        assert a.counts_ME.sum(1).tolist() == [8 * 16 * 2] * 2


def test_the_bias_is_updated_once_per_step_and_never_in_evaluation(tiny_moe, corpus):
    trainer = make(tiny_moe, corpus, accumulate=3, balance_speed=0.125)
    trainer.train_step()
    for moe in trainer.moe_layers:
        moved = moe.gate.e_score_correction_bias
        assert set(moved.abs().tolist()) <= {0.0, 0.125}
        assert moved.abs().max() == 0.125
    before = [moe.gate.e_score_correction_bias.clone() for moe in trainer.moe_layers]
    evaluation = trainer.evaluate()
    for moe, bias in zip(trainer.moe_layers, before, strict=True):
        assert torch.equal(moe.gate.e_score_correction_bias, bias)
    assert evaluation.counts_ME.sum(1).tolist() == [2 * 4 * 16 * 2] * 2


@pytest.mark.parametrize("balance", get_args(Balance))
def test_balance_methods(tiny_moe, corpus, balance):
    weight = None if balance in ("none", "bias") else 10.0
    trainer = make(tiny_moe, corpus, balance=balance, balance_weight=weight, clip=1e9)
    plain = make(tiny_moe, corpus, balance="none", clip=1e9)
    step, reference = trainer.train_step(), plain.train_step()
    assert step.loss == pytest.approx(reference.loss, rel=1e-6)  # the cross-entropy only
    moved = max(moe.gate.e_score_correction_bias.abs().max() for moe in trainer.moe_layers)
    assert (moved > 0) == balance.startswith("bias")
    if balance in ("none", "bias"):
        assert step.balance_loss is None
        assert step.grad_norm == pytest.approx(reference.grad_norm, rel=1e-6)
    else:
        assert 0.9 < step.balance_loss < 4  # 1 if even, E / K = 4 if all tokens go to the same two
        assert step.grad_norm != pytest.approx(reference.grad_norm, rel=1e-3)


@pytest.mark.parametrize(
    ("balance_weights", "message"),
    [({}, "_update_bias does not cover"), ({"bias-zscore": 0.1}, "_balance_loss has no loss for")],
)
def test_a_new_balance_method_must_be_added_everywhere(
    tiny_moe, corpus, monkeypatch, balance_weights, message
):
    """A name that is only in ``Balance`` (and in ``BALANCE_WEIGHTS``) does not train as another method."""
    monkeypatch.setattr(config_module, "Balance", Literal[Balance, "bias-zscore"])
    for name, weight in balance_weights.items():
        monkeypatch.setitem(config_module.BALANCE_WEIGHTS, name, weight)
    trainer = make(tiny_moe, corpus, balance="bias-zscore")
    with pytest.raises(ValueError, match=rf"{message} balance 'bias-zscore'; add a case"):
        trainer.train_step()


def test_the_balance_losses_gradient_is_the_sum_over_layers(tiny_moe, corpus):
    """Computed independently on the trainer's batch."""
    trainer = make(tiny_moe, corpus, balance="switch", balance_weight=0.5, accumulate=1)
    batch = trainer.batch(0)
    trainer._backward(0, bf16=False)
    actual = {name: p.grad.clone() for name, p in trainer.parameters.items()}
    trainer.model.zero_grad()
    logits, routings = trainer.model(batch.tokens_BL)
    loss = cross_entropy(logits, batch.targets_BL) + 0.5 * sum(switch_loss(r) for r in routings)
    loss.backward()
    for name, parameter in trainer.parameters.items():
        torch.testing.assert_close(actual[name], parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("balance", ["switch", "sequence"])
def test_a_balance_loss_balances(tiny_moe, corpus, balance):
    """An imbalanced gate, with and without the loss."""
    violations = {}
    for method in (balance, "none"):
        weight = None if method == "none" else 1.0
        trainer = make(
            tiny_moe, corpus, balance=method, balance_weight=weight, steps=60, warmup=1, lr=1e-2
        )  # fmt: skip
        with torch.no_grad():
            for moe in trainer.moe_layers:
                moe.gate.weight[:2] *= 8
        for _ in range(60):
            trainer.train_step()
        violations[method] = trainer.evaluate().max_violation
    assert violations[balance] < 0.5 * violations["none"]


def test_loads_are_counted_by_domain(tiny_moe, corpus):
    evaluation = make(tiny_moe, corpus).evaluate()
    domains, layers, experts = evaluation.counts_NME.shape
    assert (domains, layers, experts) == (len(evaluation.domains), 2, 8)
    assert evaluation.counts_NME.sum(2).tolist() == [[4 * 16 * 2] * 2] * domains
    assert not torch.equal(evaluation.counts_NME[0], evaluation.counts_NME[1])


def test_a_balance_speed_of_0_leaves_the_bias_at_0(tiny_moe, corpus):
    trainer = make(tiny_moe, corpus, balance_speed=0.0)
    trainer.train_step()
    assert all(moe.gate.e_score_correction_bias.abs().max() == 0 for moe in trainer.moe_layers)


def test_first_step_equals_adamw_by_hand(tiny_dense, corpus):
    trainer = make(tiny_dense, corpus, lr=0.01, warmup=0, weight_decay=0.5, clip=1e9)
    before = weights(trainer)
    batch = trainer.batch(0)
    cross_entropy(trainer.model(batch.tokens_BL)[0], batch.targets_BL).backward()
    gradients = {name: p.grad.clone() for name, p in trainer.parameters.items()}
    trainer.optimizer.zero_grad()
    trainer.train_step()
    for name, p in trainer.parameters.items():
        decay = 0.5 if before[name].ndim > 1 else 0.0  # matrices only
        g = gradients[name]
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=2e-5, msg=name)


def test_clipping_bounds_the_gradient(tiny_dense, corpus):
    trainer = make(tiny_dense, corpus, clip=1e-3)
    seen = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in trainer.parameters.values()]).norm())
    )
    assert trainer.train_step().grad_norm > 0.1  # reported before clipping
    assert seen[0].item() == pytest.approx(1e-3, rel=1e-2)


def test_warmup_and_cosine_by_hand():
    config = TrainConfig(steps=110, warmup=10, lr=1.0, final_lr=0.1)
    assert config.lr_at(0) == pytest.approx(0.1)
    assert config.lr_at(9) == pytest.approx(1.0)
    assert config.lr_at(60) == pytest.approx(0.55)  # halfway down
    assert config.lr_at(110) == pytest.approx(0.1)
    constant = replace(config, schedule="constant")
    assert [constant.lr_at(step) for step in (4, 10, 109)] == [0.5, 1.0, 1.0]


def test_evaluation_equals_loss_by_hand_and_repeats(tiny, corpus):
    trainer = make(tiny, corpus, eval_sequences=6)  # batches of four and two
    for _ in range(3):
        trainer.train_step()
    evaluation = trainer.evaluate()
    for name, batch in zip(corpus.domains, corpus.validation_batches(16, 6, 6), strict=True):
        log_p = trainer.model(batch.tokens_BL)[0].double().log_softmax(-1)
        bits = -log_p.gather(-1, batch.targets_BL[..., None]).mean().item() / math.log(2)
        assert evaluation.domains[name] == pytest.approx(bits, rel=1e-6)
    assert evaluation.bits_per_byte == pytest.approx(sum(evaluation.domains.values()) / 2)
    assert trainer.evaluate().domains == evaluation.domains


def test_weights_are_averaged_over_the_last_fraction(tiny_dense, corpus):
    trainer = make(tiny_dense, corpus, average=0.5)
    expected = weights(trainer)
    for step in range(1, 9):
        trainer.train_step()
        weight = min(1.0, 2.0 / step)
        expected = {n: a + weight * (trainer.parameters[n].detach() - a) for n, a in expected.items()}
    for name, average in trainer.average.items():
        torch.testing.assert_close(average, expected[name])
        assert not torch.equal(average, trainer.parameters[name]) or average.numel() == 0
    live = weights(trainer)
    averaged = trainer.evaluate().bits_per_byte
    assert all(torch.equal(live[n], p) for n, p in trainer.parameters.items())
    trainer.average = {}
    assert trainer.evaluate().bits_per_byte != averaged


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_weights_unchanged(tiny, corpus):
    trainer = make(tiny, corpus)
    with torch.no_grad():
        trainer.model.norm.weight[0] = float("nan")
    before = weights(trainer)
    with pytest.raises(TrainingError, match=r"step 1: loss nan.*lower lr \(0.003\)"):
        trainer.train_step()
    for name, p in trainer.parameters.items():
        assert torch.equal(p.nan_to_num(7), before[name].nan_to_num(7))


def test_bf16_stays_near_float32_and_keeps_float32_weights(tiny, corpus):
    full, half = make(tiny, corpus), make(tiny, corpus, autocast="bf16")
    for _ in range(5):
        a, b = full.train_step(), half.train_step()
    assert a.loss != b.loss
    assert a.loss == pytest.approx(b.loss, rel=0.01)
    assert {p.dtype for p in half.parameters.values()} == {torch.float32}


def test_autocast_auto_chooses_the_faster_and_leaves_no_gradients(tiny_dense, corpus, monkeypatch):
    for bf16_seconds, expected in ((0.5, True), (2.0, False)):
        monkeypatch.setattr(
            "minimoe.training.trainer.interleaved_seconds",
            lambda tasks, device, s=bf16_seconds, **_: (
                [task() for task in tasks.values()] and {"float32": 1.0, "bf16": s}
            ),
        )
        trainer = make(tiny_dense, corpus, autocast="auto")
        assert trainer.bf16 is expected
        assert all(p.grad is None for p in trainer.parameters.values())
        assert trainer.step == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps \(0\)"),
        ({"lr": float("nan")}, r"lr \(nan\)"),
        ({"beta2": 1.5}, r"beta2 \(1.5\)"),
        ({"warmup": -1}, r"warmup \(-1\)"),
        ({"average": 2.0}, r"average \(2.0\)"),
        ({"balance": "even"}, "bias\\+sequence, not 'even'"),
        ({"balance": "switch", "balance_weight": -1.0}, r"balance_weight \(-1.0\)"),
        ({"balance": "bias", "balance_weight": 0.1}, r"balance_weight \(0.1\) needs .*'bias'; omit it"),
    ],
)
def test_invalid_configurations_are_refused_with_their_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_a_vocabulary_smaller_than_bytes_is_refused(tiny, corpus):
    with pytest.raises(ValueError, match=r"vocab_size \(100\) must be at least 256"):
        make(replace(tiny, vocab_size=100), corpus)
