"""The losses of distillation: how far a student's next token is from the teacher's, and from the text's.

With p = softmax(teacher / T), q = softmax(student / T), m = β p + (1 - β) q (β weighs the teacher), in nats:

    forward   KL(p ‖ q)                            Hinton, Vinyals and Dean, arXiv 1503.02531
    reverse   KL(q ‖ p)                            MiniLLM, arXiv 2306.08543
    jsd       β KL(p ‖ m) + (1 - β) KL(q ‖ m)      GKD, arXiv 2306.13649
    skew      KL(p ‖ m)                            DistiLLM, arXiv 2402.03898: its α, ``lam`` in its code
    tv        ½ Σ |p - q|                          total variation

Everything is computed in float32 at least: bf16 knows a log-probability near -10 to 0.03 only.

Dimensions: ... the leading axes (B batch and L sequence length, or T tokens), V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["forward", "reverse", "jsd", "skew", "tv"]

Reduction = Literal["mean", "sum", "none"]


def divergence(
    student_logits: Tensor, teacher_logits: Tensor, kind: Kind = "forward", *, temperature: float = 1.0,
    beta: float = 0.5, mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """How far q is from p, *without* the factor T² of ``kd_loss``; arguments, result and errors as there."""
    check_settings(kind, temperature, beta=beta)
    valid = check_tokens(None, -100, mask, student=student_logits, teacher=teacher_logits)
    log_q = log_probs(student_logits, temperature, valid)
    log_p = log_probs(teacher_logits.detach(), temperature, valid)
    loss = reduce(token_divergence(log_q, log_p, kind, beta), valid, reduction)
    explain_nan(loss, valid, student=student_logits, teacher=teacher_logits)
    return loss


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None = None, *,
    kind: Kind = "forward", temperature: float = 1.0, alpha: float = 0.5, beta: float = 0.5,
    ignore_index: int = -100, mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """α · cross-entropy + (1 - α) · T² · divergence (arXiv 1503.02531, section 2), in nats; float32, or
    float64 if the logits are. The cross-entropy is at temperature 1. The divergence's gradient shrinks as
    1 / T²; hence its T².

    Args:
        student_logits, teacher_logits: (..., V) floats; the teacher gets no gradient. -inf bars a token.
        targets: (...) int64, the text's next tokens. Without them the loss is T² · divergence, whatever α.
        ignore_index: where the target is this, the token does not count, in neither term.
        mask: (...) bool, True where a token counts. What stands elsewhere may be anything, NaN too.
        reduction: mean over the tokens that count (0 if none does); their sum, for a caller who divides by
            the count of all micro-batches; none: (...), 0 at tokens that do not count.

    Raises:
        ValueError: settings out of range, shapes that do not fit, no tokens; on a CPU (a GPU would have to be
            waited for) also targets outside the vocabulary, and logits that make the loss NaN.
        TypeError: logits that are no floats, targets not int64, a mask not bool.
    """
    check_settings(kind, temperature, alpha, beta)
    valid = check_tokens(targets, ignore_index, mask, student=student_logits, teacher=teacher_logits)

    def soft() -> Tensor:
        log_q = log_probs(student_logits, temperature, valid)
        log_p = log_probs(teacher_logits.detach(), temperature, valid)
        return token_divergence(log_q, log_p, kind, beta)

    loss = reduce(mix(student_logits, targets, soft, valid, temperature, alpha), valid, reduction)
    explain_nan(loss, valid, student=student_logits, teacher=teacher_logits)
    return loss


def mix(
    student_logits: Tensor, targets: Tensor | None, soft: Callable[[], Tensor], valid: Tensor | None,
    temperature: float, alpha: float,
) -> Tensor:  # fmt: skip
    """(...) α · cross-entropy + (1 - α) · T² · soft(). What has no weight is not computed: 0 · inf is NaN."""
    if targets is None or valid is None or alpha == 0:
        return temperature**2 * soft()
    ids = targets.masked_fill(~valid, 0).unsqueeze(-1)  # ignore_index is no place to gather from
    hard = -log_probs(student_logits, 1.0, valid).gather(-1, ids).squeeze(-1)
    return hard if alpha == 1 else alpha * hard + (1 - alpha) * temperature**2 * soft()


def log_probs(logits: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """log softmax(logits / temperature), (..., V), in float32 at least; of logits 0 where not ``valid``."""
    if valid is not None:  # before the softmax: after it, a NaN would get the gradient 0 · NaN
        logits = logits.masked_fill(~valid.unsqueeze(-1), 0)
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)


def token_divergence(log_q: Tensor, log_p: Tensor, kind: Kind, beta: float) -> Tensor:
    """(...) each token's divergence of log-probabilities (..., V): q the student's, p the teacher's."""
    if kind == "forward":
        return _kl(log_p, log_q)
    if kind == "reverse":
        return _kl(log_q, log_p)
    if kind == "tv":
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
    # logaddexp(-inf, -inf) has a NaN gradient. Where p = q = 0 nobody asks for log m: it may be anything.
    nowhere = log_q.isneginf() & log_p.isneginf()
    log_m = torch.logaddexp(log_p + math.log(beta), log_q.masked_fill(nowhere, 0) + math.log1p(-beta))
    if kind == "skew":
        return _kl(log_p, log_m)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Σ a (log a - log b), where 0 log 0 = 0; infinite, without a gradient there, where a > 0 = b."""
    a = log_a.exp()
    absent, impossible = a == 0, log_b.isneginf()
    # Out of the difference, not of the product alone, whose gradient would be 0 · inf.
    terms = a * (log_a - log_b).masked_fill(absent | impossible, 0)
    return terms.masked_fill(impossible & ~absent, math.inf).sum(-1)


def reduce(values: Tensor, valid: Tensor | None, reduction: Reduction) -> Tensor:
    """Each token's loss, (...), over the tokens that count: see ``kd_loss``."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction ({reduction!r}) must be one of {', '.join(get_args(Reduction))}")
    if valid is not None:
        values = values.masked_fill(~valid, 0)
    if reduction != "mean":
        return values.sum() if reduction == "sum" else values
    return values.sum() / (values.numel() if valid is None else valid.sum().clamp(min=1))


def check_settings(kind: Kind, temperature: float, alpha: float = 0.5, beta: float = 0.5) -> None:
    """Raise ValueError for settings that cannot be."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind ({kind!r}) must be one of {', '.join(get_args(Kind))}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature ({temperature}) must be above 0 and finite")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha ({alpha}) must be from 0 to 1")
    if kind in ("jsd", "skew") and not 0 < beta < 1:
        raise ValueError(
            f"beta ({beta}) must be above 0 and below 1: at both ends jsd is 0 by definition (others return "
            "a KL there), at 0 skew is forward, at 1 it is 0; take kind='forward' or kind='reverse'"
        )


def check_tokens(
    targets: Tensor | None, ignore_index: int, mask: Tensor | None, **logits: Tensor
) -> Tensor | None:
    """(...) bool, which tokens count, None if all do. Raises what ``kd_loss`` says."""
    first, student = next(iter(logits.items()))
    for whose, x in logits.items():
        if not x.is_floating_point():
            raise TypeError(f"{whose} logits are {x.dtype}; give floats")
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(f"{whose} logits are {tuple(x.shape)}; give (..., V), one token at least")
        if x.shape[-1] != student.shape[-1]:
            raise ValueError(
                f"{first} has {student.shape[-1]} logits a token and {whose} {x.shape[-1]}; truncate "
                "the padding, or fill up to equal sizes and set it to -inf in both"
            )
        if x.shape != student.shape:
            raise ValueError(
                f"{first} logits {tuple(student.shape)}, {whose} {tuple(x.shape)}; give the same tokens"
            )
    for name, each, dtype in (("targets", targets, torch.int64), ("mask", mask, torch.bool)):
        if each is not None and each.dtype != dtype:
            raise TypeError(f"{name}: {each.dtype}; give {dtype}")
        if each is not None and each.shape != student.shape[:-1]:
            raise ValueError(f"{name}: {tuple(each.shape)}; give {tuple(student.shape[:-1])}, one a token")
    if targets is None:
        return mask
    valid = targets != ignore_index if mask is None else mask & (targets != ignore_index)
    if may_look(targets) and (wrong := valid & ((targets < 0) | (targets >= student.shape[-1]))).any():
        raise ValueError(
            f"{int(wrong.sum())} of {wrong.numel()} targets are outside 0 … {student.shape[-1] - 1}, the "
            f"first {int(targets[wrong][0])}; ignore_index ({ignore_index}) leaves a token out"
        )
    return valid


def may_look(x: Tensor) -> bool:
    """Whether a value can be asked for: on a GPU that waits for it, and torch.compile has none."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def explain_nan(loss: Tensor, valid: Tensor | None, **logits: Tensor) -> None:
    """Raise ValueError for NaN in a loss, saying whose logits made it. While all is well it looks at the loss
    alone."""
    if not may_look(loss) or not loss.isnan().any():
        return
    for whose, x in logits.items():
        bad = x.isnan() | x.isposinf() | x.amax(-1, keepdim=True).isneginf()
        place = (bad if valid is None else bad & valid.unsqueeze(-1)).nonzero()
        if len(place):
            raise ValueError(
                f"NaN, for {len(place)} of {x.numel()} {whose} logits are NaN or +inf, or all of a "
                f"token -inf, the first at {tuple(place[0].tolist())}; lower the learning rate, or mask it"
            )
