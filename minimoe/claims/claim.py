"""A claim of the articles: what it says, what it stands on, and the verdict that a measurement amounts to.

A claim stands on bounds, each an inequality of one measured figure. A figure has a value a seed (one value
where nothing is drawn). A bound is met where the mean clears it with 95 % confidence (one side of Student's t
over seeds), broken where it fails as surely, and otherwise open. The verdict follows from the bounds alone:

holds here                   all are met
does not hold here           one is broken
not testable at this scale   none is broken, and one is open: the seeds differ too much
not built                    the technique is not in this project
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from minimoe.experiments.experiment import Experiment
from minimoe.reporting.statistics import Spread, confidence, format_spread

HOLDS, FAILS, OPEN, NOT_BUILT = "holds here", "does not hold here", "not testable at this scale", "not built"

Outcome = Literal["met", "broken", "open"]


@dataclass(frozen=True)
class Bound:
    """``least <= figure <= most``, one of them given."""

    figure: str
    """the measured figure's key"""
    what: str
    """the figure in words"""
    least: float | None = None
    most: float | None = None
    unit: str = ""
    why: str = ""
    """where the limit comes from"""

    def __post_init__(self) -> None:
        if (self.least is None) == (self.most is None):
            raise ValueError(f"bound {self.figure!r} must have a least or a most, and not both")

    def outcome(self, values: list[float]) -> Outcome:
        """By the mean and what seeds leave unsure of it. Raises ValueError for no value, or for no number."""
        if not values or not all(math.isfinite(value) for value in values):
            raise ValueError(f"{self.figure!r} was measured as {values}; there must be numbers")
        room = Spread.of([self._room(value) for value in values])
        unsure = confidence(len(values)) * (room.deviation or 0.0)
        if unsure and abs(room.mean) <= unsure:
            return "open"
        return "met" if room.mean >= 0 else "broken"

    def _room(self, value: float) -> float:
        return value - self.least if self.least is not None else (self.most or 0.0) - value

    def limit(self) -> str:
        """ "at most 0.55" """
        words, value = ("at least", self.least) if self.least is not None else ("at most", self.most)
        return f"{words} {value:.4g}{self.unit}"

    def says(self, values: list[float]) -> str:
        """ "bytes of a tensor 0.516 (at most 0.55): met" """
        return f"{self.what} {format_spread(values, unit=self.unit)} ({self.limit()}): {self.outcome(values)}"


@dataclass(frozen=True)
class Judgement:
    """A verdict, why, and each bound's outcome in the order of the bounds."""

    verdict: str
    reason: str
    outcomes: list[Outcome]


@dataclass(frozen=True)
class Claim:
    """A claim and its experiment; or, with ``not_built``, the reason why there is none."""

    id: str
    statement: str
    source: str
    bounds: tuple[Bound, ...] = ()
    experiment: Experiment | None = None
    learns: bool = False
    """whether it is about learning, and so needs several seeds"""
    not_built: str = ""

    def judge(self, values: Mapping[str, list[float]]) -> Judgement:
        """The verdict on measured figures. Raises ValueError where a bound's figure is missing."""
        if self.not_built:
            return Judgement(NOT_BUILT, self.not_built, [])
        if missing := [bound.figure for bound in self.bounds if bound.figure not in values]:
            raise ValueError(f"{self.id}: there is no figure {missing[0]!r} to hold against its bound")
        outcomes = [bound.outcome(values[bound.figure]) for bound in self.bounds]
        verdict = FAILS if "broken" in outcomes else OPEN if "open" in outcomes else HOLDS
        decisive = {FAILS: "broken", OPEN: "open", HOLDS: "met"}[verdict]
        says = [
            bound.says(values[bound.figure])
            for bound, outcome in zip(self.bounds, outcomes, strict=True)
            if outcome == decisive
        ]
        others = [o for o in outcomes if o != decisive]
        rest = f"; others: {_count(others)}" if others else ""
        return Judgement(verdict, "; ".join(says) + rest, outcomes)


def _count(outcomes: list[Outcome]) -> str:
    return ", ".join(f"{outcomes.count(o)} {o}" for o in ("met", "open", "broken") if o in outcomes)
