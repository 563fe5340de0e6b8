"""Mean and standard deviation over seeds: as text, as a verdict, and with 95 % confidence."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a figure over seeds."""

    mean: float
    deviation: float | None  # None for a single seed

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation)

    def as_dict(self) -> dict[str, float | None]:
        return {"mean": self.mean, "deviation": self.deviation}


def format_spread(value: Spread | Mapping[str, Any] | Sequence[float], spec: str = "", unit: str = "") -> str:
    """ "2.29 ±0.02": mean ± standard deviation; of a single seed the mean alone.

    Args:
        value: a spread, the dictionary that ``Spread.as_dict`` made, or one value per seed.
        spec: format of both numbers, such as ".3f", ".0%" or "+.2f" (the deviation has no sign). Without it,
            two significant digits of the deviation are shown; three of the mean if there is no deviation, or
            the whole number with thousands separators from 1,000 on.
        unit: text to append, such as " %".
    """
    if isinstance(value, Mapping):
        value = Spread(value["mean"], value["deviation"])
    elif not isinstance(value, Spread):
        value = Spread.of(value)
    mean, deviation = value.mean, value.deviation
    if spec:
        return f"{mean:{spec}}" + ("" if deviation is None else f" ±{deviation:{spec.lstrip('+')}}") + unit
    if not deviation:
        return (f"{mean:,.0f}" if 1e3 <= abs(mean) < 1e12 else f"{mean:.3g}") + unit
    digits = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{digits}f} ±{deviation:.{digits}f}{unit}"


def describe_seeds(n: int) -> str:
    """ "1 seed" or "3 seeds, mean ±standard deviation", for the heading of a table."""
    return "1 seed" if n == 1 else f"{n} seeds, mean ±standard deviation"


def outcome(lead: Spread, even: float = 0.005) -> str:
    """won | tied | LOST. Tied: the lead is at most its deviation over seeds, or at most ``even``."""
    if abs(lead.mean) <= max(even, lead.deviation or 0.0):
        return "tied"
    return "won" if lead.mean > 0 else "LOST"


def describe_lead(lead: Spread, where: str = "") -> str:
    """ "won at equal FLOPs (by 0.031 ±0.004)", with " at equal FLOPs" as ``where``."""
    size = Spread(abs(lead.mean), lead.deviation)
    return " ".join(filter(None, (outcome(lead), where, f"(by {format_spread(size, '.3f')})")))


def describe_differences(seeds: int) -> str:
    """The last sentence of a verdict: what its differences are, and how far they can be trusted."""
    if seeds == 1:
        spread = "from one seed: a hundredth or two may be luck, --seeds 3 shows the spread"
    else:
        spread = f"mean ± standard deviation of {seeds} paired seeds"
    return f"Differences in bits per byte, {spread}."


# One-sided 95 % quantiles of Student's t by degrees of freedom, from 1 on; the last one serves for more.
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)


def confidence(n: int) -> float:
    """Half-width of the one-sided 95 % confidence interval of a mean of n values, in standard deviations."""
    return T95[min(n - 1, len(T95)) - 1] / math.sqrt(n) if n > 1 else 0.0
