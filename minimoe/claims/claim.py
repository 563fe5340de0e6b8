"""[evidence] Claims of the articles: statement, source, experiment, bounds and verdict.

A bound is an inequality of one measured figure, which has one value per seed (a single value if nothing is
random). It is *met* if the mean clears the limit with 95 % confidence (one-sided Student's t over seeds),
*broken* if the mean fails it with the same confidence, and otherwise *open*. The verdict follows from the
bounds alone:

holds here                   all are met
does not hold here           one is broken
not testable at this scale   none is broken, and one is open: the seeds differ too much
not built                    the technique is not in this project
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from minimoe.experiments.experiment import Experiment, no_jobs
from minimoe.reporting.statistics import Spread, confidence, format_spread

HOLDS, FAILS, OPEN, NOT_BUILT = "holds here", "does not hold here", "not testable at this scale", "not built"

Outcome = Literal["met", "broken", "open"]


@dataclass(frozen=True)
class Bound:
    """``least <= figure`` or ``figure <= most``."""

    figure: str
    """name of the measured figure"""
    what: str
    """the figure in words"""
    least: float | None = None
    most: float | None = None
    unit: str = ""
    why: str = ""
    """where the limit comes from"""

    @classmethod
    def parse(cls, row: str) -> "Bound":
        """The bound of a row such as "gain | at least 10 dB | the figure in words | where 10 comes from"."""
        cells = re.fullmatch(r"(.+?) \| at (least|most) ([\d.e-]+)(.*?) \| (.+) \| (.+)", row)
        if cells is None:
            raise ValueError(
                f"{row!r} is not a row of the form FIGURE | at least NUMBER UNIT | WORDS | REASON"
            )
        figure, side, limit, unit, what, why = cells.groups()
        least, most = (float(limit), None) if side == "least" else (None, float(limit))
        return cls(figure, what, least, most, unit, why)

    def __post_init__(self) -> None:
        if (self.least is None) == (self.most is None):
            raise ValueError(f"bound {self.figure!r} must have a least or a most, and not both")

    def outcome(self, values: list[float]) -> Outcome:
        """Raises ValueError for no values, or for one that is not finite."""
        if not values or not all(math.isfinite(value) for value in values):
            raise ValueError(f"{self.figure!r} was measured as {values}; there must be finite numbers")
        margin = Spread.of([self._margin(value) for value in values])
        half_width = confidence(len(values)) * (margin.deviation or 0.0)
        if half_width and abs(margin.mean) <= half_width:
            return "open"
        return "met" if margin.mean >= 0 else "broken"

    def _margin(self, value: float) -> float:
        return value - self.least if self.least is not None else (self.most or 0.0) - value

    def limit(self) -> str:
        """ "at most 0.55" """
        limit = f"at most {self.most:.4g}" if self.least is None else f"at least {self.least:.4g}"
        return limit + self.unit

    def describe(self, values: list[float]) -> str:
        """ "a tensor's bytes relative to bf16 0.516 (at most 0.55): met" """
        return f"{self.what} {format_spread(values, unit=self.unit)} ({self.limit()}): {self.outcome(values)}"


@dataclass(frozen=True)
class Judgement:
    """A verdict, the reason, and the outcome of each bound in order."""

    verdict: str
    reason: str
    outcomes: list[Outcome]


@dataclass(frozen=True)
class Claim:
    """A claim with its experiment and bounds; or, with ``not_built``, the reason why there is none."""

    id: str
    statement: str
    source: str
    bounds: tuple[Bound, ...] = ()
    experiment: Experiment | None = None
    not_built: str = ""

    @classmethod
    def of(cls, id: str, statement: str, source: str, experiment: Experiment, *rows: str) -> "Claim":
        """A claim with one bound per row (``Bound.parse``)."""
        return cls(id, statement, source, tuple(map(Bound.parse, rows)), experiment)

    @property
    def learns(self) -> bool:
        """Whether it is about training, and so needs several seeds."""
        return self.experiment is not None and self.experiment.jobs is not no_jobs

    def judge(self, values: Mapping[str, list[float]]) -> Judgement:
        """The verdict on measured figures. Raises ValueError if a bound's figure is missing."""
        if self.not_built:
            return Judgement(NOT_BUILT, self.not_built, [])
        if missing := [bound.figure for bound in self.bounds if bound.figure not in values]:
            raise ValueError(f"{self.id}: figure {missing[0]!r} has a bound and was not measured")
        outcomes = [bound.outcome(values[bound.figure]) for bound in self.bounds]
        verdict = FAILS if "broken" in outcomes else OPEN if "open" in outcomes else HOLDS
        decisive = {FAILS: "broken", OPEN: "open", HOLDS: "met"}[verdict]
        judged = zip(self.bounds, outcomes, strict=True)
        reasons = [bound.describe(values[bound.figure]) for bound, o in judged if o == decisive]
        if others := [f"{outcomes.count(o)} {o}" for o in ("met", "open") if o != decisive and o in outcomes]:
            reasons.append(f"others: {', '.join(others)}")
        return Judgement(verdict, "; ".join(reasons), outcomes)
