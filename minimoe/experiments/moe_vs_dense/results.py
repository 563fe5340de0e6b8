"""What a comparison amounts to: loss curves read at equal tokens, equal FLOPs and equal seconds.

A budget is what the thriftiest model spent on its whole run; the others' curves are read there, between
evaluations in a straight line. Seconds are a step's *median* time times the steps, so that a moment in
which the machine was busy with something else falls on nobody.
"""

from dataclasses import dataclass
from typing import Any

from minimoe.cost import flops_per_token, parameters
from minimoe.data.corpus import ALL
from minimoe.experiments.curves import AXES, Curve
from minimoe.models.config import ModelConfig
from minimoe.reporting.statistics import Spread, describe_lead


@dataclass(frozen=True)
class Comparison:
    """Curves of each model, one a seed (the same seeds, in order), and the models' configurations."""

    curves: dict[str, list[Curve]]
    models: dict[str, ModelConfig]

    @property
    def seeds(self) -> int:
        return len(next(iter(self.curves.values())))

    def budget(self, axis: str, seed: int) -> float:
        """What the thriftiest model spent along ``axis`` in its whole run."""
        return min(curves[seed].spent[axis][-1] for curves in self.curves.values())

    def reached(self, name: str, axis: str, domain: str = ALL) -> list[float]:
        """Bits per byte of a model at the common budget, a value a seed."""
        return [c.at(axis, self.budget(axis, s), domain) for s, c in enumerate(self.curves[name])]

    def lead(self, rival: str, axis: str) -> Spread:
        """How many bits per byte the mixture is below ``rival`` at the common budget; pairs of seeds."""
        pairs = zip(self.reached(rival, axis), self.reached("moe", axis), strict=True)
        return Spread.of([theirs - ours for theirs, ours in pairs])

    def rows(self) -> list[dict[str, Any]]:
        """The table: plain values, a dictionary a model."""
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
        """All of it as plain data, for JSON and for the terminal."""
        curves = {
            name: [
                {axis: values.tolist() for axis, values in curve.spent.items()}
                | {"bits_per_byte": {d: values.tolist() for d, values in curve.bits_per_byte.items()}}
                for curve in curves
            ]
            for name, curves in self.curves.items()
        }
        return {"seeds": self.seeds, "models": self.rows(), "verdict": self.verdict(), "curves": curves}

    def verdict(self) -> str:
        """What the figures say, for and against the mixture, in words chosen by the figures alone."""
        sentences = []
        for rival in (name for name in self.curves if name != "moe"):
            clauses = []
            for axis, words in zip(AXES, ("tokens", "FLOPs", "seconds"), strict=True):
                clauses.append(describe_lead(self.lead(rival, axis), f"at equal {words}"))
            sentences.append(f"Against {rival} the mixture {', '.join(clauses)}.")
        if self.seeds == 1:
            sentences.append(
                "Differences in bits per byte, from one seed: a hundredth or two may be luck, "
                "--seeds 3 shows the spread."
            )
        else:
            sentences.append(
                f"Differences in bits per byte, mean ± standard deviation of {self.seeds} paired seeds."
            )
        return " ".join(sentences)
