"""The chunked loss against ``kd_loss`` of all logits: values, gradients and memory."""

import math
from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from minimoe.distill.chunked_loss import chunked_kd_loss
from minimoe.distill.losses import kd_loss

KINDS = ["forward", "reverse", "jsd", "skew", "tv"]


def a_batch(*leading, vocabulary=23, widths=(6, 9), dtype=torch.float64):
    """Hidden states and heads of student and teacher; the student's require gradients."""
    student = torch.randn(*leading, widths[0]).to(dtype), torch.randn(vocabulary, widths[0]).to(dtype)
    teacher = torch.randn(*leading, widths[1]).to(dtype), torch.randn(vocabulary, widths[1]).to(dtype)
    return (*(x.requires_grad_() for x in student), *teacher)


def some_targets(*leading, vocabulary=23):
    targets = torch.randint(vocabulary, leading)
    targets.view(-1)[::4] = -100
    return targets


def whole_kd_loss(student_hidden, student_head, teacher_hidden, teacher_head, targets=None, **options):
    return kd_loss(student_hidden @ student_head.T, teacher_hidden @ teacher_head.T, targets, **options)


def value_and_gradients(loss, batch, *args, **options):
    value = loss(*batch, *args, **options)
    return value.detach(), *torch.autograd.grad(value, batch[:2])


def assert_same(batch, *args, chunk_size, rtol=1e-11, atol=1e-15, **options):
    expected = value_and_gradients(whole_kd_loss, batch, *args, **options)
    actual = value_and_gradients(chunked_kd_loss, batch, *args, chunk_size=chunk_size, **options)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)


# values and gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 15, 100, None])  # 15 tokens: 4 leaves a ragged end
def test_it_equals_the_loss_of_all_logits(kind, chunk_size):
    batch, targets = a_batch(3, 5), some_targets(3, 5)
    mask = torch.rand(3, 5) < 0.7
    options = {"kind": kind, "temperature": 1.7, "alpha": 0.3, "beta": 0.2, "mask": mask}
    assert_same(batch, targets, chunk_size=chunk_size, **options)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_with_and_without_targets_and_mask(alpha):
    batch, targets, mask = a_batch(11), some_targets(11), torch.arange(11) % 3 > 0
    zero = targets.clamp(min=0)
    for args, options in (
        ((), {}),
        ((targets,), {}),
        ((), {"mask": mask}),
        ((targets,), {"mask": mask}),
        ((zero,), {"ignore_index": 0}),
    ):
        assert_same(batch, *args, chunk_size=4, alpha=alpha, temperature=3.0, **options)


def test_one_token():
    assert_same(a_batch(1), torch.tensor([4]), chunk_size=3)
    assert_same(a_batch(), torch.tensor(4), chunk_size=3)
    assert_same(a_batch(2, 1, 2), chunk_size=1)


def test_gradients_equal_finite_differences():
    batch, targets = a_batch(5, vocabulary=4, widths=(2, 3)), some_targets(5, vocabulary=4)
    assert torch.autograd.gradcheck(
        lambda hidden, head: chunked_kd_loss(hidden, head, *batch[2:], targets, chunk_size=2), batch[:2]
    )


def test_the_incoming_gradient_is_multiplied():
    batch, targets = a_batch(7), some_targets(7)
    expected = torch.autograd.grad(whole_kd_loss(*batch, targets).square().mul(3), batch[:2])
    loss = chunked_kd_loss(*batch, targets, chunk_size=3)
    for _ in range(2):  # backward does not change what was saved for it
        actual = torch.autograd.grad(loss.square().mul(3), batch[:2], retain_graph=True)
        for mine, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-15)


def test_micro_batches_accumulate():
    """Gradients accumulate, and flow through the hidden states to the layers below."""
    student_hidden, student_head, *teacher = a_batch(8)
    below = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(23, (8,))
    found = []
    for loss in (whole_kd_loss, chunked_kd_loss):
        below.grad = student_head.grad = None
        for part in (slice(0, 4), slice(4, 8)):
            hidden = torch.tanh(student_hidden.detach()[part] @ below)
            (loss(hidden, student_head, teacher[0][part], teacher[1], targets[part]) / 2).backward()
        found.append((below.grad, student_head.grad))
    whole = torch.tanh(student_hidden.detach() @ below)
    at_once = torch.autograd.grad(
        whole_kd_loss(whole, student_head, *teacher, targets), (below, student_head)
    )
    for plain, chunked, together in zip(*found, at_once, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-11, atol=1e-15)
        torch.testing.assert_close(chunked, together, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("required", [(True, False), (False, True)])
def test_only_required_gradients_are_computed(required):
    batch, targets = a_batch(7), some_targets(7)
    expected = value_and_gradients(whole_kd_loss, batch, targets)[1:]
    for x, want in zip(batch[:2], required, strict=True):
        x.requires_grad_(want)
    chunked_kd_loss(*batch, targets, chunk_size=3).backward()
    for x, want, theirs in zip(batch[:2], required, expected, strict=True):
        assert (x.grad is not None) == want
        if want:
            torch.testing.assert_close(x.grad, theirs, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("off", ["no_grad", "requires_grad"])
def test_without_gradients_none_is_computed(off, monkeypatch):
    batch, targets = a_batch(7), some_targets(7)
    expected = whole_kd_loss(*batch, targets).detach()

    def computed(*args, **options):
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(torch.autograd, "grad", computed)
    with pytest.raises(AssertionError, match="was computed"):
        chunked_kd_loss(*batch, targets)
    if off == "requires_grad":
        batch = [x.detach() for x in batch]
    with torch.set_grad_enabled(off == "requires_grad"):
        value = chunked_kd_loss(*batch, targets, chunk_size=3)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected)


def test_the_teacher_gets_no_gradient():
    batch = a_batch(7)
    for x in batch[2:]:
        x.requires_grad_()
    chunked_kd_loss(*batch, chunk_size=3).backward()
    assert batch[2].grad is None
    assert batch[3].grad is None
    assert batch[0].grad.any()


def test_values_at_padding_do_not_matter():
    batch, targets = a_batch(7), some_targets(7)
    expected = value_and_gradients(chunked_kd_loss, batch, targets, chunk_size=3)
    with torch.no_grad():
        batch[0][targets == -100] = batch[2][targets == -100] = math.nan
    actual = value_and_gradients(chunked_kd_loss, batch, targets, chunk_size=3)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(actual, expected, strict=True))


def test_without_a_token_that_counts_the_loss_is_0_with_a_gradient():
    batch = a_batch(7)
    value, *gradients = value_and_gradients(chunked_kd_loss, batch, torch.full((7,), -100), chunk_size=3)
    assert value == 0
    assert not any(x.any() for x in gradients)


# precision


def test_bf16():
    """The value is that of the same bf16 logits; the gradients are within bf16's rounding of the exact ones,
    as the whole loss's are."""
    batch, targets = a_batch(40, dtype=torch.bfloat16), some_targets(40)
    value, *gradients = value_and_gradients(chunked_kd_loss, batch, targets, chunk_size=16)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, whole_kd_loss(*batch, targets).detach(), rtol=1e-6, atol=0)
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in batch]
    expected = value_and_gradients(whole_kd_loss, exact, targets)[1:]
    plain = value_and_gradients(whole_kd_loss, batch, targets)[1:]
    for mine, theirs, right in zip(gradients, plain, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - right).norm() < 2**-7 * right.norm()
        assert (theirs - right).norm() < 2**-7 * right.norm()


def test_the_heads_gradient_is_accumulated_in_float32():
    """In bf16 a sum over 2000 chunks stops growing once a chunk is smaller than its last digit."""
    batch, targets = a_batch(2000, dtype=torch.bfloat16), torch.zeros(2000, dtype=torch.int64)
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in batch]
    expected = value_and_gradients(whole_kd_loss, exact, targets)[2]
    actual = value_and_gradients(chunked_kd_loss, batch, targets, chunk_size=1)[2]
    assert actual.dtype == torch.bfloat16
    assert (actual.double() - expected).norm() < 5e-3 * expected.norm()


def test_autocast():
    batch, targets = a_batch(12, dtype=torch.float32), some_targets(12)
    with torch.autocast("cpu", torch.bfloat16):
        expected = value_and_gradients(whole_kd_loss, batch, targets)
        actual = value_and_gradients(chunked_kd_loss, batch, targets, chunk_size=5)
    assert actual[0].dtype == torch.float32
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=0)
    for mine, theirs in zip(actual[1:], expected[1:], strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=1e-3)


# memory


def peak_bytes(run):
    """Peak bytes of PyTorch's allocator during ``run``, relative to before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("kind", KINDS)
def test_the_peak_is_a_quarter_at_most(kind):
    batch, targets = a_batch(512, vocabulary=4096, widths=(16, 32), dtype=torch.float32), some_targets(512)
    peaks = [
        peak_bytes(lambda loss=loss, options=options: loss(*batch, targets, kind=kind, **options).backward())
        for loss, options in ((whole_kd_loss, {}), (chunked_kd_loss, {"chunk_size": 32}))
    ]
    all_logits = 512 * 4096 * 4
    assert peaks[0] > 4 * all_logits  # otherwise nothing was measured
    assert peaks[1] <= peaks[0] / 4
    assert peaks[1] < 1.5 * all_logits  # measured 0.7 to 1.1: not one tensor of all logits


def test_the_chunk_is_32_mb_by_default(monkeypatch):
    sizes = []

    def spy(student_logits, *args, **options):
        sizes.append(tuple(student_logits.shape))
        return student_logits.sum()

    monkeypatch.setattr("minimoe.distill.chunked_loss.kd_loss", spy)
    chunked_kd_loss(*a_batch(600, vocabulary=2**15, widths=(2, 2), dtype=torch.float32))
    assert sizes == [(256, 2**15), (256, 2**15), (88, 2**15)]
    assert 256 * 2**15 * 4 == 32 * 2**20


# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, r"chunk_size \(0\) must be at least 1"),
        (
            {"student_head": torch.zeros(6, 23)},
            r"student hidden \(7, 6\) and head \(6, 23\) must be .*; transpose",
        ),
        ({"teacher_head": torch.zeros(23, 6)}, r"teacher hidden \(7, 9\) and head \(23, 6\)"),
        ({"student_head": torch.zeros(6)}, r"student hidden \(7, 6\) and head \(6,\)"),
        ({"teacher_head": torch.zeros(24, 9)}, "student has 23 logits per token and teacher 24; truncate"),
        ({"teacher_hidden": torch.zeros(5, 9)}, r"student logits \(7, 23\), teacher \(5, 23\)"),
        (
            {"student_hidden": torch.zeros(0, 6), "teacher_hidden": torch.zeros(0, 9)},
            r"student logits are \(0, 23\); pass",
        ),
        ({"kind": "kl"}, r"kind \('kl'\)"),
        ({"alpha": 2.0}, r"alpha \(2.0\)"),
        ({"kind": "jsd", "beta": 0.0}, r"beta \(0.0\)"),
        ({"temperature": 0}, r"temperature \(0\)"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, r"targets: \(3,\); pass \(7,\)"),
        ({"targets": torch.full((7,), 23)}, r"7 of 7 targets are outside 0 … 22, the first 23"),
        ({"mask": torch.ones(1, dtype=torch.bool)}, r"mask: \(1,\); pass \(7,\)"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    names = ("student_hidden", "student_head", "teacher_hidden", "teacher_head")
    with pytest.raises(ValueError, match=message):
        chunked_kd_loss(**dict(zip(names, a_batch(7), strict=True)) | options)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"targets: torch\.float32; pass torch\.int64"):
        chunked_kd_loss(*a_batch(7), torch.zeros(7))


def test_nan_is_explained_with_its_chunk():
    batch = a_batch(7)
    with torch.no_grad():
        batch[0][5] = math.nan
    with pytest.raises(
        ValueError,
        match=r"from token 3: the loss is NaN because 23 of 69 student logits .* first at \(2, 0\)",
    ):
        chunked_kd_loss(*batch, chunk_size=3)


def test_no_value_is_read_on_a_device():
    batch = [x.detach().to("meta").requires_grad_() for x in a_batch(7)]  # reading a value raises
    targets = torch.zeros(7, dtype=torch.int64, device="meta")
    assert chunked_kd_loss(*batch, targets, chunk_size=3).shape == ()
