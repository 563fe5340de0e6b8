"""What the experiment amounts to: every student read at equal student tokens, and beside the student alone
that has had as much arithmetic, the teacher's included.

Every student is read at its best evaluation, as by one who stops early: with little text some learn it by
heart. Of the gap between the student alone and its teacher a method closes
(alone - method) / (alone - teacher), all three in validation bits per byte, seed by seed.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimoe.cost import flops_per_token
from minimoe.data.corpus import ALL
from minimoe.distill.evaluation import StudentMetrics
from minimoe.experiments.distillation.experiment import ALONE, LONGER, Method, Setup
from minimoe.models.config import ModelConfig
from minimoe.reporting.statistics import Spread, describe_lead, format_spread
from minimoe.tools import records


@dataclass(frozen=True)
class Curve:
    """One student of one seed at each evaluation: steps, FLOPs spent, bits per byte over all domains."""

    steps: np.ndarray
    flops: np.ndarray
    bits: np.ndarray

    @property
    def best(self) -> float:
        return float(self.bits.min())

    def best_within(self, budget: float) -> float:
        """Bits per byte before more than ``budget`` was spent, between evaluations in a straight line."""
        last = np.interp(budget, self.flops, self.bits)
        return float(np.append(self.bits[self.flops <= budget], last).min())


def flops(method: Method, setup: Setup, teacher: ModelConfig, steps: np.ndarray) -> np.ndarray:
    """Operations after so many steps, the teacher's looks and words included; its own training is not.

    A look at a token costs the teacher one forward pass, and so does a byte that it writes with a cache.
    """
    lesson, training, student = method.lesson, setup.training, setup.student
    per_step = training.batch_size * training.accumulate * student.context
    tokens = steps * per_step
    look, word = flops_per_token(teacher, training=False), flops_per_token(student, training=False)
    total = tokens * flops_per_token(student)
    if lesson.needs_looks:
        total = total + tokens * look
    if lesson.data_source == "student":
        total = total + lesson.on_policy_fraction * word * per_step * np.maximum(
            0, steps - lesson.on_policy_start * training.steps
        )
    if lesson.data_source == "teacher":
        rows = lesson.teacher_tokens / (student.context + 1 - lesson.prompt)
        total = total + rows * student.context * look
    return total


def read_curve(path: Path, method: Method, setup: Setup, teacher: ModelConfig) -> Curve:
    """The curve that a records file holds. Raises ValueError where it holds no evaluation."""
    found = [line for line in records.read(path) if line["kind"] == "evaluation"]
    if not found:
        raise ValueError(f"{path} holds no evaluation; the run was stopped before its first")
    steps = np.array([line["step"] for line in found], dtype=float)
    bits = np.array([line["bits_per_byte"] for line in found])
    return Curve(steps, flops(method, setup, teacher, steps), bits)


@dataclass(frozen=True)
class DistillationResults:
    """Curves and likenesses by method, one a seed (the same seeds, in order)."""

    setup: Setup
    methods: dict[str, Method]
    curves: dict[str, list[Curve]]
    likenesses: dict[str, list[StudentMetrics]]

    @property
    def seeds(self) -> int:
        return len(self.curves[ALONE])

    def reached(self, name: str) -> list[float]:
        """Bits per byte at best, seed by seed."""
        return [curve.best for curve in self.curves[name]]

    def alone_with_as_much(self, name: str) -> list[float] | None:
        """Bits per byte of the student alone when it had spent what this one spent; None if it never did."""
        if LONGER not in self.curves:
            return None
        pairs = list(zip(self.curves[LONGER], self.curves[name], strict=True))
        if any(curve.flops[-1] > longer.flops[-1] for longer, curve in pairs):
            return None
        return [longer.best_within(curve.flops[-1]) for longer, curve in pairs]

    def teacher(self, name: str) -> list[float]:
        """Bits per byte of a teacher, seed by seed; an empty list if no student had it."""
        for method, how in self.methods.items():
            if how.teacher == name:
                return [seen.teacher_bits[ALL] for seen in self.likenesses[method]]
        return []

    def closed(self, name: str) -> list[float]:
        """Share of the gap to the (first) teacher that a method closed at equal student tokens."""
        triples = zip(self.reached(ALONE), self.reached(name), self.teacher("dense"), strict=True)
        return [(alone - mine) / (alone - best) for alone, mine, best in triples]

    def lead(self, name: str, rivals: list[float]) -> Spread:
        """How many bits per byte a method is below others, pairs of seeds."""
        return Spread.of([theirs - mine for theirs, mine in zip(rivals, self.reached(name), strict=True)])

    def rows(self) -> list[dict[str, Any]]:
        """The table: plain values, a dictionary a method."""
        rows = []
        for name, method in self.methods.items():
            seen, rivals = self.likenesses[name], self.alone_with_as_much(name)
            spent = [
                c.flops[-1] / a.flops[-1] for c, a in zip(self.curves[name], self.curves[ALONE], strict=True)
            ]
            row = {
                "method": name,
                "teacher": method.teacher,
                "config": asdict(method.lesson),
                "best": Spread.of(self.reached(name)).as_dict(),
                "bits_per_byte": {d: Spread.of([x.bits[d] for x in seen]).as_dict() for d in seen[0].bits},
                "gap_closed": Spread.of(self.closed(name)).as_dict(),
                "agreement": Spread.of([x.agreement[ALL] for x in seen]).as_dict(),
                "divergence": Spread.of([x.divergence[ALL] for x in seen]).as_dict(),
                "compute": spent[0],
                "lead": self.lead(name, self.reached(ALONE)).as_dict(),
                "lead_at_equal_compute": None if rivals is None else self.lead(name, rivals).as_dict(),
            }
            rows.append(row)
        return rows

    def verdict(self) -> str:
        """What the figures say, in words chosen by the figures alone."""
        sentences = [
            self._against_alone(name) for name in ("logits", "logits and labels") if name in self.methods
        ]
        pairs = {
            "8-bit logits": ("logits", "An 8-bit teacher, against the same in float32,"),
            "mixture's logits": ("logits", "A mixture as the teacher, against the dense one,"),
            "on-policy": ("logits", "The student's own text, against the corpus,"),
        }
        for name, (rival, words) in pairs.items():
            if name in self.methods and rival in self.methods:
                sentences.append(f"{words} {describe_lead(self.lead(name, self.reached(rival)))}.")
        if self.seeds == 1:
            sentences.append(
                "Bits per byte, from one seed: a hundredth or two may be luck, --seeds 3 shows the spread."
            )
        else:
            sentences.append(f"Bits per byte, mean ± standard deviation of {self.seeds} paired seeds.")
        return " ".join(sentences)

    def _against_alone(self, name: str) -> str:
        tokens = describe_lead(self.lead(name, self.reached(ALONE)))
        rivals = self.alone_with_as_much(name)
        compute = f", {describe_lead(self.lead(name, rivals))} at equal arithmetic" if rivals else ""
        return (
            f"Taught by {name}, the student {tokens} at equal student tokens{compute}, against itself alone; "
            f"of the gap to its teacher it closed {format_spread(self.closed(name), '.0%')}."
        )
