"""[evidence] Results of the distillation experiment: students compared at equal tokens and at equal FLOPs.

Every student is read at its best evaluation, as with early stopping, because with little text some overfit.
A method closes the fraction (alone - method) / (alone - teacher) of the gap between the student without a
teacher and the teacher, all three in validation bits per byte, per seed. The student that trains longer
without a teacher is read where it has spent as many FLOPs as the others, including their teacher's.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minimoe.cost import flops_per_token
from minimoe.data.corpus import ALL
from minimoe.distill.evaluation import StudentMetrics
from minimoe.experiments.curves import Curve
from minimoe.experiments.distillation.setup import ALONE, LONGER, Method, Setup
from minimoe.models.config import ModelConfig
from minimoe.reporting.statistics import Spread, describe_differences, describe_lead, format_spread


def flops(method: Method, setup: Setup, teacher: ModelConfig, steps: np.ndarray) -> np.ndarray:
    """FLOPs spent after so many steps, including the teacher's predictions and text but not its training.

    Predicting a token costs the teacher one forward pass, and so does generating one with a KV cache.
    """
    config, training, student = method.distill_config, setup.training, setup.student
    step_tokens = training.batch_size * training.accumulate * student.context
    teacher_forward = flops_per_token(teacher, training=False)
    student_forward = flops_per_token(student, training=False)
    total = steps * step_tokens * flops_per_token(student)
    if config.needs_teacher:
        total = total + steps * step_tokens * teacher_forward
    if config.data_source == "student":
        on_policy_steps = np.maximum(0, steps - config.on_policy_start * training.steps)
        total = total + config.on_policy_fraction * on_policy_steps * step_tokens * student_forward
    if config.data_source == "teacher":
        rows = config.teacher_tokens / (student.context + 1 - config.prompt)
        total = total + rows * student.context * teacher_forward
    return total


@dataclass(frozen=True)
class DistillationResults:
    """Curves and metrics by method, one per seed (the same seeds, in order)."""

    methods: dict[str, Method]
    curves: dict[str, list[Curve]]
    metrics: dict[str, list[StudentMetrics]]

    def reached(self, name: str) -> list[float]:
        """Best bits per byte, per seed."""
        return [curve.best for curve in self.curves[name]]

    def reached_alone_at_equal_flops(self, name: str) -> list[float] | None:
        """Best bits per byte of the student without a teacher that spent as many FLOPs as this method, per
        seed; None if it never spent as many."""
        if LONGER not in self.curves:
            return None
        budgets = [curve.spent["flops"][-1] for curve in self.curves[name]]
        pairs = list(zip(self.curves[LONGER], budgets, strict=True))
        if any(budget > longer.spent["flops"][-1] for longer, budget in pairs):
            return None
        return [longer.best_within("flops", budget) for longer, budget in pairs]

    def teacher_bits(self, name: str) -> list[float]:
        """Bits per byte of a teacher, per seed; an empty list if no student had it."""
        for method_name, method in self.methods.items():
            if method.teacher == name:
                return [metrics.teacher_bits[ALL] for metrics in self.metrics[method_name]]
        return []

    def gap_closed(self, name: str) -> list[float]:
        """Fraction of the gap to the dense teacher that a method closes at equal student tokens, per seed."""
        triples = zip(self.reached(ALONE), self.reached(name), self.teacher_bits("dense"), strict=True)
        return [(alone - method) / (alone - teacher) for alone, method, teacher in triples]

    def lead(self, name: str, rival: list[float]) -> Spread:
        """How many bits per byte a method is below its rival, over pairs of seeds."""
        return Spread.of([theirs - ours for theirs, ours in zip(rival, self.reached(name), strict=True)])

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary of plain values per method."""
        rows = []
        for name, method in self.methods.items():
            metrics, alone = self.metrics[name], self.reached_alone_at_equal_flops(name)
            bits = {domain: Spread.of([m.bits[domain] for m in metrics]) for domain in metrics[0].bits}
            spent = self.curves[name][0].spent["flops"][-1]
            rows.append(
                {
                    "method": name,
                    "teacher": method.teacher,
                    "config": asdict(method.distill_config),
                    "best": Spread.of(self.reached(name)).as_dict(),
                    "bits_per_byte": {domain: spread.as_dict() for domain, spread in bits.items()},
                    "gap_closed": Spread.of(self.gap_closed(name)).as_dict(),
                    "agreement": Spread.of([m.agreement[ALL] for m in metrics]).as_dict(),
                    "divergence": Spread.of([m.divergence[ALL] for m in metrics]).as_dict(),
                    "compute": spent / self.curves[ALONE][0].spent["flops"][-1],
                    "lead": self.lead(name, self.reached(ALONE)).as_dict(),
                    "lead_at_equal_compute": None if alone is None else self.lead(name, alone).as_dict(),
                }
            )
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Table, curves and verdict as plain data."""
        curves = {
            name: [
                {axis: curve.spent[axis].tolist() for axis in ("steps", "flops")}
                | {"bits": curve.bits_per_byte[ALL].tolist()}
                for curve in curves
            ]
            for name, curves in self.curves.items()
        }
        detail = {"seeds": len(self.curves[ALONE]), "methods": self.rows(), "curves": curves}
        return detail | {"verdict": verdict(detail)}


# Methods that differ from logits in one thing: what logits have, and what they have instead.
VARIANTS = {
    "8-bit logits": ("the same teacher in float32", "an 8-bit teacher"),
    "mixture's logits": ("the dense teacher", "a mixture of experts as teacher"),
    "on-policy": ("text of the corpus", "the student's own text"),
}


def verdict(detail: dict[str, Any]) -> str:
    """What the figures of ``DistillationResults.as_dict`` say; the wording follows from the figures alone."""
    rows = {row["method"]: row for row in detail["methods"]}
    sentences = []
    for name in ("logits", "logits and labels"):
        if name in rows:
            row = rows[name]
            leads = [describe_lead(Spread(**row["lead"]), "at equal tokens")]
            if row["lead_at_equal_compute"] is not None:
                leads.append(describe_lead(Spread(**row["lead_at_equal_compute"]), "at equal FLOPs"))
            sentences.append(
                f"Against the student without a teacher, {name} {', '.join(leads)}; it closed "
                f"{format_spread(row['gap_closed'], '.0%')} of the gap to the teacher."
            )
    for name, (against, variant) in VARIANTS.items():
        if name in rows and "logits" in rows:
            bests = [[min(curve["bits"]) for curve in detail["curves"][each]] for each in ("logits", name)]
            lead = Spread.of([logits - ours for logits, ours in zip(*bests, strict=True)])
            sentences.append(f"Against {against}, {variant} {describe_lead(lead)}.")
    return " ".join([*sentences, describe_differences(detail["seeds"])])
