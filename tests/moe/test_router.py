"""The router against numpy in float64, written from the papers' equations."""

import numpy as np
import pytest
import torch

from minimoe.moe import Router, route


def numpy_route(logits, top_k, score, normalize, scale, bias, n_groups, top_groups):
    """V3's equations 13 to 16 and its group limit, token by token."""
    logits = logits.astype(np.float64)
    if score == "softmax":
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-logits))
    ids, weights = [], []
    for s in scores:
        choice = s + bias
        if top_groups is not None:
            groups = choice.reshape(n_groups, -1)
            group_scores = [sum(sorted(group)[-(top_k // top_groups) :]) for group in groups]
            for g in sorted(range(n_groups), key=group_scores.__getitem__)[: n_groups - top_groups]:
                groups[g] = -np.inf
            choice = groups.reshape(-1)
        picked = sorted(range(len(s)), key=lambda e: -choice[e])[:top_k]
        w = s[picked]
        ids.append(picked)
        weights.append(scale * (w / w.sum() if normalize else w))
    return np.array(ids), np.array(weights)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("n_groups", "top_groups"), [(1, None), (4, 2), (8, 4)])
def test_route_equals_numpy(score, normalize, n_groups, top_groups):
    logits = torch.randn(200, 16)
    bias = torch.randn(16) - 2  # mostly negative: an excluded group must not win with a zero
    routing = route(
        logits, 4, score=score, normalize=normalize, scale=2.5, bias_E=bias,
        n_groups=n_groups, top_groups=top_groups,
    )  # fmt: skip
    ids, weights = numpy_route(
        logits.numpy(), 4, score, normalize, 2.5, bias.numpy().astype(np.float64), n_groups, top_groups
    )
    np.testing.assert_array_equal(routing.ids_TK.numpy(), ids)
    np.testing.assert_allclose(routing.weights_TK.numpy(), weights, rtol=2e-6)
    np.testing.assert_array_equal(routing.counts_E.numpy(), np.bincount(ids.ravel(), minlength=16))


def test_the_bias_affects_the_choice_only():
    logits = torch.randn(50, 8)
    bias = torch.zeros(8)
    bias[3] = 100.0
    routing = route(logits, 2, score="sigmoid", bias_E=bias)
    assert (routing.ids_TK[:, 0] == 3).all()
    picked = logits.sigmoid().gather(1, routing.ids_TK)
    torch.testing.assert_close(routing.weights_TK, picked / picked.sum(1, keepdim=True))
    torch.testing.assert_close(routing.scores_TE, logits.sigmoid())


def test_normalized_softmax_is_mixtrals_softmax_over_the_picked():
    """Values and gradients: the softmax is after the choice; without normalization, before it."""
    logits = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(50, 2, dtype=torch.float64)
    after = route(logits, 2, normalize=True)
    best = logits.topk(2).values
    torch.testing.assert_close(after.weights_TK, best.softmax(1))
    actual, expected = (torch.autograd.grad(w, logits, upstream)[0] for w in (after[0], best.softmax(1)))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(route(logits, 2, normalize=False)[0], logits.softmax(1).topk(2).values)


def test_a_new_gate_does_not_send_all_tokens_to_the_same_experts():
    """A gate of zeros would, because all scores tie."""
    counts = Router(32, 16, 2)(torch.randn(256, 32)).counts_E
    assert (counts > 0).all()
    assert counts.max() < 128


def test_a_float64_gate_computes_in_float64():
    router = Router(8, 4, 2).double()
    x = torch.randn(5, 8, dtype=torch.float64)
    expected = (x @ router.weight.T).sigmoid()
    torch.testing.assert_close(router(x).scores_TE, expected, rtol=1e-14, atol=0)


def test_very_negative_logits_do_not_divide_by_zero():
    logits = torch.full((3, 8), -200.0).requires_grad_()  # every sigmoid underflows to 0 in float32
    routing = route(logits, 2, score="sigmoid")
    torch.testing.assert_close(routing.weights_TK, torch.full((3, 2), 0.5))
    routing.weights_TK[:, 0].sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_gate_gradient_equals_float64_autograd(score):
    logits = torch.randn(20, 8, requires_grad=True)
    routing = route(logits, 3, score=score)
    upstream = torch.randn(20, 3)
    routing.weights_TK.backward(upstream)
    exact = logits.detach().double().requires_grad_()
    scores = exact.softmax(-1) if score == "softmax" else exact.sigmoid()
    picked = scores.gather(1, routing.ids_TK)
    (picked / picked.sum(1, keepdim=True)).backward(upstream.double())
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
    assert logits.grad.abs().max() > 1e-3


def test_the_gate_computes_in_float32_under_autocast_and_for_bf16():
    router = Router(32, 16, 4)
    x = torch.randn(64, 32)
    exact = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = router(x)
    assert inside.scores_TE.dtype == torch.float32
    assert torch.equal(inside.ids_TK, exact.ids_TK)
    assert torch.equal(inside.weights_TK, exact.weights_TK)
    assert router(x.bfloat16()).weights_TK.dtype == torch.float32


def test_the_balancing_bias_is_a_float32_buffer_and_not_a_parameter():
    router = Router(8, 4, 2)
    assert "e_score_correction_bias" in router.state_dict()
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    router.e_score_correction_bias += 1.001
    for dtype in (torch.bfloat16, torch.float64):
        router = router.to(dtype)
        assert router.weight.dtype == dtype
        assert router.e_score_correction_bias.dtype == torch.float32
    assert (router.e_score_correction_bias == torch.tensor(1.001)).all()
    with torch.device("meta"):
        assert Router(8, 4, 2).e_score_correction_bias.is_meta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 9}, r"top_k \(9\) must be between 1 and n_experts \(8\)"),
        ({"top_k": 0}, r"top_k \(0\)"),
        ({"top_k": 2, "n_groups": 3}, r"n_experts \(8\) must be divisible by n_groups \(3\)"),
        ({"top_k": 2, "n_groups": 4, "top_groups": 5}, r"top_groups \(5\).*n_groups \(4\)"),
        ({"top_k": 3, "n_groups": 4, "top_groups": 2}, r"top_k \(3\) must be divisible by top_groups"),
        ({"top_k": 4, "n_groups": 4, "top_groups": 1}, r"\(4\) must not exceed .* \(2\)"),
        ({"top_k": 2, "score": "relu"}, "softmax.*sigmoid.*relu"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        route(torch.randn(3, 8), **arguments)
