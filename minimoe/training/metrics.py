"""Metrics of training steps and evaluations, and their form in the records of a run.

Dimensions: E experts, M MoE layers, N domains.
"""

from dataclasses import dataclass

from torch import Tensor

from minimoe.moe import max_violation
from minimoe.moe.load_statistics import statistics
from minimoe.tools.records import Record


@dataclass(frozen=True)
class Step:
    """Metrics of one optimizer step."""

    step: int  # steps done, including this one
    loss: float  # cross-entropy in nats per token, without auxiliary and distillation losses
    lr: float
    grad_norm: float  # before clipping
    tokens: int
    seconds: float
    counts_ME: Tensor | None  # tokens per expert; None for a dense model
    balance_loss: float | None = None  # mean over layers, unweighted; None if the run has no such loss


@dataclass(frozen=True)
class Evaluation:
    """Validation bits per byte of each domain, and the experts' token counts."""

    step: int
    domains: dict[str, float]
    counts_NME: Tensor | None  # in the order of ``domains``; None for a dense model

    @property
    def counts_ME(self) -> Tensor | None:
        return None if self.counts_NME is None else self.counts_NME.sum(0)

    @property
    def bits_per_byte(self) -> float:
        """The mean over domains."""
        return sum(self.domains.values()) / len(self.domains)

    @property
    def max_violation(self) -> float | None:
        """MaxVio, averaged over MoE layers; None for a dense model."""
        if self.counts_ME is None:
            return None
        return sum(max_violation(counts_E) for counts_E in self.counts_ME) / len(self.counts_ME)


def step_record(step: Step) -> Record:
    record = {
        "kind": "step",
        "step": step.step,
        "loss": step.loss,
        "lr": step.lr,
        "grad_norm": step.grad_norm,
        "seconds": step.seconds,
    }
    if step.balance_loss is not None:
        record["balance_loss"] = step.balance_loss
    if step.counts_ME is not None:
        shares = step.counts_ME / step.counts_ME.sum(1, keepdim=True)
        record |= load_record(step.counts_ME)
        record |= {"busiest": shares.max().item(), "idlest": shares.min().item()}
    return record


def evaluation_record(evaluation: Evaluation) -> Record:
    record = {
        "kind": "evaluation",
        "step": evaluation.step,
        "bits_per_byte": evaluation.bits_per_byte,
        "domains": evaluation.domains,
    }
    if evaluation.counts_NME is not None and evaluation.counts_ME is not None:
        loads = zip(evaluation.domains, evaluation.counts_NME.tolist(), strict=True)
        record |= load_record(evaluation.counts_ME) | {"loads": dict(loads)}
    return record


def load_record(counts_ME: Tensor) -> Record:
    """Load statistics of the MoE layers: mean MaxVio, mean entropy, total number of dead experts."""
    layers = [statistics(counts_E) for counts_E in counts_ME]
    return {
        "max_violation": sum(layer.max_violation for layer in layers) / len(layers),
        "entropy": sum(layer.entropy for layer in layers) / len(layers),
        "dead": sum(layer.dead for layer in layers),
    }
