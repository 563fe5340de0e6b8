"""What a comparison amounts to: loss curves read at equal tokens, equal FLOPs and equal seconds.

A budget is what the thriftiest model spent on its whole run; the others' curves are read there, between
evaluations in a straight line. Seconds are a step's *median* time times the steps, so that a moment in
which the machine was busy with something else falls on nobody.
"""

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    mean: float
    deviation: float | None  # sample standard deviation; None for a single seed

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation)

    def as_dict(self) -> dict[str, float | None]:
        return {"mean": self.mean, "deviation": self.deviation}


def outcome(lead: Spread, even: float = 0.005) -> str:
    """won | lost | tied. A tie: the lead is within its deviation over seeds, or under ``even`` bits."""
    if abs(lead.mean) <= max(even, lead.deviation or 0.0):
        return "tied"
    return "won" if lead.mean > 0 else "LOST"


# Student's t that is exceeded with 5 % probability, by degrees of freedom from 1 on; 10 serve for more.
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)


def confidence(n: int) -> float:
    """How many standard deviations of n values their mean may be off, with 95 % confidence to one side."""
    return T95[min(n - 1, len(T95)) - 1] / math.sqrt(n) if n > 1 else 0.0


def shown(values: list[float], unit: str = "") -> str:
    """ "0.516", or over seeds "2.29 ±0.02", with as many digits as the mean or its deviation deserves."""
    spread = Spread.of(values)
    if not spread.deviation:
        large = 1e3 <= abs(spread.mean) < 1e12
        return (f"{spread.mean:,.0f}" if large else f"{spread.mean:.3g}") + unit
    digits = max(0, 1 - math.floor(math.log10(spread.deviation)))
    return f"{spread.mean:.{digits}f} ±{spread.deviation:.{digits}f}{unit}"
