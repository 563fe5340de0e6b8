"""[evidence] Results of MoE against dense: loss at equal tokens, equal FLOPs and equal seconds.

The common budget of an axis is what the cheapest model spent on its whole run; the curves of the others are
read there.
"""

from dataclasses import dataclass
from typing import Any

from minimoe.cost import flops_per_token, parameters
from minimoe.data.corpus import ALL
from minimoe.experiments.curves import AXES, Curve
from minimoe.models.config import ModelConfig
from minimoe.reporting.statistics import (
    Spread,
    describe_differences,
    describe_lead,
    describe_seeds,
    format_spread,
)
from minimoe.reporting.tables import TextTable, si

AXIS_NAMES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}


@dataclass(frozen=True)
class Comparison:
    """Curves of each model, one per seed (the same seeds, in order), and the models' configurations."""

    curves: dict[str, list[Curve]]
    models: dict[str, ModelConfig]

    @property
    def seeds(self) -> int:
        return len(next(iter(self.curves.values())))

    def budget(self, axis: str, seed: int) -> float:
        """What the cheapest model spent along ``axis`` in its whole run."""
        return min(curves[seed].spent[axis][-1] for curves in self.curves.values())

    def reached(self, name: str, axis: str, domain: str = ALL) -> list[float]:
        """A model's bits per byte at the common budget, per seed."""
        return [c.at(axis, self.budget(axis, s), domain) for s, c in enumerate(self.curves[name])]

    def leads(self, rival: str, axis: str) -> list[float]:
        """How many bits per byte MoE is below ``rival`` at the common budget, per seed."""
        pairs = zip(self.reached(rival, axis), self.reached("moe", axis), strict=True)
        return [rival_bits - moe_bits for rival_bits, moe_bits in pairs]

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary of plain values per model."""
        return [self._row(name, config) for name, config in self.models.items()]

    def _row(self, name: str, config: ModelConfig) -> dict[str, Any]:
        curves = self.curves[name]
        violations = [c.max_violation for c in curves if c.max_violation is not None]
        bits = {
            axis: {d: Spread.of(self.reached(name, axis, d)).as_dict() for d in curves[0].bits_per_byte}
            for axis in AXES
        }
        return {
            "model": name,
            "parameters": parameters(config),
            "active": parameters(config, active=True),
            "flops_per_token": flops_per_token(config),
            "tokens_per_second": Spread.of([c.tokens_per_second for c in curves]).as_dict(),
            "max_violation": Spread.of(violations).as_dict() if violations else None,
        } | bits

    def as_dict(self) -> dict[str, Any]:
        """All results as plain data."""
        curves = {name: [curve.as_dict() for curve in curves] for name, curves in self.curves.items()}
        return {"seeds": self.seeds, "models": self.rows(), "verdict": self.verdict(), "curves": curves}

    def verdict(self) -> str:
        """Which model won on which axis; the wording follows from the figures alone."""
        sentences = []
        for rival in (name for name in self.curves if name != "moe"):
            leads = {name: Spread.of(self.leads(rival, axis)) for axis, name in AXIS_NAMES.items()}
            clauses = [describe_lead(lead, f"at equal {name}") for name, lead in leads.items()]
            sentences.append(f"Against {rival} the mixture {', '.join(clauses)}.")
        return " ".join([*sentences, describe_differences(self.seeds)])


def tables(detail: dict[str, Any]) -> list[TextTable]:
    """Sizes and speeds of the models, and bits per byte at equal budgets, from ``Comparison.as_dict``."""
    rows = detail["models"]
    sizes = [
        [
            row["model"],
            f"{row['parameters']:,}",
            f"{row['active']:,}",
            si(row["flops_per_token"]),
            f"{row['tokens_per_second']['mean']:,.0f}",
            "" if row["max_violation"] is None else format_spread(row["max_violation"], ".2f"),
        ]
        for row in rows
    ]
    domains = list(rows[0]["tokens"])
    reached = []
    for axis, name in AXIS_NAMES.items():
        reached.append([f"at equal {name}", *[""] * len(domains)])
        for row in rows:
            bits = (format_spread(row[axis][domain], ".3f") for domain in domains)
            reached.append([f"  {row['model']}", *bits])
    about_sizes = (
        "The models. FLOPs are those of training, forward and backward; MaxVio is that of the validation "
        "text after the last step."
    )
    headings = ["model", "parameters", "active", "FLOPs/token", "tokens/s", "MaxVio"]
    about_bits = f"Validation bits per byte, lower is better ({describe_seeds(detail['seeds'])})."
    return [
        TextTable("models", about_sizes, headings, sizes),
        TextTable("bits-per-byte", about_bits, ["", *domains], reached),
    ]
