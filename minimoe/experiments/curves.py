"""What a comparison amounts to: loss curves read at equal tokens, equal FLOPs and equal seconds.

A budget is what the thriftiest model spent on its whole run; the others' curves are read there, between
evaluations in a straight line. Seconds are a step's *median* time times the steps, so that a moment in
which the machine was busy with something else falls on nobody.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minimoe.cost import flops_per_token
from minimoe.data.corpus import ALL
from minimoe.models.config import ModelConfig
from minimoe.tools import records
from minimoe.training.config import TrainConfig

AXES = ("tokens", "flops", "seconds")


@dataclass(frozen=True)
class Curve:
    """One model, one seed: what it had spent, and what it had reached, at each evaluation."""

    spent: dict[str, np.ndarray]  # by axis
    bits_per_byte: dict[str, np.ndarray]  # "all" domains' mean, and each domain
    max_violation: float | None  # at the end, over the validation text
    tokens_per_second: float

    def at(self, axis: str, budget: float, domain: str = ALL) -> float:
        """Bits per byte when ``budget`` had been spent; before the first evaluation on the line from the
        8 bits that knowing nothing costs."""
        spent = np.concatenate(([0.0], self.spent[axis]))
        return float(np.interp(budget, spent, np.concatenate(([8.0], self.bits_per_byte[domain]))))


def read_curve(path: Path, model: ModelConfig, training: TrainConfig) -> Curve:
    """The curve that a records file holds.

    Raises:
        ValueError: it holds no evaluation.
    """
    lines = list(records.read(path))
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    if not evaluations:
        raise ValueError(f"{path} holds no evaluation; the run was stopped before its first")
    step_seconds = statistics.median(line["seconds"] for line in lines if line["kind"] == "step")
    step_tokens = training.batch_size * training.accumulate * model.context
    steps = np.array([line["step"] for line in evaluations], dtype=float)
    spent = {
        "tokens": steps * step_tokens,
        "flops": steps * step_tokens * flops_per_token(model),
        "seconds": steps * step_seconds,
    }
    bits = {ALL: np.array([line["bits_per_byte"] for line in evaluations])} | {
        domain: np.array([line["domains"][domain] for line in evaluations])
        for domain in evaluations[0]["domains"]
    }
    return Curve(spent, bits, evaluations[-1].get("max_violation"), step_tokens / step_seconds)
