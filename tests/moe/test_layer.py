"""The MoE layer: shared expert, masks, capacity, expert choice, causality and invalid arguments."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from minimoe.moe import MoE, Router, expert_choice, route
from minimoe.moe.dispatch.capacity import expert_capacity


def task_gradient(moe, tokens=16):
    """The gate's gradient from a task with a nonzero upstream gradient."""
    x = torch.randn(tokens, moe.dim)
    y, _ = moe(x)
    (y * torch.randn_like(y)).sum().backward()
    return moe.gate.weight.grad


def test_shared_expert_is_added_unscaled():
    moe = MoE(8, 16, 4, 2, n_shared=2, scale=2.5)
    x = torch.randn(6, 8)
    y, routing = moe(x)
    assert moe.shared_experts.up_proj.weight.shape == (32, 8)  # two shared experts are one of twice the width
    torch.testing.assert_close(routing.weights_TK.sum(1), torch.full((6,), 2.5))
    torch.testing.assert_close(y, moe.shared_experts(x) + moe.experts(x, routing, "reference"))


@pytest.mark.parametrize("arguments", [{"top_k": 2}, {"top_k": 1, "normalize": False}])
def test_the_gate_gets_a_gradient_from_the_task(arguments):
    assert task_gradient(MoE(8, 8, 4, **arguments)).abs().max() > 0


def test_one_normalized_expert_gives_the_gate_no_gradient():
    assert task_gradient(MoE(8, 8, 4, 1)).abs().max() == 0


def test_activation_checkpointing_counts_nothing_twice():
    """The forward pass runs twice; its routing is returned and not stored, so nothing accumulates."""
    moe = MoE(8, 8, 4, 2)
    x, upstream = torch.randn(2, 12, 8)
    moe(x)[0].backward(upstream)
    expected = {name: p.grad.clone() for name, p in moe.named_parameters()}
    moe.zero_grad()
    y, routing = checkpoint(moe, x, use_reentrant=False)
    y.backward(upstream)
    assert routing.counts_E.sum() == 12 * 2
    assert moe.gate.e_score_correction_bias.abs().max() == 0
    for name, parameter in moe.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_padding_is_not_counted_and_changes_nothing():
    moe = MoE(8, 8, 4, 2)
    x = torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    expected, routing = moe(x[mask])
    padded = x.masked_fill(~mask.unsqueeze(-1), float("nan"))  # must not affect the result
    y, with_padding = moe(padded, mask)
    torch.testing.assert_close(y[mask], expected)
    assert y[~mask].abs().max() == 0
    assert torch.equal(with_padding.counts_E, routing.counts_E)
    assert with_padding.scores_TE[~mask.flatten()].abs().max() == 0
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in moe.parameters())


def test_padding_uses_no_capacity():
    moe = MoE(8, 8, 4, 2, dispatch="capacity", capacity_factor=0.5)
    x = torch.randn(12, 8)
    mask = torch.arange(12) >= 6
    y, _ = moe(x, mask)
    moe.capacity_factor = 1.0  # the same capacity for half the tokens
    torch.testing.assert_close(y[6:], moe(x[6:])[0])


def test_jitter_is_applied_in_training_only():
    moe = MoE(8, 8, 4, 2, jitter=0.5)
    x = torch.randn(64, 8)
    noisy, again = (moe(x)[1].scores_TE for _ in range(2))
    assert not torch.equal(noisy, again)
    moe.eval()
    torch.testing.assert_close(moe(x)[1].scores_TE, moe.gate.logits(x).sigmoid())
    moe.train()
    torch.manual_seed(1)
    first = moe(x)[1].scores_TE
    torch.manual_seed(1)
    assert torch.equal(moe(x)[1].scores_TE, first)


def leaks_the_future(moe, tokens=32, early=16) -> bool:
    """Whether the output at early tokens depends on later ones."""
    x = torch.randn(tokens, moe.dim)
    other = torch.cat((x[:early], torch.randn(tokens - early, moe.dim)))
    return not torch.allclose(moe(x)[0][:early], moe(other)[0][:early], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dispatch", ["reference", "loop", "grouped"])
def test_dropless_token_choice_is_causal(dispatch):
    assert not any(leaks_the_future(MoE(8, 8, 4, 2, dispatch=dispatch)) for _ in range(5))


def test_expert_choice_leaks_the_future():
    assert any(leaks_the_future(MoE(8, 8, 4, 2, score="softmax", choice="expert")) for _ in range(5))


def test_capacity_leaks_the_future_through_second_choices_only():
    layer = {"dim": 8, "expert_dim": 8, "n_experts": 4, "dispatch": "capacity", "capacity_factor": 0.6}
    assert any(leaks_the_future(MoE(**layer, top_k=2)) for _ in range(5))
    assert not any(leaks_the_future(MoE(**layer, top_k=1, normalize=False)) for _ in range(5))


def test_expert_choice_has_equal_loads():
    logits = torch.randn(30, 4)
    routing = expert_choice(logits, 2)
    assert routing.counts_E.tolist() == [15] * 4  # T * K / E
    scores = logits.softmax(1)
    for expert in range(4):
        chosen = routing.weights_TK[:, expert] > 0
        assert scores[chosen, expert].min() > scores[~chosen, expert].max()
        torch.testing.assert_close(routing.weights_TK[chosen, expert], scores[chosen, expert])


@pytest.mark.parametrize("tokens", [0, 1, 30])
def test_expert_choice_by_capacity_equals_the_oracle(tokens):
    moe = MoE(8, 8, 4, 2, score="softmax", choice="expert")
    x = torch.randn(tokens, 8)
    y, _ = moe(x)
    moe.dispatch = "reference"
    torch.testing.assert_close(y, moe(x)[0])


def test_expert_choice_skips_padding():
    moe = MoE(8, 8, 4, 2, score="softmax", choice="expert")
    mask = torch.arange(20) < 3  # fewer real tokens than each expert's share
    y, routing = moe(torch.randn(20, 8), mask)
    assert routing.counts_E.tolist() == [3] * 4
    assert y[3:].abs().max() == 0


def gshard_pair_by_pair(moe, x, capacity):
    """GShard's rule, pair by pair: all first choices, then all second ones."""
    routing = moe.gate(x)
    taken = [0] * len(routing.counts_E)
    y = torch.zeros_like(x)
    for slot in range(routing.ids_TK.shape[1]):
        for token, expert in enumerate(routing.ids_TK[:, slot].tolist()):
            if taken[expert] < capacity:
                taken[expert] += 1
                gate, up = (moe.experts.gate_up_proj[expert] @ x[token]).chunk(2)
                h = torch.nn.functional.silu(gate) * up
                y[token] += routing.weights_TK[token, slot] * (moe.experts.down_proj[expert] @ h)
    return y


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 1.5])
def test_capacity_is_filled_by_pick_and_then_by_token(factor):
    moe = MoE(8, 8, 4, 2, n_shared=0, dispatch="capacity", capacity_factor=factor)
    x = torch.randn(20, 8)
    y, _ = moe(x)
    torch.testing.assert_close(
        y, gshard_pair_by_pair(moe, x, expert_capacity(20, 4, 2, factor)), rtol=1e-4, atol=1e-6
    )


def test_a_dropped_token_gets_the_shared_expert_only():
    moe = MoE(8, 8, 4, 1, normalize=False, dispatch="capacity", capacity_factor=0.4)  # capacity 1
    moe.gate.e_score_correction_bias[0] = 10  # all pick expert 0
    x = torch.randn(10, 8)
    y, _ = moe(x)
    torch.testing.assert_close(y[1:], moe.shared_experts(x[1:]))
    assert not torch.allclose(y[0], moe.shared_experts(x[0]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MoE(8, 8, 4, 2, dispatch="fast"), "dispatch must be one of"),
        (lambda: MoE(8, 0, 4, 2), r"expert_dim \(0\)"),
        (lambda: MoE(8, 8, 4, 2, n_shared=-1), r"n_shared \(-1\)"),
        (lambda: MoE(8, 8, 4, 2)(torch.randn(3, 9)), "width 9, but the layer has dim 8"),
        (lambda: MoE(8, 8, 4, 5), r"top_k \(5\).*n_experts \(4\)"),
        (lambda: MoE(8, 8, 6, 2, n_groups=4), r"n_experts \(6\) must be divisible by n_groups \(4\)"),
        (lambda: MoE(8, 8, 4, 2, capacity_factor=0), r"capacity_factor \(0\) must be above 0"),
        (lambda: MoE(8, 8, 4, 2, capacity_factor=float("nan")), r"capacity_factor \(nan\)"),
        (lambda: MoE(8, 8, 4, 2, jitter=1.5), r"jitter \(1.5\)"),
        (lambda: MoE(8, 8, 4, 2, choice="both"), "choice must be 'token' or 'expert', not 'both'"),
        (lambda: MoE(8, 8, 4, 2, choice="expert", scale=2.5), r"scale \(2.5\)"),
        (lambda: MoE(8, 8, 4, 2)(torch.randn(3, 5, 8), torch.ones(3, 4).bool()), r"\(3, 5\).*\(3, 4\)"),
        (lambda: Router(8, 4, 2)(torch.randn(3, 8), torch.ones(2).bool()), r"\(3,\).*\(2,\)"),
        (lambda: Router(8, 4, 2)(torch.randn(3, 8), torch.ones(3)), "must be bool.*torch.float32"),
        (lambda: route(torch.tensor([[1.0, float("nan")], [1.0, 2.0]]), 1), "scores of 1 of 2 tokens"),
        (lambda: expert_choice(torch.full((2, 4), float("nan")), 1), "scores of 2 of 2 tokens"),
        (lambda: MoE(8, 8, 4, 2).experts(torch.randn(3, 8), route(torch.randn(3, 4), 2), "capacity"), "None"),
    ],
)
def test_invalid_arguments_are_rejected(build, message):
    with pytest.raises(ValueError, match=message):
        build()
