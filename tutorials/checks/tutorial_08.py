"""Checks of tutorial 8, Learning from a master."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from checks import Verdict, compare
from minimoe.distill import kd_loss


def check_soften(soften: Callable[..., Any]) -> Verdict:
    """Probabilities from logits, at a temperature."""
    logits = torch.tensor([4.0, 3.0, 1.0, -3.0])
    cases = [((logits, t), (logits / t).softmax(-1)) for t in (1.0, 4.0, 100.0)]
    hints = [
        (lambda x, t: x.softmax(-1), "The temperature is not used: divide the logits by it."),
        (
            lambda x, t: (x * t).softmax(-1),
            "The logits are multiplied by T. That makes the editor surer; divide by it.",
        ),
        (
            lambda x, t: x.softmax(-1) / t,
            "The probabilities are divided by T, and no longer sum to 1. Divide the logits, before exp.",
        ),
        (
            lambda x, t: (x / t).exp(),
            "The powers are right, but they do not sum to 1: divide each by their total.",
        ),
        (
            lambda x, t: (x / t).log_softmax(-1),
            "These are logarithms of the probabilities; softmax instead of log_softmax.",
        ),
    ]
    praise = "At 100 all four words are nearly equal; at 1 it is the plain softmax."
    return compare(soften, cases, praise=praise, hints=hints)


def check_kd(kd: Callable[..., Any]) -> Verdict:
    """α · cross-entropy + (1 - α) · T² · KL(teacher ‖ student), mean over tokens; and its gradient."""
    generator = torch.Generator().manual_seed(8)
    student, teacher = (2 * torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in "st")
    targets = torch.randint(7, (5,), generator=generator)

    def expected(t: float, alpha: float) -> torch.Tensor:
        return kd_loss(student, teacher, targets, temperature=t, alpha=alpha)

    settings = ((1.0, 0.0), (3.0, 0.0), (1.0, 1.0), (3.0, 1.0), (3.0, 0.25))
    cases = [((student, teacher, targets, t, a), expected(t, a)) for t, a in settings]
    verdict = compare(kd, cases, praise="", hints=_KD_HINTS)
    if not verdict:
        return verdict
    mine, theirs = (student.clone().requires_grad_() for _ in range(2))
    loss = kd(mine, teacher, targets, 3.0, 0.25)
    if not (isinstance(loss, torch.Tensor) and loss.requires_grad):
        said = "The figure is right, but no gradient comes through; keep it a tensor, without .item()."
        return Verdict(False, said)
    loss.backward()
    kd_loss(theirs, teacher, targets, temperature=3.0, alpha=0.25).backward()
    if mine.grad is None or theirs.grad is None or not torch.allclose(mine.grad, theirs.grad):
        return Verdict(
            False, "The figure is right, but its gradient is not: is a part of the student detached?"
        )
    return Verdict(True, "The package's kd_loss gives the same, and so do the gradients.")


def _kl(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    """KL(teacher ‖ student) of each token."""
    log_p, log_q = (teacher / t).log_softmax(-1), (student / t).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _mixed(soft: torch.Tensor, hard: torch.Tensor, alpha: float) -> torch.Tensor:
    return alpha * hard + (1 - alpha) * soft


_KD_HINTS = (
    (
        lambda s, v, y, t, a: _mixed(t * t * _kl(v, s, t).mean(), F.cross_entropy(s, y), a),
        "The divergence is the wrong way round: weigh log p - log q by the teacher's p, not the student's q.",
    ),
    (
        lambda s, v, y, t, a: _mixed(_kl(s, v, t).mean(), F.cross_entropy(s, y), a),
        "T² is missing: without it the teacher's voice fades as the temperature rises.",
    ),
    (
        lambda s, v, y, t, a: _mixed(t * _kl(s, v, t).mean(), F.cross_entropy(s, y), a),
        "The divergence is multiplied by T and not by its square.",
    ),
    (
        lambda s, v, y, t, a: t * t * _mixed(_kl(s, v, t).mean(), F.cross_entropy(s, y), a),
        "T² multiplies the labels' term too; it belongs to the divergence alone.",
    ),
    (
        lambda s, v, y, t, a: _mixed(t * t * _kl(s, v, t).mean(), F.cross_entropy(s / t, y), a),
        "The labels' term is softened too; the cross-entropy is at temperature 1.",
    ),
    (
        lambda s, v, y, t, a: _mixed(F.cross_entropy(s, y), t * t * _kl(s, v, t).mean(), a),
        "alpha is on the wrong term: it weighs the labels, 1 - alpha the teacher.",
    ),
    (
        lambda s, v, y, t, a: _mixed(t * t * _kl(s, v, t).mean() / s.shape[-1], F.cross_entropy(s, y), a),
        "The divergence is averaged over the vocabulary too (as kl_div's reduction='mean' does): sum over "
        "the words, then take the mean over the tokens.",
    ),
    (
        lambda s, v, y, t, a: _mixed(t * t * _kl(s, v, t).sum(), F.cross_entropy(s, y), a),
        "The divergence is summed over the tokens; take their mean.",
    ),
    (
        lambda s, v, y, t, a: _mixed(t * t * _kl(s, v, t), F.cross_entropy(s, y, reduction="none"), a),
        "That is the loss of each token; take the mean over the tokens.",
    ),
    (
        lambda s, v, y, t, a: _mixed(t * t * _kl(s, v, t), F.cross_entropy(s, y), a),
        "The divergence is still one of each token; take its mean over the tokens.",
    ),
    (
        lambda s, v, y, t, a: _mixed(-t * t * _kl(s, v, t).mean(), F.cross_entropy(s, y), a),
        "The divergence has the wrong sign: it is the sum of p (log p - log q), and never below 0.",
    ),
    (
        lambda s, v, y, t, a: _mixed(t * t * _kl(s * t, v, t).mean(), F.cross_entropy(s, y), a),
        "Only the teacher is softened; divide the student's logits by the temperature too.",
    ),
    (
        lambda s, v, y, t, a: _mixed(t * t * _kl(s, v, 1.0).mean(), F.cross_entropy(s, y), a),
        "Neither opinion is softened: divide both by the temperature.",
    ),
    (
        lambda s, v, y, t, a: _mixed(
            t * t * F.cross_entropy(s / t, (v / t).softmax(-1)), F.cross_entropy(s, y), a
        ),
        "This is the cross-entropy with the teacher; the divergence is that less the teacher's own entropy.",
    ),
)


def check_share(share: Callable[..., Any]) -> Verdict:
    """Of the gap between the student alone and the teacher, what the lesson closed."""
    cases = [
        ((4.0, 3.0, 2.0), 0.5),
        ((3.5, 3.5, 2.5), 0.0),
        ((3.0, 3.5, 2.0), -0.5),
        ((2.5, 2.0, 1.5), 0.5),
    ]
    hints = [
        (lambda a, t, m: (a - t) / a, "This is the gain over the whole loss; the gap is alone - teacher."),
        (lambda a, t, m: (t - m) / (a - m), "This is the share that is left open; 1 minus it is closed."),
        (
            lambda a, t, m: (t - a) / (a - m),
            "The sign: fewer bits are better, so the gain is alone - taught.",
        ),
        (lambda a, t, m: a - t, "This is the gain in bits; divide it by the gap, alone - teacher."),
        (
            lambda a, t, m: 100 * (a - t) / (a - m),
            "This is in per cent; give the share itself, 0.5 for one half.",
        ),
    ]
    praise = "Nothing gained is 0, the teacher reached is 1, and harm is below 0."
    return compare(share, cases, praise=praise, hints=hints)


def check_t(t_value: Callable[..., Any]) -> Verdict:
    """The mean of differences over its standard error."""
    samples = ([0.1, 0.2, 0.3], [0.5, 0.7, 0.2, 0.9], [-1.0, 0.5, 0.2])

    def expected(values: list[float]) -> float:
        return statistics.fmean(values) / (statistics.stdev(values) / len(values) ** 0.5)

    hints = [
        (
            lambda x: statistics.fmean(x) / (statistics.pstdev(x) / len(x) ** 0.5),
            "The standard deviation is divided by n; of a sample divide by n - 1 (statistics.stdev).",
        ),
        (
            lambda x: statistics.fmean(x) / statistics.stdev(x),
            "This is the mean over the spread of one seed; the mean of n spreads less, by the root of n.",
        ),
        (
            lambda x: statistics.fmean(x) / statistics.stdev(x) / len(x) ** 0.5,
            "A bracket is missing: divide the standard deviation by the root of n first.",
        ),
        (
            lambda x: statistics.fmean(x) / (statistics.stdev(x) / len(x)),
            "The spread is divided by n; a mean's error falls with the root of n only.",
        ),
        (
            lambda x: statistics.stdev(x) / len(x) ** 0.5,
            "This is the error of the mean; divide the mean by it.",
        ),
        (
            lambda x: abs(statistics.fmean(x)) / (statistics.stdev(x) / len(x) ** 0.5),
            "The sign is lost, and with it who won.",
        ),
    ]
    cases = [((values,), expected(values)) for values in samples]
    return compare(t_value, cases, praise="Far from 0 means: more than the seeds do.", hints=hints)
