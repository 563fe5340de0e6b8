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
        rows = []
        for name, curves in self.curves.items():
            config = self.models[name]
            violations = [c.max_violation for c in curves if c.max_violation is not None]
            row = {
                "model": name,
                "parameters": parameters(config),
                "active": parameters(config, active=True),
                "flops_per_token": flops_per_token(config),
                "tokens_per_second": Spread.of([c.tokens_per_second for c in curves]).as_dict(),
                "max_violation": Spread.of(violations).as_dict() if violations else None,
            }
            for axis in AXES:
                row[axis] = {
                    domain: Spread.of(self.reached(name, axis, domain)).as_dict()
                    for domain in curves[0].bits_per_byte
                }
            rows.append(row)
        return rows

    def as_dict(self) -> dict[str, Any]:
        """All results as plain data."""
        curves = {
            name: [
                {axis: curve.spent[axis].tolist() for axis in AXES}
                | {"bits_per_byte": {d: values.tolist() for d, values in curve.bits_per_byte.items()}}
                for curve in curves
            ]
            for name, curves in self.curves.items()
        }
        return {"seeds": self.seeds, "models": self.rows(), "verdict": self.verdict(), "curves": curves}

    def verdict(self) -> str:
        """Which model won on which axis; the wording follows from the figures alone."""
        sentences = []
        for rival in (name for name in self.curves if name != "moe"):
            clauses = [
                describe_lead(Spread.of(self.leads(rival, axis)), f"at equal {AXIS_NAMES[axis]}")
                for axis in AXES
            ]
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
    for axis in AXES:
        reached.append([f"at equal {AXIS_NAMES[axis]}", *[""] * len(domains)])
        reached += [
            [f"  {row['model']}", *(format_spread(row[axis][domain], ".3f") for domain in domains)]
            for row in rows
        ]
    return [
        TextTable(
            "models",
            "The models. FLOPs are those of training, forward and backward; MaxVio is that of the validation "
            "text after the last step.",
            ["model", "parameters", "active", "FLOPs/token", "tokens/s", "MaxVio"],
            sizes,
        ),
        TextTable(
            "bits-per-byte",
            f"Validation bits per byte, lower is better ({describe_seeds(detail['seeds'])}).",
            ["", *domains],
            reached,
        ),
    ]
