"""Knowledge distillation losses: divergences between a teacher's and a student's next-token distributions.

With p = softmax(teacher / T), q = softmax(student / T), m = β p + (1 - β) q (β weighs the teacher), in nats:

    forward   KL(p ‖ q)                            Hinton, Vinyals and Dean, arXiv 1503.02531
    reverse   KL(q ‖ p)                            MiniLLM, arXiv 2306.08543
    jsd       β KL(p ‖ m) + (1 - β) KL(q ‖ m)      GKD, arXiv 2306.13649
    skew      KL(p ‖ m)                            DistiLLM, arXiv 2402.03898: its α, ``lam`` in its code
    tv        ½ Σ |p - q|                          total variation

Everything is computed in float32 or wider: in bf16 a log-probability near -10 is accurate to 0.03 only.

Dimensions: ... the leading axes (B batch and L sequence length, or T tokens), V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minimoe.distill.checks import Kind, Reduction, check_settings, check_tokens, explain_nan


def divergence(
    student_logits: Tensor, teacher_logits: Tensor, kind: Kind = "forward", *, temperature: float = 1.0,
    beta: float = 0.5, mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """Divergence of q from p *without* the factor T² of ``kd_loss``; arguments, result, errors as there."""
    check_settings(kind, temperature, beta=beta, reduction=reduction)
    valid = check_tokens(None, -100, mask, student=student_logits, teacher=teacher_logits)
    log_q = log_probs(student_logits, temperature, valid)
    log_p = log_probs(teacher_logits.detach(), temperature, valid)
    values = token_divergence(log_q, log_p, kind, beta)
    return reduce(values, valid, reduction, student=student_logits, teacher=teacher_logits)


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None = None, *,
    kind: Kind = "forward", temperature: float = 1.0, alpha: float = 0.5, beta: float = 0.5,
    ignore_index: int = -100, mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """α · cross-entropy + (1 - α) · T² · divergence (arXiv 1503.02531, section 2), in nats; float32, or
    float64 if the logits are. The cross-entropy is at temperature 1. T² offsets the divergence's gradient,
    which shrinks as 1 / T².

    Args:
        student_logits, teacher_logits: (..., V) floats; no gradient flows to the teacher. -inf excludes a
            token.
        targets: (...) int64, the text's next tokens. Without them the loss is T² · divergence, whatever α.
        ignore_index: tokens with this target are left out of both terms.
        mask: (...) bool, False where a token is left out. Logits there may have any value, even NaN.
        reduction: mean over the tokens that count (0 if none does); their sum, for callers that divide by
            the count over all micro-batches; none: (...), 0 at tokens that are left out.

    Raises:
        ValueError: settings out of range, mismatched shapes, no tokens; on a CPU (a GPU would have to
            synchronize) also targets outside the vocabulary, and logits that make the loss NaN.
        TypeError: logits that are not floats, targets that are not int64, a mask that is not bool.
    """
    check_settings(kind, temperature, alpha, beta, reduction)
    valid = check_tokens(targets, ignore_index, mask, student=student_logits, teacher=teacher_logits)

    def soft() -> Tensor:
        log_q = log_probs(student_logits, temperature, valid)
        log_p = log_probs(teacher_logits.detach(), temperature, valid)
        return token_divergence(log_q, log_p, kind, beta)

    values = mix(student_logits, targets, soft, valid, temperature, alpha)
    return reduce(values, valid, reduction, student=student_logits, teacher=teacher_logits)


def mix(
    student_logits: Tensor, targets: Tensor | None, soft: Callable[[], Tensor], valid: Tensor | None,
    temperature: float, alpha: float,
) -> Tensor:  # fmt: skip
    """(...) α · cross-entropy + (1 - α) · T² · soft(). A term of weight 0 is not computed: 0 · inf is NaN."""
    if targets is None or valid is None or alpha == 0:
        return temperature**2 * soft()
    ids = targets.masked_fill(~valid, 0).unsqueeze(-1)  # ignore_index is not a valid index
    hard = -log_probs(student_logits, 1.0, valid).gather(-1, ids).squeeze(-1)
    return hard if alpha == 1 else alpha * hard + (1 - alpha) * temperature**2 * soft()


def log_probs(logits: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """log softmax(logits / temperature), (..., V), in float32 or wider; uniform where not ``valid``."""
    if valid is not None:  # before the softmax: after it, NaN logits would get the gradient 0 · NaN
        logits = logits.masked_fill(~valid.unsqueeze(-1), 0)
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)


def token_divergence(log_q: Tensor, log_p: Tensor, kind: Kind, beta: float) -> Tensor:
    """(...) divergence per token, from log-probabilities (..., V): q the student's, p the teacher's."""
    if kind == "forward":
        return _kl(log_p, log_q)
    if kind == "reverse":
        return _kl(log_q, log_p)
    if kind == "tv":
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
    # logaddexp(-inf, -inf) has a NaN gradient. Where p = q = 0, log m is unused and may have any value.
    nowhere = log_q.isneginf() & log_p.isneginf()
    log_m = torch.logaddexp(log_p + math.log(beta), log_q.masked_fill(nowhere, 0) + math.log1p(-beta))
    if kind == "skew":
        return _kl(log_p, log_m)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Σ a (log a - log b) with 0 log 0 = 0; infinite, and without a gradient there, where a > 0 = b."""
    a = log_a.exp()
    absent, impossible = a == 0, log_b.isneginf()
    # Masks the difference rather than the product, whose gradient would be 0 · inf.
    terms = a * (log_a - log_b).masked_fill(absent | impossible, 0)
    return terms.masked_fill(impossible & ~absent, math.inf).sum(-1)


def reduce(values: Tensor, valid: Tensor | None, reduction: Reduction, **logits: Tensor) -> Tensor:
    """Loss per token, (...), reduced over the tokens that count as ``kd_loss`` says; ValueError for NaN,
    naming the logits that caused it."""
    loss = values if valid is None else values.masked_fill(~valid, 0)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / (values.numel() if valid is None else valid.sum().clamp(min=1))
    explain_nan(loss, valid, **logits)
    return loss
