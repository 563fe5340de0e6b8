"""Distillation losses from the teacher's K most likely tokens: what an API shows, or a disk has room for.

The probability of all other tokens goes into one bucket, for the student as for the teacher, so the
divergence is one over K + 1 classes. It never exceeds the divergence over all V, because merging tokens loses
information (the data-processing inequality), and its gradient is 0 where student and teacher agree.
Renormalizing the K instead is biased (arXiv 2503.16870): its gradient there is not 0, and pulls the student
towards a more confident teacher than this one.

Dimensions: ... the leading axes (B batch and L sequence length, or T tokens), V vocabulary, K teacher entries
per token.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minimoe.distill.checks import Kind, Reduction, check_settings, check_tokens, check_top, explain_nan
from minimoe.distill.losses import log_probs, mix, reduce, token_divergence


class TopK(NamedTuple):
    """The teacher's most likely tokens at each position, in any order, each once."""

    log_probs: Tensor
    """(..., K) floats, of the softmax over all V at some temperature, not renormalized"""
    ids: Tensor
    """(..., K) integers from 0 to V - 1"""


def top_k(teacher_logits: Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    """The ``k`` most likely tokens of logits (..., V), best first: float32 log-probabilities, int64 ids.

    Raises:
        ValueError: k outside 1 … V, an invalid temperature, no tokens; on a CPU also NaN.
        TypeError: logits that are not floats.
    """
    check_settings("forward", temperature)
    check_tokens(None, -100, None, teacher=teacher_logits)
    if not 1 <= k <= teacher_logits.shape[-1]:
        raise ValueError(f"k ({k}) must be from 1 to {teacher_logits.shape[-1]}, the vocabulary size")
    best, ids = log_probs(teacher_logits.detach(), temperature).topk(k)
    explain_nan(best, None, teacher=teacher_logits)
    return TopK(best.float(), ids)


def sparse_divergence(
    student_logits: Tensor, top: TopK, kind: Kind = "forward", *, temperature: float = 1.0,
    beta: float = 0.5, mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """Divergence of the student from the teacher's top K, *without* the factor T² of ``sparse_kd_loss``;
    arguments, result and errors as there."""
    check_settings(kind, temperature, beta=beta, reduction=reduction)
    valid = check_tokens(None, -100, mask, student=student_logits)
    check_top(*top, student_logits, valid)
    log_q, log_p = _classes(student_logits, top, valid, temperature)
    values = token_divergence(log_q, log_p, kind, beta)
    return reduce(values, valid, reduction, student=student_logits, teacher=top.log_probs)


def sparse_kd_loss(
    student_logits: Tensor, top: TopK, targets: Tensor | None = None, *, kind: Kind = "forward",
    temperature: float = 1.0, alpha: float = 0.5, beta: float = 0.5, ignore_index: int = -100,
    mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """``kd_loss`` with a teacher of which only ``top`` is known; equal to it where K is V.

    Args:
        student_logits: (..., V) floats.
        top: as ``top_k`` returns it, at the *same* temperature; the log-probabilities may be float16, the
            ids any integers. No gradient flows to it.
        Other arguments, result and errors are those of ``kd_loss``.

    Raises:
        ValueError: mismatched shapes in ``top``; on a CPU also ids outside the vocabulary, and numbers that
            are not log-probabilities. TypeError: ids that are not integers.
    """
    check_settings(kind, temperature, alpha, beta, reduction)
    valid = check_tokens(targets, ignore_index, mask, student=student_logits)
    check_top(*top, student_logits, valid)

    def soft() -> Tensor:
        return token_divergence(*_classes(student_logits, top, valid, temperature), kind, beta)

    values = mix(student_logits, targets, soft, valid, temperature, alpha)
    return reduce(values, valid, reduction, student=student_logits, teacher=top.log_probs)


def _classes(
    student_logits: Tensor, top: TopK, valid: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """log q and log p, (..., K + 1), the bucket last; (..., K) where K is V and the bucket is empty."""
    stored, ids = top.log_probs.detach(), top.ids.long()
    if valid is not None:
        stored, ids = (x.masked_fill(~valid.unsqueeze(-1), 0) for x in (stored, ids))
    log_p = stored.to(torch.promote_types(stored.dtype, torch.float32))
    log_q = log_probs(student_logits, temperature, valid)
    picked = log_q.gather(-1, ids)
    if ids.shape[-1] == log_q.shape[-1]:
        return picked, log_p
    rest_q = _bucket(log_q, ids)
    sum_p = log_p.exp().sum(-1, keepdim=True).clamp(max=1)
    rest_p = _unless_rounded_away(torch.log1p(-sum_p), rest_q, stored.dtype)
    return torch.cat((picked, rest_q), -1), torch.cat((log_p, rest_p), -1)


def _unless_rounded_away(rest_p: Tensor, rest_q: Tensor, stored: torch.dtype) -> Tensor:
    """The teacher's bucket (..., 1); the student's where all of the teacher's may be rounding error.

    A confident teacher's K may add up to 1, or to slightly more or less. Against a bucket that is 0 or above
    0 by rounding alone, KL(q ‖ p) or KL(p ‖ q) would be infinite. Up to the rounding error, the student is
    taken to be right.
    """
    least = math.log(max(2 * torch.finfo(stored).eps, 16 * torch.finfo(rest_p.dtype).eps))
    return torch.where(rest_p < least, rest_q.detach().clamp(max=least), rest_p)


def _bucket(log_q: Tensor, ids: Tensor) -> Tensor:
    """(..., 1) log of the probability that the student gives to all tokens except these."""
    others = log_q.scatter(-1, ids, -math.inf)
    # A logsumexp over -inf alone (the student excludes all others) has a NaN gradient.
    none = others.isneginf().all(-1, keepdim=True)
    return others.masked_fill(none, 0).logsumexp(-1, keepdim=True).masked_fill(none, -math.inf)
