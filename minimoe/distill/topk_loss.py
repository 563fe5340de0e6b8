"""A teacher seen through its likeliest tokens alone, as an interface shows it or a disk has room for it.

What the teacher gives to all other tokens stands in one bucket, and the student's likewise, so that the
divergence is one over K + 1 classes. It is never above the one over all V, for putting tokens together loses
information (the data-processing inequality), and its gradient is 0 where the student is the teacher.
Renormalising the K instead is biased (arXiv 2503.16870): its gradient there is not 0, and draws the student
towards a teacher who is surer than this one.

Dimensions: ... the leading axes (B batch and L sequence length, or T tokens), V vocabulary, K teacher entries
a token.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minimoe.distill.losses import (
    Kind,
    Reduction,
    check_settings,
    check_tokens,
    explain_nan,
    log_probs,
    may_look,
    mix,
    reduce,
    token_divergence,
)

FULL = 1.01  # probabilities that add up to more are none; float16's rounding stays well below


class TopK(NamedTuple):
    """The teacher's likeliest tokens at each place, in any order, each once."""

    log_probs: Tensor  # (..., K) floats: of the softmax over all V at some temperature, not renormalised
    ids: Tensor  # (..., K) integers from 0 to V - 1


def top_k(teacher_logits: Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    """The ``k`` likeliest tokens of logits (..., V), likeliest first: float32 log-probabilities, int64 ids.

    Raises:
        ValueError: k outside 1 … V, a temperature that cannot be, no tokens; on a CPU also NaN.
        TypeError: logits that are no floats.
    """
    check_settings("forward", temperature)
    check_tokens(None, -100, None, teacher=teacher_logits)
    if not 1 <= k <= teacher_logits.shape[-1]:
        raise ValueError(f"k ({k}) must be from 1 to {teacher_logits.shape[-1]}, the vocabulary's size")
    likeliest, ids = log_probs(teacher_logits.detach(), temperature).topk(k)
    explain_nan(likeliest, None, teacher=teacher_logits)
    return TopK(likeliest.float(), ids)


def sparse_divergence(
    student_logits: Tensor, top: TopK, kind: Kind = "forward", *, temperature: float = 1.0,
    beta: float = 0.5, mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """How far the student is from what is seen of the teacher, *without* the factor T² of ``sparse_kd_loss``;
    arguments, result and errors as there."""
    check_settings(kind, temperature, beta=beta)
    valid = check_tokens(None, -100, mask, student=student_logits)
    check_top(top, student_logits, valid)
    log_q, log_p = _classes(student_logits, top, valid, temperature)
    loss = reduce(token_divergence(log_q, log_p, kind, beta), valid, reduction)
    explain_nan(loss, valid, student=student_logits, teacher=top.log_probs)
    return loss


def sparse_kd_loss(
    student_logits: Tensor, top: TopK, targets: Tensor | None = None, *, kind: Kind = "forward",
    temperature: float = 1.0, alpha: float = 0.5, beta: float = 0.5, ignore_index: int = -100,
    mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """``kd_loss`` with a teacher of whom ``top`` alone is known; equal to it where K is V.

    Args:
        student_logits: (..., V) floats.
        top: as ``top_k`` gives it, at the *same* temperature; the log-probabilities may be float16, the ids
            any integers. It gets no gradient.
        The others, the result and the other errors are those of ``kd_loss``.

    Raises:
        ValueError: shapes in ``top`` that do not fit; on a CPU also ids outside the vocabulary, and numbers
            that are no log-probabilities. TypeError: ids that are no integers.
    """
    check_settings(kind, temperature, alpha, beta)
    valid = check_tokens(targets, ignore_index, mask, student=student_logits)
    check_top(top, student_logits, valid)

    def soft() -> Tensor:
        log_q, log_p = _classes(student_logits, top, valid, temperature)
        return token_divergence(log_q, log_p, kind, beta)

    loss = reduce(mix(student_logits, targets, soft, valid, temperature, alpha), valid, reduction)
    explain_nan(loss, valid, student=student_logits, teacher=top.log_probs)
    return loss


def _classes(
    student_logits: Tensor, top: TopK, valid: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """log q and log p, (..., K + 1), the bucket last; (..., K) where K is V, and the bucket empty."""
    stored, ids = top.log_probs.detach(), top.ids.long()
    if valid is not None:
        stored, ids = (x.masked_fill(~valid.unsqueeze(-1), 0) for x in (stored, ids))
    log_p = stored.to(torch.promote_types(stored.dtype, torch.float32))
    log_q = log_probs(student_logits, temperature, valid)
    picked = log_q.gather(-1, ids)
    if ids.shape[-1] == log_q.shape[-1]:
        return picked, log_p
    rest_q = _others(log_q, ids)
    seen_p = log_p.exp().sum(-1, keepdim=True).clamp(max=1)
    rest_p = _unless_hidden(torch.log1p(-seen_p), rest_q, stored.dtype)
    return torch.cat((picked, rest_q), -1), torch.cat((log_p, rest_p), -1)


def _unless_hidden(rest_p: Tensor, rest_q: Tensor, stored: torch.dtype) -> Tensor:
    """The teacher's bucket (..., 1); but where rounding may have made or unmade all of it, the student's.

    A sure teacher's K may add up to 1, or to a little more or less. Against a bucket that is 0 or above 0 by
    rounding alone KL(q ‖ p) or KL(p ‖ q) would be infinite. Up to what rounding hides, the student is right.
    """
    least = math.log(max(2 * torch.finfo(stored).eps, 16 * torch.finfo(rest_p.dtype).eps))
    return torch.where(rest_p < least, rest_q.detach().clamp(max=least), rest_p)


def _others(log_q: Tensor, ids: Tensor) -> Tensor:
    """(..., 1) the logarithm of what the student gives to all tokens but these."""
    others = log_q.scatter(-1, ids, -math.inf)
    # A logsumexp of -inf alone (the student bars all others) has a NaN gradient.
    none = others.isneginf().all(-1, keepdim=True)
    return others.masked_fill(none, 0).logsumexp(-1, keepdim=True).masked_fill(none, -math.inf)


def check_top(top: TopK, student_logits: Tensor, valid: Tensor | None) -> None:
    """Raise what ``sparse_kd_loss`` says of ``top``."""
    values, ids, size = top.log_probs, top.ids, student_logits.shape[-1]
    if not values.is_floating_point() or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"log_probs are {values.dtype} and ids {ids.dtype}; give floats and integers")
    if values.shape != ids.shape or ids.shape[:-1] != student_logits.shape[:-1]:
        raise ValueError(
            f"log_probs {tuple(values.shape)} and ids {tuple(ids.shape)} must both be "
            f"{(*student_logits.shape[:-1], 'K')}, as the student's tokens are"
        )
    if not 1 <= ids.shape[-1] <= size:
        raise ValueError(f"K ({ids.shape[-1]}) must be from 1 to {size}, the student's vocabulary")
    if not may_look(ids):
        return
    ids = ids.long()
    counts = torch.ones_like(ids[..., :1], dtype=torch.bool) if valid is None else valid.unsqueeze(-1)
    wrong = counts & ((ids < 0) | (ids >= size))
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {ids.numel()} ids are outside 0 … {size - 1}, the first is "
            f"{int(ids[wrong][0])}; teacher and student must share the vocabulary"
        )
    full = float(values.detach().double().exp().sum(-1).masked_fill(~counts.squeeze(-1), 0).max())
    if full > FULL:
        raise ValueError(
            f"a token's probabilities add up to {full:.3g}, above 1: these are not log-probabilities; take "
            "log_softmax over the whole vocabulary, or top_k"
        )
