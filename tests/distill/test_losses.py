"""Divergences against PyTorch's and numpy in float64, their theory, and their invariances."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minimoe.distill.losses import divergence, kd_loss

KINDS = ["forward", "reverse", "jsd", "skew", "tv"]
INF = math.inf

needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


def logits_pair(*shape, dtype=torch.float32, scale=2.0):
    return scale * torch.randn(shape, dtype=dtype), scale * torch.randn(shape, dtype=dtype)


def some_targets(batch, length, n_logits):
    """Next tokens of which a few are padding, in sequences of different lengths."""
    targets = torch.randint(n_logits, (batch, length))
    targets[0, length // 2 :] = -100
    targets[-1, 0] = -100
    return targets


def numpy_kl(a, b):
    with np.errstate(divide="ignore"):
        return np.sum(a[a > 0] * (np.log(a[a > 0]) - np.log(b[a > 0])))


def numpy_divergence(student, teacher, kind, temperature=1.0, beta=0.5):
    """(tokens,) float64, from the definitions, one token at a time."""
    values = []
    students, teachers = (logits.flatten(0, -2).double().numpy() for logits in (student, teacher))
    for s, t in zip(students, teachers, strict=True):
        p, q = (np.exp((x - x.max()) / temperature) for x in (t, s))
        p, q = p / p.sum(), q / q.sum()
        m = beta * p + (1 - beta) * q
        by_kind = {
            "forward": numpy_kl(p, q),
            "reverse": numpy_kl(q, p),
            "jsd": beta * numpy_kl(p, m) + (1 - beta) * numpy_kl(q, m),
            "skew": numpy_kl(p, m),
            "tv": np.abs(p - q).sum() / 2,
        }
        values.append(by_kind[kind])
    return np.array(values)


def gradient(loss_of, logits):
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(loss_of(leaf), leaf)[0]


# against other implementations


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_kl_equals_torchs(temperature):
    student, teacher = logits_pair(3, 5, 11, dtype=torch.float64)
    log_q, log_p = ((x / temperature).log_softmax(-1) for x in (student, teacher))
    forward = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    reverse = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    for kind, expected in (("forward", forward), ("reverse", reverse)):
        each = divergence(student, teacher, kind, temperature=temperature, reduction="none")
        torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-14)
        mean = divergence(student, teacher, kind, temperature=temperature)
        torch.testing.assert_close(mean, expected.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_values_equal_numpy(kind, beta):
    student, teacher = logits_pair(3, 5, 11)
    expected = numpy_divergence(student, teacher, kind, 2.0, beta)
    options = {"kind": kind, "temperature": 2.0, "beta": beta, "reduction": "none"}
    exact = divergence(student.double(), teacher.double(), **options)
    np.testing.assert_allclose(exact.flatten().numpy(), expected, rtol=1e-12)
    actual = divergence(student, teacher, **options)
    assert (exact.dtype, actual.dtype) == (torch.float64, torch.float32)
    np.testing.assert_allclose(actual.flatten().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_equals_the_formula_of_trl(beta):
    """``generalized_jsd_loss``, where β weighs the teacher too: in the mixture m, and in its KL."""
    student, teacher = logits_pair(3, 5, 11)
    log_q, log_p = (x.double().log_softmax(-1).numpy() for x in (student, teacher))
    log_m = np.logaddexp(log_q + np.log(1 - beta), log_p + np.log(beta))
    expected = beta * np.exp(log_p) * (log_p - log_m) + (1 - beta) * np.exp(log_q) * (log_q - log_m)
    actual = divergence(student, teacher, "jsd", beta=beta)
    assert actual.item() == pytest.approx(expected.sum(-1).mean(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind):
    student, teacher = logits_pair(2, 3, 5, dtype=torch.float64)
    student.requires_grad_()
    options = {"kind": kind, "temperature": 1.7, "beta": 0.3}
    assert torch.autograd.gradcheck(lambda x: divergence(x, teacher, reduction="none", **options), student)
    targets = some_targets(2, 3, 5)
    assert torch.autograd.gradcheck(lambda x: kd_loss(x, teacher, targets, alpha=0.3, **options), student)


def test_the_teacher_gets_no_gradient():
    student, teacher = (x.requires_grad_() for x in logits_pair(2, 3, 5))
    for kind in KINDS:
        (divergence(student, teacher, kind) + kd_loss(student, teacher, some_targets(2, 3, 5))).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


# theory


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_of_equal_distributions_is_0(kind):
    logits = 3 * torch.randn(4, 33, dtype=torch.float64)
    shifted = logits + torch.randn(4, 1, dtype=torch.float64)  # softmax is invariant to it
    each = divergence(shifted, logits, kind, reduction="none")
    assert each.abs().max() < 1e-14
    # Unshifted, because tv has a kink at 0, where a rounding error decides the sign.
    assert gradient(lambda x: divergence(x, logits, kind), logits).abs().max() < 1e-14
    assert divergence(shifted.float(), logits.float(), kind).abs() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_of_different_distributions_is_positive(kind):
    each = divergence(*logits_pair(50, 9, dtype=torch.float64), kind, reduction="none")
    assert each.min() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_jsd_is_symmetric_and_at_most_ln_2(scale):
    student, teacher = (scale * torch.randn(64, 9).sign() for _ in range(2))
    forth = divergence(student, teacher, "jsd", reduction="none")
    back = divergence(teacher, student, "jsd", reduction="none")
    torch.testing.assert_close(forth, back, rtol=1e-5, atol=1e-7)
    assert forth.max() <= math.log(2) * (1 + 1e-6)
    # The maximum: each is certain of a different token.
    sure = scale * (2 * torch.eye(9) - 1)
    apart = divergence(sure, sure.roll(1, 0), "jsd")
    assert apart.item() == pytest.approx(math.log(2), rel=1e-6) if scale == 50 else apart < math.log(2)


def test_limits_of_beta():
    student, teacher = logits_pair(6, 9, dtype=torch.float64)
    forward, reverse = divergence(student, teacher, "forward"), divergence(student, teacher, "reverse")
    errors = []
    for beta in (1e-2, 1e-4, 1e-6):
        small = divergence(student, teacher, "jsd", beta=beta) / beta
        large = divergence(student, teacher, "jsd", beta=1 - beta) / beta
        skew = divergence(student, teacher, "skew", beta=beta)
        pairs = ((small, forward), (large, reverse), (skew, forward))
        errors.append([float((x / limit - 1).abs()) for x, limit in pairs])
    assert max(errors[-1]) < 1e-4
    assert all(a < 0.05 * b for a, b in zip(errors[1] + errors[2], errors[0] + errors[1], strict=True))


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_at_high_temperature_logits_are_matched(kind):
    """Hinton, Vinyals and Dean, equation 4: T² makes the gradient (s - t) / (N V) of centered logits, to
    O(1 / T), and so neither vanish nor explode."""
    student, teacher = logits_pair(4, 10, dtype=torch.float64)
    centered_s, centered_t = (x - x.mean(-1, keepdim=True) for x in (student, teacher))
    expected = (centered_s - centered_t) / (4 * 10)
    errors = []
    for temperature in (1.0, 10.0, 100.0, 1000.0):
        found = gradient(lambda x, t=temperature: kd_loss(x, teacher, kind=kind, temperature=t), student)
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[0] > 0.3  # not at T = 1
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)
    assert errors[2] / errors[3] == pytest.approx(10, rel=0.02)


def test_divergence_has_no_factor_of_temperature():
    student, teacher = logits_pair(4, 10, dtype=torch.float64)
    for kind in KINDS:
        bare = divergence(student, teacher, kind, temperature=5.0)
        assert bare.item() == pytest.approx(numpy_divergence(student, teacher, kind, 5.0).mean(), rel=1e-10)
        whole = kd_loss(student, teacher, kind=kind, temperature=5.0)
        assert whole.item() == pytest.approx(25 * bare.item(), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_vocabulary_does_not_matter(kind):
    student, teacher = logits_pair(3, 4, 12, dtype=torch.float64)
    targets, order = some_targets(3, 4, 12), torch.randperm(12)
    place = torch.argsort(order)  # the new position of each id
    moved = torch.where(targets < 0, targets, place[targets.clamp(min=0)])
    expected = kd_loss(student, teacher, targets, kind=kind)
    actual = kd_loss(student[..., order], teacher[..., order], moved, kind=kind)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=0)


# the sum of two terms


def test_the_loss_is_the_sum_of_torchs_terms():
    """T² belongs to the divergence, whatever α; the cross-entropy is at temperature 1."""
    student, teacher = logits_pair(3, 6, 12)
    targets = some_targets(3, 6, 12)
    hard = F.cross_entropy(student.flatten(0, 1), targets.flatten(), ignore_index=-100)
    soft = divergence(student, teacher, temperature=3.0, mask=targets != -100)
    for alpha in (0.0, 0.25, 0.9, 1.0):
        actual = kd_loss(student, teacher, targets, temperature=3.0, alpha=alpha)
        torch.testing.assert_close(actual, alpha * hard + (1 - alpha) * 9 * soft, rtol=1e-5, atol=0)


def test_cross_entropy_equals_torchs():
    student, teacher = logits_pair(3, 6, 12)
    for ignore_index in (-100, 0, 11):
        targets = torch.randint(12, (3, 6))
        targets[1, 2:] = ignore_index
        options = {"ignore_index": ignore_index}

        def theirs(x, targets=targets, options=options):
            return F.cross_entropy(x.flatten(0, 1), targets.flatten(), **options)

        def ours(x, targets=targets, options=options):
            return kd_loss(x, teacher, targets, temperature=4.0, alpha=1.0, **options)

        torch.testing.assert_close(ours(student), theirs(student), rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient(ours, student), gradient(theirs, student), rtol=1e-5, atol=1e-8)


def test_without_targets_alpha_is_unused():
    student, teacher = logits_pair(3, 6, 12)
    expected = kd_loss(student, teacher, temperature=2.0, alpha=0.0)
    assert expected.item() == pytest.approx(4 * numpy_divergence(student, teacher, "forward", 2.0).mean())
    for alpha in (0.3, 1.0):
        assert torch.equal(kd_loss(student, teacher, temperature=2.0, alpha=alpha), expected)


def test_a_term_of_weight_0_is_not_computed():
    """Otherwise 0 · inf would be NaN."""
    student, teacher = torch.zeros(1, 3), torch.zeros(1, 3)
    student[0, 0] = -INF
    targets = torch.tensor([0])
    assert kd_loss(student, teacher, torch.tensor([1]), alpha=1.0).item() == pytest.approx(math.log(2))
    teacher[0, 0] = -INF
    assert kd_loss(student, teacher, targets, alpha=0.0).item() == 0
    assert kd_loss(student, teacher, targets, alpha=0.5).item() == INF


# masks and reductions


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_over_tokens_that_count(kind):
    """Not over all tokens, and not over sequences first, which have different lengths."""
    student, teacher = logits_pair(3, 6, 12, dtype=torch.float64)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, :5] = mask[1, :1] = True
    each = torch.from_numpy(numpy_divergence(student, teacher, kind)).view(3, 6)
    actual = divergence(student, teacher, kind, mask=mask)
    torch.testing.assert_close(actual, each[mask].mean(), rtol=1e-10, atol=0)
    sums = divergence(student, teacher, kind, mask=mask, reduction="sum")
    torch.testing.assert_close(sums, each[mask].sum(), rtol=1e-10, atol=0)
    none = divergence(student, teacher, kind, mask=mask, reduction="none")
    torch.testing.assert_close(none, torch.where(mask, each, 0.0), rtol=1e-10, atol=1e-15)
    assert not none[~mask].any()


def test_targets_and_mask_both_leave_tokens_out_of_both_terms():
    student, teacher = logits_pair(3, 6, 12, dtype=torch.float64)
    targets, mask = some_targets(3, 6, 12), torch.rand(3, 6) < 0.7
    both = mask & (targets != -100)
    assert 0 < both.sum() < min(mask.sum(), (targets != -100).sum())
    expected = kd_loss(student[both], teacher[both], targets[both], temperature=2.0)
    actual = kd_loss(student, teacher, targets, temperature=2.0, mask=mask)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=0)
    found = gradient(lambda x: kd_loss(x, teacher, targets, temperature=2.0, mask=mask), student)
    assert not found[~both].any()


def test_micro_batches_give_the_same_loss():
    student, teacher = logits_pair(6, 5, 12, dtype=torch.float64)
    targets = some_targets(6, 5, 12)
    n_tokens = (targets != -100).sum()

    def in_parts(x):
        pieces = zip(x.split([1, 3, 2]), teacher.split([1, 3, 2]), targets.split([1, 3, 2]), strict=True)
        return sum(kd_loss(s, t, ids, temperature=2.0, reduction="sum") for s, t, ids in pieces) / n_tokens

    def whole(x):
        return kd_loss(x, teacher, targets, temperature=2.0)

    torch.testing.assert_close(in_parts(student), whole(student), rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient(in_parts, student), gradient(whole, student), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [math.nan, INF, -INF])
def test_values_at_padding_do_not_matter(kind, garbage):
    student, teacher = logits_pair(4, 12)
    targets = torch.tensor([3, -100, 5, 99])  # 99 is masked, so it may be invalid
    mask = torch.tensor([True, True, True, False])
    clean = gradient(lambda x: kd_loss(x, teacher, targets, kind=kind, mask=mask), student)
    expected = kd_loss(student, teacher, targets, kind=kind, mask=mask)
    student[[1, 3]] = teacher[[1, 3]] = garbage
    assert torch.equal(kd_loss(student, teacher, targets, kind=kind, mask=mask), expected)
    assert torch.equal(gradient(lambda x: kd_loss(x, teacher, targets, kind=kind, mask=mask), student), clean)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_token_that_counts_the_loss_is_0_with_a_gradient(kind):
    student, teacher = logits_pair(2, 3, 5)
    student.requires_grad_()
    nothing = torch.full((2, 3), -100)
    for options in ({"targets": nothing}, {"mask": torch.zeros(2, 3, dtype=torch.bool)}):
        for reduction in ("mean", "sum"):
            loss = kd_loss(student, teacher, kind=kind, reduction=reduction, **options)
            assert loss.item() == 0
            assert torch.equal(torch.autograd.grad(loss, student)[0], torch.zeros(2, 3, 5))


def test_one_token_needs_no_leading_axes():
    student, teacher = logits_pair(1, 12)
    targets = torch.tensor([4])
    actual = kd_loss(student[0], teacher[0], targets[0])
    assert actual.shape == kd_loss(student[0], teacher[0], reduction="none").shape == ()
    torch.testing.assert_close(actual, kd_loss(student, teacher, targets))


# zeros and infinities


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_both_exclude_changes_nothing(kind):
    student, teacher = logits_pair(4, 12, dtype=torch.float64)
    kept = [i for i in range(12) if i not in (2, 11)]
    targets = torch.tensor([0, 3, -100, 10])
    less = torch.tensor([0, 2, -100, 9])  # the same tokens in the smaller vocabulary
    expected = kd_loss(student[:, kept], teacher[:, kept], less, kind=kind)
    expected_gradient = gradient(lambda x: kd_loss(x, teacher[:, kept], less, kind=kind), student[:, kept])
    student[:, [2, 11]] = teacher[:, [2, 11]] = -INF
    torch.testing.assert_close(kd_loss(student, teacher, targets, kind=kind), expected, rtol=1e-13, atol=0)
    found = gradient(lambda x: kd_loss(x, teacher, targets, kind=kind), student)
    torch.testing.assert_close(found[:, kept], expected_gradient, rtol=1e-12, atol=1e-16)
    assert not found[:, [2, 11]].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_a_token_that_one_of_them_excludes(kind, owner):
    student, teacher = logits_pair(4, 12)
    (student if owner == "student" else teacher)[:, 2] = -INF
    expected = numpy_divergence(student, teacher, kind)
    each = divergence(student, teacher, kind, reduction="none")
    np.testing.assert_allclose(each.numpy(), expected, rtol=1e-5)
    infinite = (kind, owner) in (("forward", "student"), ("reverse", "teacher"))
    assert bool(each.isinf().all()) == infinite
    assert gradient(lambda x: divergence(x, teacher, kind), student).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [40.0, 300.0, 1e4])
def test_underflow_makes_no_nan(kind, scale):
    """exp(-300) is 0 in float32 while its logarithm is finite: 0 log 0 = 0."""
    student, teacher = (scale * torch.randn(16, 9) for _ in range(2))
    each = divergence(student, teacher, kind, reduction="none")
    scaled = [x.double() for x in (student, teacher)]
    log_q, log_p = (x.log_softmax(-1) for x in scaled)
    if kind in ("forward", "reverse"):
        pair = (log_q, log_p) if kind == "forward" else (log_p, log_q)
        expected = F.kl_div(*pair, reduction="none", log_target=True).sum(-1)
        np.testing.assert_allclose(each.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    else:
        expected = numpy_divergence(student, teacher, kind)
        np.testing.assert_allclose(each.numpy(), expected, rtol=1e-4, atol=1e-6)
    found = gradient(lambda x: divergence(x, teacher, kind), student)
    exact = gradient(lambda x: divergence(x, teacher.double(), kind), student.double())
    np.testing.assert_allclose(found.numpy(), exact.numpy(), rtol=1e-3, atol=1e-6)


# precision


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_logits_are_upcast(kind):
    """Log-probabilities near -10, as 32768 tokens have, come in steps of 0.06 in bf16."""
    student, teacher = (x.bfloat16() for x in logits_pair(4, 32768))
    expected = divergence(student.float(), teacher.float(), kind)
    actual = divergence(student, teacher, kind)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    assert actual.item() == pytest.approx(numpy_divergence(student, teacher, kind).mean(), rel=1e-5)
    found = gradient(lambda x: divergence(x, teacher, kind), student)
    assert found.dtype == torch.bfloat16
    exact = gradient(lambda x: divergence(x, teacher.float(), kind), student.float())
    assert torch.equal(found, exact.bfloat16())


def test_all_in_bf16_would_be_wrong():
    """Especially for a trained student, owner difference from the teacher is below the rounding error."""
    teacher = 2 * torch.randn(4, 32768)
    student, teacher = (teacher + 0.1 * torch.randn(4, 32768)).bfloat16(), teacher.bfloat16()
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    naive = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert naive.dtype == torch.bfloat16
    exact = numpy_divergence(student, teacher, "forward")
    ours = divergence(student, teacher, reduction="none")
    assert np.abs(ours.numpy() / exact - 1).max() < 1e-3
    assert np.abs(naive.float().numpy() / exact - 1).max() > 0.1


def test_autocast_does_not_lower_the_precision():
    student, teacher = logits_pair(4, 50)
    targets = torch.randint(50, (4,))
    expected = kd_loss(student, teacher, targets)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.float64):
            actual = kd_loss(student.to(dtype), teacher.to(dtype), targets)
            assert actual.dtype == dtype
            torch.testing.assert_close(actual, expected.to(dtype), rtol=1e-6, atol=0)
        rounded = kd_loss(student.half(), teacher.half(), targets)
    assert torch.equal(rounded, kd_loss(student.half().float(), teacher.half().float(), targets))


# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "kl"}, r"kind \('kl'\) must be one of forward, reverse, jsd, skew, tv"),
        ({"reduction": "batchmean"}, r"reduction \('batchmean'\) must be one of mean, sum, none"),
        ({"temperature": 0}, r"temperature \(0\) must be above 0"),
        ({"temperature": INF}, r"temperature \(inf\) must be above 0 and finite"),
        ({"temperature": math.nan}, r"temperature \(nan\)"),
        ({"alpha": -0.1}, r"alpha \(-0.1\) must be from 0 to 1"),
        ({"alpha": math.nan}, r"alpha \(nan\)"),
        ({"kind": "jsd", "beta": 0.0}, r"beta \(0.0\).*jsd is 0 by definition.*use kind='forward' or"),
        ({"kind": "jsd", "beta": 1.0}, r"beta \(1.0\) must be above 0 and below 1"),
        ({"kind": "skew", "beta": 0}, r"beta \(0\).*at 0 skew is forward"),
        ({"kind": "skew", "beta": math.nan}, r"beta \(nan\)"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, r"mask: \(2, 2\); pass \(2, 3\)"),
        ({"targets": torch.zeros(6, dtype=torch.int64)}, r"targets: \(6,\); pass \(2, 3\)"),
        (
            {"targets": torch.tensor([[0, 5, 1], [-1, 2, -100]])},
            r"2 of 6 targets are outside 0 … 4, the first 5; ignore_index \(-100\) leaves",
        ),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kd_loss(*logits_pair(2, 3, 5), **options)
    if not {"targets", "alpha"} & options.keys():
        with pytest.raises(ValueError, match=message):
            divergence(*logits_pair(2, 3, 5), **options)


def test_beta_is_not_checked_where_it_is_unused():
    student, teacher = logits_pair(2, 3, 5)
    for kind in ("forward", "reverse", "tv"):
        assert torch.equal(divergence(student, teacher, kind, beta=0.0), divergence(student, teacher, kind))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            (2, 256),
            (2, 260),
            "student has 256 logits per token and teacher 260; truncate the padding, or pad .* -inf",
        ),
        ((2, 3, 5), (6, 5), r"student logits \(2, 3, 5\), teacher \(6, 5\)"),
        ((1, 5), (3, 5), r"\(1, 5\), teacher \(3, 5\)"),  # which would broadcast
        ((0, 5), (0, 5), r"student logits are \(0, 5\); pass \(..., V\) with at least one token"),
        ((), (), r"student logits are \(\)"),
    ],
)
def test_mismatched_logits_are_refused(student, teacher, message):
    for loss in (divergence, kd_loss):
        with pytest.raises(ValueError, match=message):
            loss(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": torch.zeros(2)}, "targets: torch.float32; pass torch.int64"),
        ({"targets": torch.zeros(2, dtype=torch.int32)}, "targets: torch.int32; pass torch.int64"),
        ({"mask": torch.ones(2)}, "mask: torch.float32; pass torch.bool"),
        ({"student_logits": torch.zeros(2, 5).long()}, "student logits are torch.int64; pass floats"),
        ({"teacher_logits": torch.zeros(2, 5).bool()}, "teacher logits are torch.bool; pass floats"),
    ],
)
def test_other_dtypes_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        kd_loss(**{"student_logits": torch.zeros(2, 5), "teacher_logits": torch.zeros(2, 5)} | options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owner", ["student", "teacher"])
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_nan_is_explained(kind, owner, bad):
    logits = dict(zip(("student", "teacher"), logits_pair(2, 3, 5), strict=True))
    logits[owner][0, 2, 4] = logits[owner][1, 0, 0] = bad
    message = rf"2 of 30 {owner} logits are NaN or \+inf, .* first at \(0, 2, 4\); lower the learning rate"
    for reduction in ("mean", "sum", "none"):
        with pytest.raises(ValueError, match=message):
            divergence(*logits.values(), kind, reduction=reduction)
    with pytest.raises(ValueError, match=message):
        kd_loss(*logits.values(), torch.zeros(2, 3, dtype=torch.int64), kind=kind)


def test_a_token_without_finite_logits_is_explained():
    student, teacher = logits_pair(2, 3, 5)
    teacher[1, 1] = -INF
    message = r"5 of 30 teacher logits .* all of a token's are -inf, the first at \(1, 1, 0\)"
    with pytest.raises(ValueError, match=message):
        divergence(student, teacher)


def test_logits_are_searched_only_for_a_nan_loss(monkeypatch):
    def searched(tensor):
        raise AssertionError("the logits were searched")

    monkeypatch.setattr(torch.Tensor, "isposinf", searched)
    student, teacher = logits_pair(2, 3, 5)
    kd_loss(student, teacher, some_targets(2, 3, 5))
    teacher[0, 0, 0] = math.nan
    with pytest.raises(AssertionError, match="searched"):
        kd_loss(student, teacher)


def test_no_value_is_read_on_a_device():
    student, teacher = (x.to("meta") for x in logits_pair(2, 3, 5))  # reading a value raises
    targets = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    for kind in KINDS:
        assert kd_loss(student, teacher, targets, kind=kind, mask=mask).shape == ()


# compiled


def compiled_and_eager(backend, kind):
    torch._dynamo.reset()
    student, teacher = logits_pair(3, 4, 40)
    student[..., 7] = teacher[..., 7] = -INF
    targets = some_targets(3, 4, 7)
    loss = torch.compile(kd_loss, fullgraph=True, backend=backend)
    for run in (loss, kd_loss):
        leaf = student.clone().requires_grad_()
        value = run(leaf, teacher, targets, kind=kind, temperature=2.0)
        yield value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.compile
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_graph(kind):
    for compiled, eager in zip(*compiled_and_eager("aot_eager", kind), strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.compile
@needs_compiler
def test_compiled_equals_eager():
    for compiled, eager in zip(*compiled_and_eager("inductor", "jsd"), strict=True):
        torch.testing.assert_close(compiled, eager)
