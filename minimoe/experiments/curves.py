"""[evidence] Loss curves of training runs: bits per byte by tokens, FLOPs and seconds spent.

Seconds are the *median* step's time multiplied by the number of steps, so a transient slowdown of the machine
penalizes no single model.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimoe.cost import flops_per_token
from minimoe.data.corpus import ALL
from minimoe.models.config import ModelConfig
from minimoe.tools import records
from minimoe.training.config import TrainConfig

AXES = ("tokens", "flops", "seconds")


@dataclass(frozen=True)
class Curve:
    """One model, one seed: the budget spent and the bits per byte reached at each evaluation."""

    spent: dict[str, np.ndarray]
    """by axis, and by "steps" """
    bits_per_byte: dict[str, np.ndarray]
    """by domain, and by "all", their mean"""
    max_violation: float | None
    """MaxVio over the validation text at the end; None for a dense model"""
    tokens_per_second: float

    def at(self, axis: str, budget: float, domain: str = ALL) -> float:
        """Bits per byte when ``budget`` had been spent, interpolated linearly between evaluations. Before the
        first evaluation the line starts from the 8 bits of a uniform guess."""
        spent = np.concatenate(([0.0], self.spent[axis]))
        return float(np.interp(budget, spent, np.concatenate(([8.0], self.bits_per_byte[domain]))))

    def as_dict(self) -> dict[str, Any]:
        """What was spent along each axis and the bits per byte by domain, as plain data."""
        bits = {domain: values.tolist() for domain, values in self.bits_per_byte.items()}
        return {axis: self.spent[axis].tolist() for axis in AXES} | {"bits_per_byte": bits}

    @property
    def best(self) -> float:
        """The lowest bits per byte of any evaluation, as with early stopping."""
        return float(self.bits_per_byte[ALL].min())

    def best_within(self, axis: str, budget: float) -> float:
        """The lowest bits per byte before more than ``budget`` was spent."""
        spent, bits = self.spent[axis], self.bits_per_byte[ALL]
        return float(np.append(bits[spent <= budget], np.interp(budget, spent, bits)).min())


def read_curve(path: Path, model: ModelConfig, training: TrainConfig) -> Curve:
    """The curve in a records file. Raises ValueError if it has no evaluation."""
    lines = list(records.read(path))
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    if not evaluations:
        raise ValueError(f"{path} holds no evaluation; the run was stopped before its first")
    step_seconds = statistics.median(line["seconds"] for line in lines if line["kind"] == "step")
    step_tokens = training.batch_size * training.accumulate * model.context
    steps = np.array([line["step"] for line in evaluations], dtype=float)
    spent = {
        "steps": steps,
        "tokens": steps * step_tokens,
        "flops": steps * step_tokens * flops_per_token(model),
        "seconds": steps * step_seconds,
    }
    bits = {ALL: np.array([line["bits_per_byte"] for line in evaluations])}
    for domain in evaluations[0]["domains"]:
        bits[domain] = np.array([line["domains"][domain] for line in evaluations])
    return Curve(spent, bits, evaluations[-1].get("max_violation"), step_tokens / step_seconds)
