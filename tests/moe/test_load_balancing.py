"""Load balancing against numpy in float64, written token by token from the papers' equations."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed
from process_group import run

from minimoe.moe import MoE, max_violation, route, update_bias_
from minimoe.moe.dispatch.capacity import capacity_experts
from minimoe.moe.expert_choice import expert_choice
from minimoe.moe.load_balancing import router_z_loss, sequence_loss, switch_loss
from minimoe.moe.load_statistics import count_by, statistics, top_tokens

SCORES = ["softmax", "sigmoid"]


def numpy_shares(logits, score):
    """(T, E) float64: each token's scores divided by their sum."""
    logits = logits.numpy().astype(np.float64)
    scores = np.exp(logits) if score == "softmax" else 1 / (1 + np.exp(-logits))
    return scores / scores.sum(-1, keepdims=True)


def numpy_f_and_p(shares, picks, real):
    """f (sum 1) and P (sum 1) of some tokens, one at a time; picks has each token's experts."""
    f, p = np.zeros(shares.shape[1]), np.zeros(shares.shape[1])
    for share, picked, is_real in zip(shares, picks, real, strict=True):
        if is_real:
            p += share / real.sum()
            for e in picked:
                f[e] += 1 / (len(picked) * real.sum())
    return f, p


def numpy_loss(shares, picks, real):
    """Switch, equation 4 without alpha. Equal to E/K * sum f_i P_i of V3, because f here contains 1/K."""
    f, p = numpy_f_and_p(shares, picks, real)
    return len(f) * sum(f * p)


def numpy_sequence_loss(shares, top_k, real, length):
    """V3, equations 17 to 20: the picks are each token's K largest scores."""
    losses = []
    for start in range(0, len(shares), length):
        part, alive = shares[start : start + length], real[start : start + length]
        if alive.any():
            losses.append(numpy_loss(part, [np.argsort(-share)[:top_k] for share in part], alive))
    return np.mean(losses)


def some_padding(n_tokens):
    """A mask of sequences of 8 with different real lengths: one is empty, one padded in front."""
    mask = torch.ones(n_tokens, dtype=torch.bool)
    mask[5:8] = mask[16:24] = mask[24:26] = False
    return mask


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_losses_equal_numpy(score, top_k, padded):
    logits = 3 * torch.randn(48, 16)
    mask = some_padding(48) if padded else torch.ones(48, dtype=torch.bool)
    bias = torch.randn(16)  # picks differ from the best scores: Switch counts picks, V3 best scores
    routing = route(logits, top_k, score=score, bias_E=bias, mask_T=mask if padded else None)
    shares, real = numpy_shares(logits, score), mask.numpy()
    expected = numpy_loss(shares, routing.ids_TK.numpy(), real)
    assert switch_loss(routing).item() == pytest.approx(expected, rel=1e-5)
    expected = numpy_sequence_loss(shares, top_k, real, 8)
    assert sequence_loss(routing, 8).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_switch_loss_equals_transformers_over_k(padded):
    """transformers (5.23) divides the counts by the T tokens, ours by the K * T picks: its loss is K times
    ours. Its mask is (B, L) of float."""
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits, mask = torch.randn(64, 8), some_padding(64) if padded else None
    theirs = mixtral.load_balancing_loss_func(
        (logits,), 8, 2, None if mask is None else mask.view(8, 8).float()
    )
    torch.testing.assert_close(2 * switch_loss(route(logits, 2, mask_T=mask)), theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("score", SCORES)
def test_losses_are_1_at_balance_and_e_over_k_without(score):
    row = torch.tensor([40.0, 40.0] + [-40.0] * 6)
    balanced = route(torch.stack([row.roll(i) for i in range(8)]), 2, score=score)
    unbalanced = route(row.expand(8, 8), 2, score=score)
    for loss in (switch_loss, lambda routing: sequence_loss(routing, 8)):
        assert loss(balanced).item() == pytest.approx(1, rel=1e-6)
        assert loss(unbalanced).item() == pytest.approx(4, rel=1e-6)


def test_1_is_not_a_strict_bound():
    narrow, clear = [0.001, 0.0], [-50.0, 50.0]  # expert 0 is picked three times of four, each time narrowly
    assert switch_loss(route(torch.tensor([narrow, narrow, narrow, clear]), 1)).item() == pytest.approx(
        0.875, abs=1e-3
    )


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("per_sequence", [False, True])
def test_the_gradient_is_that_of_p_with_f_constant(score, per_sequence):
    logits = torch.randn(32, 8, requires_grad=True)
    mask = some_padding(32)
    routing = route(logits, 2, score=score, mask_T=mask)
    (sequence_loss(routing, 8) if per_sequence else switch_loss(routing)).backward()

    exact = logits.detach().double().requires_grad_()
    scores = exact.softmax(-1) if score == "softmax" else exact.sigmoid()
    shares = scores / scores.sum(-1, keepdim=True)
    total = torch.zeros((), dtype=torch.float64)
    sequences = torch.arange(32).split(8 if per_sequence else 32)
    parts = [sequence[mask[sequence]] for sequence in sequences if mask[sequence].any()]
    for part in parts:
        f, _ = numpy_f_and_p(shares.detach()[part].numpy(), routing.ids_TK[part].numpy(), np.ones(len(part)))
        total = total + 8 * (torch.from_numpy(f) * shares[part].mean(0)).sum() / len(parts)
    total.backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)
    assert logits.grad.abs().max() > 1e-3
    assert not logits.grad[~mask].any()


def test_the_sequence_loss_ignores_bias_and_groups():
    """The gate prefers the first experts; the bias hides this by preferring the last."""
    logits, bias = torch.randn(64, 8) + torch.linspace(1, -1, 8), torch.linspace(-0.5, 0.5, 8)
    plain = route(logits, 2, score="sigmoid")
    steered = route(logits, 2, score="sigmoid", bias_E=bias, n_groups=4, top_groups=2)
    assert not torch.equal(plain.counts_E, steered.counts_E)
    assert sequence_loss(steered, 16) == sequence_loss(plain, 16)
    # If f counts picks, as in the Switch loss, the loss is lower.
    shares, picks = numpy_shares(logits, "sigmoid"), steered.ids_TK.numpy()
    parts = [numpy_loss(shares[i : i + 16], picks[i : i + 16], np.ones(16)) for i in range(0, 64, 16)]
    assert np.mean(parts) < sequence_loss(steered, 16).item() - 0.05
    assert switch_loss(steered) < switch_loss(plain) - 0.05


@pytest.mark.parametrize(
    ("length", "message"), [(7, "64 tokens.*length 7; give"), (0, "64 tokens.*length 0")]
)
def test_invalid_sequence_lengths_are_rejected(length, message):
    with pytest.raises(ValueError, match=message):
        sequence_loss(route(torch.randn(64, 8), 2), length)


@pytest.mark.parametrize("score", SCORES)
def test_padding_changes_nothing(score):
    logits, where = (
        torch.randn(24, 8, dtype=torch.float64),
        torch.tensor([i for i in range(48) if i % 16 < 8]),
    )
    mask = torch.zeros(48, dtype=torch.bool).index_fill(0, where, True)
    padded = torch.full((48, 8), 7.0, dtype=torch.float64).index_copy(
        0, where, logits
    )  # padding has a preferred expert
    padded[~mask, 3] = 99.0
    without, within = logits.requires_grad_(), padded.requires_grad_()
    bare = route(without, 2, score=score)
    full = route(within, 2, score=score, mask_T=mask)
    for loss in (
        lambda r, logits, mask, length: switch_loss(r),
        lambda r, logits, mask, length: sequence_loss(r, length),
        lambda r, logits, mask, length: router_z_loss(logits, mask),
    ):
        expected, actual = loss(bare, without, None, 8), loss(full, within, mask, 16)
        torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
        (expected_grad,) = torch.autograd.grad(expected, without, retain_graph=True)
        (actual_grad,) = torch.autograd.grad(actual, within, retain_graph=True)
        torch.testing.assert_close(actual_grad[mask], expected_grad, rtol=1e-12, atol=1e-16)
        assert not actual_grad[~mask].any()
    assert torch.equal(statistics(full, capacity=4).load_E, statistics(bare, capacity=4).load_E)
    assert statistics(full, capacity=4)[1:] == statistics(bare, capacity=4)[1:]
    labels = torch.arange(24) % 3
    assert torch.equal(
        count_by(torch.zeros(48, dtype=torch.int64).index_copy(0, where, labels), full, 3),
        count_by(labels, bare, 3),
    )


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("n_tokens", [0, 16])
def test_losses_without_real_tokens_are_0_with_zero_gradients(score, n_tokens):
    logits = torch.randn(n_tokens, 8, requires_grad=True)
    mask = torch.zeros(n_tokens, dtype=torch.bool)
    routing = route(logits, 2, score=score, mask_T=mask)
    for loss in (switch_loss(routing), sequence_loss(routing, 8), router_z_loss(logits, mask)):
        (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert loss.item() == 0
        assert torch.equal(grad, torch.zeros(n_tokens, 8))


def test_losses_of_an_empty_batch_without_a_mask_are_0():
    assert switch_loss(route(torch.randn(0, 8), 2)).item() == 0
    assert router_z_loss(torch.randn(0, 8)).item() == 0


@pytest.mark.parametrize("logit", [-200.0, -88.7, -80.0])
def test_underflowing_sigmoids_have_finite_gradients(logit):
    logits = torch.full((1, 64), logit).requires_grad_()  # at -200 all are 0, at -88.7 subnormal
    routing = route(logits, 1, score="sigmoid")
    (1e4 * (switch_loss(routing) + sequence_loss(routing, 1))).backward()  # as with loss scaling
    assert logits.grad.isfinite().all()


def test_underflow_is_not_rewarded():
    logits = torch.randn(16, 8)
    kept = route(logits[:8], 2, score="sigmoid")
    logits[8:] = -200
    routing = route(logits, 2, score="sigmoid")
    assert sequence_loss(routing, 16) == sequence_loss(kept, 8)
    # Switch counts the picks of all 16 tokens; P is the mean over the 8 with scores, and sums to 1.
    p = torch.tensor(numpy_shares(logits[:8], "sigmoid")).mean(0)
    expected = 8 * (routing.counts_E / 32 * p).sum().item()
    assert switch_loss(routing).item() == pytest.approx(expected, rel=1e-6)


def test_expert_choice_is_balanced():
    mask = torch.ones(32, dtype=torch.bool)
    for mask_T in (None, mask, mask.index_fill(0, torch.tensor([3, 7]), False)):
        routing = expert_choice(torch.randn(32, 8), 2, mask_T=mask_T)
        assert switch_loss(routing).item() == pytest.approx(
            1, rel=1e-6
        )  # K is E here, so there are not counts / K tokens
        assert sequence_loss(routing, 8).item() == pytest.approx(1, rel=1e-6)
        assert statistics(routing).max_violation == 0


def test_picks_count_before_any_is_dropped():
    moe = MoE(8, 8, 8, 2, dispatch="capacity", capacity_factor=0.5)
    x = torch.randn(64, 8) + 3
    y, routing = moe(x)
    moe.dispatch = "loop"
    all_of_y, same = moe(x)
    assert not torch.allclose(y, all_of_y)  # some picks were dropped
    assert routing.counts_E.sum() == 128
    assert switch_loss(routing) == switch_loss(same)


def test_z_loss_equals_numpy():
    logits, mask = 5 * torch.randn(64, 8), some_padding(64)
    z = np.log(np.exp(logits.numpy().astype(np.float64)).sum(-1))
    assert router_z_loss(logits).item() == pytest.approx((z**2).mean(), rel=1e-6)
    assert router_z_loss(logits, mask).item() == pytest.approx((z**2)[mask.numpy()].mean(), rel=1e-6)


def test_z_loss_of_huge_logits_and_infinite_padding_is_finite():
    logits = torch.full((4, 8), 1e4)
    logits[2:] = torch.tensor([[math.inf], [math.nan]])
    logits.requires_grad_()
    loss = router_z_loss(logits, torch.tensor([True, True, False, False]))
    loss.backward()
    assert loss.item() == pytest.approx((1e4 + math.log(8)) ** 2)
    torch.testing.assert_close(logits.grad[:2], torch.full((2, 8), 1e4 / 8), rtol=1e-3, atol=0)
    assert not logits.grad[2:].any()


def test_z_loss_is_float32_for_any_input():
    logits = 5 * torch.randn(64, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = router_z_loss(logits)
    assert loss.dtype == torch.float32
    assert loss == router_z_loss(logits.float())


@pytest.mark.parametrize("mask", [torch.ones(1, dtype=torch.bool), torch.ones(3)])
def test_invalid_masks_are_rejected(mask):
    with pytest.raises(ValueError, match=r"per token, \(3,\), .*it is torch\.(float32 \(3,\)|bool \(1,\))"):
        router_z_loss(torch.randn(3, 8), mask)


def test_losses_never_read_a_value():
    logits = torch.randn(16, 8, device="meta")  # has no values: reading one raises
    mask = torch.ones(16, dtype=torch.bool, device="meta")
    routing = route(logits, 2, score="sigmoid", mask_T=mask)
    for loss in (switch_loss(routing), sequence_loss(routing, 8), router_z_loss(logits, mask)):
        assert loss.shape == ()


def test_the_bias_moves_against_the_load():
    bias, counts = torch.tensor([0.0, 0.5, 0.0, 0.0]), torch.tensor([10, 2, 4, 0])
    update_bias_(bias, counts, speed=0.1)
    torch.testing.assert_close(bias, torch.tensor([-0.1, 0.6, 0.0, 0.1]))
    assert counts.tolist() == [10, 2, 4, 0]


def test_the_bias_alone_balances_an_unbalanced_gate():
    moe = MoE(8, 8, 8, 2)
    x = torch.randn(256, 8) + 3  # a common direction: all tokens prefer some experts
    with torch.no_grad():
        moe.gate.weight += 0.005 * torch.arange(8)[:, None]
    before = max_violation(moe(x)[1].counts_E)
    for _ in range(500):
        update_bias_(moe.gate.e_score_correction_bias, moe(x)[1].counts_E, speed=0.002)
    assert before > 2
    assert max_violation(moe(x)[1].counts_E) < 0.3


def test_counts_of_another_length_are_rejected():
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        update_bias_(torch.zeros(4), torch.zeros(3))


def test_all_ranks_needs_a_process_group():
    with pytest.raises(ValueError, match="init_process_group first; leave it False in a single process"):
        update_bias_(torch.zeros(4), torch.zeros(4), all_ranks=True)


RANKS_COUNTS = ([9, 0, 0, 3], [0, 2, 9, 1])  # rank 0 alone: - + + 0; rank 1 alone: + + - +


def update_bias_of_rank():
    """On each of two processes: its own counts, and the same bias."""
    bias, counts = torch.zeros(4), torch.tensor(RANKS_COUNTS[torch.distributed.get_rank()])
    update_bias_(bias, counts, speed=0.5, all_ranks=True)
    return bias.tolist(), counts.tolist()


@pytest.mark.distributed
def test_two_ranks_update_the_bias_by_the_counts_of_both():
    for rank, (bias, counts) in enumerate(run(update_bias_of_rank, 2)):
        assert bias == [-0.5, 0.5, -0.5, 0.5]  # of [9, 2, 9, 4], mean 6
        assert counts == RANKS_COUNTS[rank]  # a copy was summed


def test_max_violation_by_hand():
    assert max_violation(torch.tensor([4, 4, 4, 4])) == 0
    assert max_violation(torch.tensor([8, 4, 4, 0])) == 1  # 8 over a mean of 4
    assert max_violation(torch.tensor([16, 0, 0, 0])) == 3  # E/K - 1 for K = 1
    assert max_violation(torch.tensor([0, 0])) == 0


@pytest.mark.parametrize(
    ("counts", "capacity", "expected"),  # MaxVio, entropy, dead, dropped
    [
        ([4, 4, 4, 4], 4, (0, 1, 0, 0)),
        ([8, 8, 0, 0], 6, (1, 0.5, 2, 0.25)),
        ([1, 1, 0, 0], None, (1, 0.5, 2, 0)),
        ([16, 0, 0, 0], None, (3, 0, 3, 0)),
        ([16, 0, 0, 0], 1, (3, 0, 3, 15 / 16)),
        ([0, 0, 0, 0], 1, (0, 0, 4, 0)),
        ([5], 2, (0, 1, 0, 0.6)),
    ],
)
def test_statistics_by_hand(counts, capacity, expected):
    result = statistics(torch.tensor(counts), capacity=capacity)
    assert result[1:] == pytest.approx(expected, rel=1e-12)
    assert result.load_E.dtype == torch.float64
    assert result.load_E.tolist() == [count / max(sum(counts), 1) for count in counts]


def test_statistics_of_a_routing_equal_those_of_its_counts():
    routing = route(torch.randn(50, 8), 2)
    of_counts = statistics(routing.counts_E, capacity=12)
    assert statistics(routing, capacity=12)[1:] == of_counts[1:]
    assert torch.equal(statistics(routing, capacity=12).load_E, of_counts.load_E)
    assert of_counts.dropped > 0


def test_dropped_equals_what_the_capacity_dispatcher_drops():
    routing = route(torch.randn(64, 8), 1)
    y = capacity_experts(
        torch.randn(64, 4), torch.randn(8, 8, 4), torch.randn(8, 4, 4), routing.weights_TK, routing.ids_TK, 6
    )
    share = (y == 0).all(1).double().mean().item()
    assert statistics(routing, capacity=6).dropped == share > 0


def test_invalid_arguments_of_statistics_are_rejected():
    with pytest.raises(ValueError, match=r"capacity \(0\) must be at least 1"):
        statistics(torch.tensor([1, 2]), capacity=0)
    with pytest.raises(ValueError, match=r"\(2, 3\) must be \(E,\)"):  # layers are not pooled
        statistics(torch.ones(2, 3))


@pytest.mark.parametrize("choice", ["token", "expert"])
def test_count_by_equals_a_dict(choice):
    logits, labels, mask = torch.randn(64, 8), torch.randint(200, (64,)), some_padding(64)
    routing = (route if choice == "token" else expert_choice)(logits, 2, mask_T=mask)
    expected = Counter()
    for t in range(64):
        for k, e in enumerate(routing.ids_TK[t].tolist()):
            if routing.weights_TK[t, k] != 0:
                expected[labels[t].item(), e] += 1
    table = count_by(labels.to(torch.uint8), routing, 300)
    assert table.dtype == torch.int64
    assert table.tolist() == [[expected[label, e] for e in range(8)] for label in range(300)]
    assert torch.equal(table.sum(0), routing.counts_E)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 7, 1, -2]), r"2 of 4 labels are outside 0 … 4, -2 to 7; raise n_labels \(5\)"),
        (torch.tensor([0, 1, 2]), r"int64 \(3,\) must be \(4,\) integers"),
        (torch.zeros(4), r"float32 \(4,\) must be"),
    ],
)
def test_invalid_labels_are_rejected(labels, message):
    with pytest.raises(ValueError, match=message):
        count_by(labels, route(torch.randn(4, 8), 2), 5)


def test_count_by_without_tokens_is_zero():
    empty = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(count_by(empty, route(torch.randn(0, 8), 2), 3), torch.zeros(3, 8, dtype=torch.int64))


def test_top_tokens_by_hand():
    counts_VE = torch.tensor([[1, 0], [5, 0], [1, 2], [0, 0]])
    ids_En, counts_En = top_tokens(counts_VE, 3)
    assert ids_En.tolist() == [[1, 0, 2], [2, 0, 1]]  # ties go to the smaller id; ids with count 0 last
    assert counts_En.tolist() == [[5, 1, 1], [2, 0, 0]]


def test_top_tokens_breaks_ties_by_id_among_many():
    ids_En, _ = top_tokens(torch.ones(500, 4, dtype=torch.int64), 20)
    assert ids_En.tolist() == [list(range(20))] * 4


@pytest.mark.parametrize("n", [0, 6])
def test_invalid_numbers_of_top_tokens_are_rejected(n):
    with pytest.raises(ValueError, match=rf"n \({n}\) must be between 1 and .* \(5\)"):
        top_tokens(torch.zeros(5, 2), n)
