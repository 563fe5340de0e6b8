"""The top K and a bucket: against numpy in float64, and against the dense loss."""

import math

import numpy as np
import pytest
import torch

from minimoe.distill.losses import divergence, kd_loss
from minimoe.distill.topk_loss import TopK, sparse_divergence, sparse_kd_loss, top_k

KINDS = ["forward", "reverse", "jsd", "skew", "tv"]
INF = math.inf


def logits_pair(*shape, dtype=torch.float64, scale=2.0):
    return scale * torch.randn(shape, dtype=dtype), scale * torch.randn(shape, dtype=dtype)


def exact_top(logits, k, temperature=1.0):
    """``top_k`` in float64, without its rounding to float32."""
    return TopK(*(logits / temperature).log_softmax(-1).topk(k))


def gradient(loss_of, logits):
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(loss_of(leaf), leaf)[0]


def numpy_classes(logits, ids, temperature):
    """(tokens, K + 1) float64: the probabilities of these ids, and the sum of all others, one by one."""
    p = np.exp(logits.numpy() / temperature)
    p /= p.sum(-1, keepdims=True)
    return np.array(
        [
            [*row[list(chosen)], sum(x for i, x in enumerate(row) if i not in chosen)]
            for row, chosen in zip(p, ids.tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("k", [1, 4, 9])
def test_top_k_of_the_whole_softmax(k):
    logits = 3 * torch.randn(2, 5, 9)
    log_probs, ids = top_k(logits, k, temperature=2.0)
    assert (log_probs.dtype, ids.dtype) == (torch.float32, torch.int64)
    assert log_probs.shape == ids.shape == (2, 5, k)
    expected_ids = np.argsort(-logits.numpy(), axis=-1)[..., :k]
    assert (ids.numpy() == expected_ids).all()
    p = np.exp(logits.double().numpy() / 2)
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        log_probs.double().exp().numpy(), np.take_along_axis(p, expected_ids, -1), rtol=1e-5
    )


def test_top_k_is_float32_without_a_gradient():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        logits = (2 * torch.randn(3, 9)).to(dtype).requires_grad_()
        top = top_k(logits, 2)
        assert top.log_probs.dtype == torch.float32
        assert not top.log_probs.requires_grad
        torch.testing.assert_close(top.log_probs, top_k(logits.double(), 2).log_probs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4, 8])
def test_values_equal_numpy(kind, k):
    student, teacher = logits_pair(6, 9)
    top = exact_top(teacher, k, 1.5)
    p, q = (numpy_classes(x, top.ids, 1.5) for x in (teacher, student))
    m = 0.3 * p + 0.7 * q

    def kl(a, b):
        return (a * np.log(a / b)).sum(-1)

    expected = {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jsd": 0.3 * kl(p, m) + 0.7 * kl(q, m),
        "skew": kl(p, m),
        "tv": np.abs(p - q).sum(-1) / 2,
    }[kind]
    options = {"kind": kind, "temperature": 1.5, "beta": 0.3}
    each = sparse_divergence(student, top, reduction="none", **options)
    np.testing.assert_allclose(each.numpy(), expected, rtol=1e-11)
    narrow = sparse_divergence(student.float(), top_k(teacher.float(), k, temperature=1.5), **options)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(expected.mean(), rel=1e-5)
    whole = sparse_kd_loss(student, top, **options)
    assert whole.item() == pytest.approx(1.5**2 * expected.mean(), rel=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_k_equal_to_the_vocabulary_is_the_dense_loss(kind):
    student, teacher = logits_pair(3, 4, 9)
    targets = torch.randint(9, (3, 4))
    targets[0, 2:] = -100
    top, options = exact_top(teacher, 9, 2.0), {"kind": kind, "temperature": 2.0, "alpha": 0.3}
    shuffled = TopK(top.log_probs.flip(-1), top.ids.flip(-1))  # the order does not matter
    for seen in (top, shuffled):

        def sparse(x, seen=seen):
            return sparse_kd_loss(x, seen, targets, **options)

        def dense(x):
            return kd_loss(x, teacher, targets, **options)

        torch.testing.assert_close(sparse(student), dense(student), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            gradient(sparse, student), gradient(dense, student), rtol=1e-11, atol=1e-16
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
def test_a_smaller_k_never_increases_the_divergence(kind, scale):
    """The data-processing inequality: merging tokens decreases the divergence.

    A bucket of 1e-13 is known to a few percent only, and enters reverse by its logarithm, -30."""
    student, teacher = logits_pair(100, 12, scale=scale)
    dense = divergence(student, teacher, kind, reduction="none")
    for k in (12, 11, 7, 3, 1):
        top = exact_top(teacher, k)
        coarse = sparse_divergence(student, top, kind, reduction="none")
        known = 1 - top.log_probs.exp().sum(-1) > 1e-4
        assert (coarse <= dense * torch.where(known, 1 + 1e-8, 1.01) + 1e-12).all()
    assert coarse.mean() < 0.99 * dense.mean()
    in_float32 = sparse_divergence(student.float(), top_k(teacher.float(), 3), kind, reduction="none")
    assert (in_float32 <= dense * 1.01 + 1e-5).all()


@pytest.mark.parametrize("k", [1, 4, 9])
def test_a_student_equal_to_its_teacher_has_no_gradient(k):
    """Unlike with renormalization for K < V, which pulls the student to a more confident teacher."""
    teacher = 2 * torch.randn(5, 9, dtype=torch.float64)
    top = exact_top(teacher, k)
    for kind in ("forward", "reverse", "jsd", "skew"):
        assert gradient(lambda x, kind=kind: sparse_divergence(x, top, kind), teacher).abs().max() < 1e-14
    renormalized = top.log_probs.log_softmax(-1)

    def biased(x):
        return -(renormalized.exp() * x.log_softmax(-1).gather(-1, top.ids)).sum(-1).mean()

    found = gradient(biased, teacher).abs().max()
    assert found < 1e-14 if k == 9 else found > 1e-3


def test_a_student_equal_to_its_teacher_has_no_gradient_in_float32():
    teacher = 3 * torch.randn(16, 300)
    for kind in ("forward", "reverse", "jsd", "skew"):
        for k in (1, 4, 300):
            top = top_k(teacher, k)
            found = gradient(
                lambda x, kind=kind, top=top: sparse_divergence(x, top, kind, reduction="sum"), teacher
            )
            assert found.abs().max() < 3e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_gradients_equal_finite_differences(kind, k):
    student, teacher = logits_pair(2, 3, 5)
    top, targets = exact_top(teacher, k, 1.7), torch.tensor([[0, 4, -100], [2, -100, 1]])
    options = {"kind": kind, "temperature": 1.7, "beta": 0.3, "alpha": 0.3}
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sparse_kd_loss(x, top, targets, **options), student)


# excluded tokens and confident teachers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_excluded_tokens_make_no_nan(kind, k):
    student, teacher = logits_pair(4, 9)
    student[:, 3:] = teacher[:, 3:] = -INF  # from k = 3 on, nothing is left for the bucket
    top = exact_top(teacher, k)
    dense = divergence(student, teacher, kind, reduction="none")
    each = sparse_divergence(student, top, kind, reduction="none")
    if k >= 3:
        torch.testing.assert_close(each, dense, rtol=1e-11, atol=1e-14)
    else:
        assert (each <= dense * (1 + 1e-12)).all()
    found = gradient(lambda x: sparse_divergence(x, top, kind), student)
    assert found.isfinite().all()
    assert found[:, :3].any()
    assert not found[:, 3:].any()


def test_forward_is_infinite_for_a_token_that_only_the_teacher_has():
    student, teacher = logits_pair(4, 9)
    student[:, 3:] = -INF
    assert sparse_divergence(student, exact_top(teacher, 2), "forward").item() == INF
    for kind in ("reverse", "jsd", "skew", "tv"):
        assert sparse_divergence(student, exact_top(teacher, 2), kind).isfinite()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_bucket_of_a_confident_teacher_may_be_rounded_away(kind, dtype):
    """The four add up to 1 in float32 and float16; by definition, reverse would be infinite."""
    teacher = torch.tensor([[20.0, 19.0, 18.0, 17.0] + [0.0] * 8])
    top = top_k(teacher, 4)
    student = torch.randn(1, 12)
    assert top.log_probs.to(dtype).float().exp().sum() == pytest.approx(1, abs=1e-3)
    stored = TopK(top.log_probs.to(dtype), top.ids)
    value = sparse_divergence(student, stored, kind)
    assert value <= divergence(student, teacher, kind) * (1 + 1e-3)
    assert value.isfinite()
    assert gradient(lambda x: sparse_divergence(x, stored, kind), student).isfinite().all()


def test_within_rounding_the_students_bucket_is_taken():
    """A float16 probability of 1 may leave 0.001 to others; a student that does so has no gradient."""
    student = torch.zeros(1, 12)
    student[0, 0] = math.log(11 * 999)  # 0.001 for the eleven others
    top = TopK(torch.zeros(1, 1, dtype=torch.float16), torch.zeros(1, 1, dtype=torch.int64))
    for kind in ("forward", "reverse", "jsd", "skew"):
        found = gradient(lambda x, kind=kind: sparse_divergence(x, top, kind), student)
        assert found.abs().max() < 1e-5
    exact = TopK(top.log_probs.float(), top.ids)
    assert gradient(lambda x: sparse_divergence(x, exact), student).abs().max() > 9e-4


def test_without_other_tokens_rounding_makes_no_bucket():
    """3000 equal float16 log-probabilities add up to 0.4 % less than 1, with no other class for the rest."""

    def rounding(size):
        return float(torch.tensor(-math.log(size)).half()) + math.log(size)

    size = min(range(3000, 3100), key=rounding)
    top = top_k(torch.zeros(1, size), size)
    stored = TopK(top.log_probs.half(), top.ids)
    assert stored.log_probs.float().exp().sum() < 0.997
    student = torch.randn(1, size)
    expected = divergence(student, torch.zeros(1, size))
    torch.testing.assert_close(sparse_divergence(student, stored), expected, rtol=2e-2, atol=0)


# as stored in a cache


@pytest.mark.parametrize("ids", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_small_integers_and_float16_are_supported(ids):
    student, teacher = logits_pair(3, 4, 200, dtype=torch.float32)
    top = top_k(teacher, 8)
    targets = torch.randint(200, (3, 4))
    expected = sparse_kd_loss(student, top, targets)
    stored = TopK(top.log_probs, top.ids.to(ids))
    assert torch.equal(sparse_kd_loss(student, stored, targets), expected)
    half = TopK(top.log_probs.half(), top.ids.to(ids))
    upcast = TopK(top.log_probs.half().float(), top.ids)
    actual = sparse_kd_loss(student, half, targets)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, sparse_kd_loss(student, upcast, targets))
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=0)
    rounded = sparse_kd_loss(student.bfloat16(), top, targets)
    assert torch.equal(rounded, sparse_kd_loss(student.bfloat16().float(), top, targets))


def test_tokens_count_as_in_the_dense_loss():
    student, teacher = logits_pair(3, 4, 9)
    targets = torch.randint(9, (3, 4))
    targets[0, 1:] = -100
    mask = torch.rand(3, 4) < 0.7
    both = mask & (targets != -100)
    top = exact_top(teacher, 3)
    options = {"temperature": 2.0, "alpha": 0.25}
    expected = sparse_kd_loss(student[both], TopK(*(x[both] for x in top)), targets[both], **options)
    for garbage, garbage_id in ((math.nan, 10**6), (7.0, -5), (INF, 0)):
        student[~both], top.log_probs[~both], top.ids[~both] = garbage, garbage, garbage_id
        assert sparse_kd_loss(student, top, targets, mask=mask, **options).item() == pytest.approx(
            expected.item()
        )
        found = gradient(lambda x: sparse_kd_loss(x, top, targets, mask=mask, **options), student)
        assert not found[~both].any()
        assert found.isfinite().all()
        none = sparse_kd_loss(student, top, targets, mask=mask, reduction="none", **options)
        assert none.shape == (3, 4)
        assert none.sum().item() == pytest.approx(both.sum() * expected.item())
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    leaf = student.nan_to_num().requires_grad_()
    loss = sparse_kd_loss(leaf, top, mask=nothing)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, leaf)[0].any()


def test_the_teacher_gets_no_gradient():
    student, teacher = (x.requires_grad_() for x in logits_pair(3, 9))
    sparse_kd_loss(student, exact_top(teacher, 3)).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_without_targets_alpha_is_unused():
    student, teacher = logits_pair(3, 9)
    top = exact_top(teacher, 3, 2.0)
    expected = 4 * sparse_divergence(student, top, temperature=2.0)
    for alpha in (0.0, 0.5, 1.0):
        torch.testing.assert_close(sparse_kd_loss(student, top, temperature=2.0, alpha=alpha), expected)


@pytest.mark.compile
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_graph(kind):
    torch._dynamo.reset()
    student, teacher = logits_pair(3, 4, 20, dtype=torch.float32)
    top, targets = top_k(teacher, 5), torch.randint(20, (3, 4))
    compiled = torch.compile(sparse_kd_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(student, top, targets, kind=kind), sparse_kd_loss(student, top, targets, kind=kind)
    )


# errors


@pytest.mark.parametrize("k", [0, 10])
def test_an_invalid_k_is_refused(k):
    with pytest.raises(ValueError, match=rf"k \({k}\) must be from 1 to 9"):
        top_k(torch.randn(2, 9), k)


def test_top_k_names_the_teacher():
    with pytest.raises(ValueError, match=r"teacher logits are \(0, 9\); pass"):
        top_k(torch.randn(0, 9), 2)
    with pytest.raises(TypeError, match=r"teacher logits are torch\.int64; pass floats"):
        top_k(torch.ones(2, 9, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match=r"temperature \(-1\)"):
        top_k(torch.randn(2, 9), 2, temperature=-1)
    with pytest.raises(ValueError, match=r"1 of 18 teacher logits are NaN .* at \(1, 4\)"):
        top_k(torch.randn(2, 9).index_put((torch.tensor(1), torch.tensor(4)), torch.tensor(math.nan)), 2)


PAIR = [[-1.0, -2.0]]  # log-probabilities of one token


@pytest.mark.parametrize(
    ("log_probs", "ids", "error", "message"),
    [
        (PAIR, [[0, 1, 2]], ValueError, r"log_probs \(1, 2\) and ids \(1, 3\) must both be \(1, 'K'\)"),
        ([-1.0, -2.0], [0, 1], ValueError, r"\(2,\) and ids \(2,\) must both be"),
        ([[-2.0] * 6], [[0, 1, 2, 3, 4, 4]], ValueError, r"K \(6\) must be from 1 to 5"),
        ([[]], [[]], ValueError, r"K \(0\) must be from 1 to 5"),
        (PAIR, [[0, 5]], ValueError, r"1 of 2 ids are outside 0 … 4, the first is 5; teacher and student"),
        (PAIR, [[-1, 2]], ValueError, r"the first is -1"),
        (
            [[0.7, 0.2]],
            [[0, 1]],
            ValueError,
            r"add up to 3\.24, above 1: these are not log-probabilities; use",
        ),
        ([[-0.1, -0.1]], [[0, 1]], ValueError, r"add up to 1\.81"),
        ([[-1.0, math.nan]], [[0, 1]], ValueError, r"1 of 2 teacher .* NaN .* at \(0, 1\)"),
        (
            PAIR,
            [[0.0, 1.0]],
            TypeError,
            r"log_probs are torch.float32 and ids torch.float32; pass floats and",
        ),
        ([[-1, -2]], [[0, 1]], TypeError, r"log_probs are torch.int64"),
        (PAIR, [[True, False]], TypeError, r"ids torch.bool"),
    ],
)
def test_an_invalid_top_is_refused(log_probs, ids, error, message):
    top = TopK(torch.tensor(log_probs), torch.tensor(ids, dtype=torch.int64 if ids == [[]] else None))
    for loss in (sparse_divergence, sparse_kd_loss):
        with pytest.raises(error, match=message):
            loss(torch.randn(1, 5), top)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "kl"}, r"kind \('kl'\)"),
        ({"temperature": 0}, r"temperature \(0\)"),
        ({"kind": "jsd", "beta": 1.0}, r"beta \(1.0\)"),
        ({"reduction": "batchmean"}, r"reduction \('batchmean'\)"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask: \(3,\); pass \(2,\)"),
    ],
)
def test_settings_are_checked_as_in_the_dense_loss(options, message):
    student, teacher = logits_pair(2, 5)
    for loss in (sparse_divergence, sparse_kd_loss):
        with pytest.raises(ValueError, match=message):
            loss(student, exact_top(teacher, 2), **options)


def test_nan_in_the_student_is_explained():
    student, teacher = logits_pair(2, 5)
    student[1, 3] = math.nan
    with pytest.raises(
        ValueError, match=r"1 of 10 student logits are NaN .* \(1, 3\); lower the learning rate"
    ):
        sparse_kd_loss(student, exact_top(teacher, 2), torch.tensor([0, 1]))


def test_no_value_is_read_on_a_device():
    student, teacher = (x.to("meta") for x in logits_pair(2, 3, 5))  # reading a value raises
    targets = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    for kind in KINDS:
        assert sparse_kd_loss(student, top_k(teacher, 2), targets, kind=kind).shape == ()
