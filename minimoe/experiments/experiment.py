"""[evidence] The protocol of an experiment: training jobs, a measurement, a figure and tables.

Commands run experiments, claims hold their figures against bounds, and the documentation shows their tables.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.jobs import Job
from minimoe.experiments.measurement import Measured
from minimoe.reporting.figures import new_figure
from minimoe.reporting.statistics import Spread, format_spread
from minimoe.reporting.tables import TextTable
from minimoe.tools.machine import describe_machine

Detail = dict[str, Any]


def no_jobs(context: RunContext) -> Sequence[Job]:
    """For an experiment that trains nothing."""
    return ()


@dataclass(frozen=True)
class Experiment:
    """One experiment. ``detail`` is plain data, so figures and tables can be made again from JSON."""

    measure: Callable[[RunContext], Measured]
    draw: Callable[[Figure, Detail], None] | None = None
    """draws ``Measured.detail`` on an empty figure"""
    jobs: Callable[[RunContext], Sequence[Job]] = no_jobs
    """what must be trained or sampled first; equal jobs run once and are shared"""
    tables: Callable[[Detail], Sequence[TextTable]] = lambda detail: ()
    seconds: tuple[float, float] = (0.0, 0.0)
    """predicted time besides the jobs, quick and full, on two cores of 70 GFLOP/s each"""
    units: Mapping[str, str] = field(default_factory=dict)
    """units of measured figures by name"""
    figure_size: tuple[float, float] = (7.5, 3.4)
    """inches"""

    def save_figure(self, detail: Detail, path: Path, title: str = "") -> bool:
        """Draw a figure to ``path``; return whether there is one."""
        if self.draw is None or not detail:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_figure(path, *self.figure_size) as figure:
            self.draw(figure, detail)
            if title:
                figure.suptitle(title)
        return True


def as_record(
    measured: Measured, units: Mapping[str, str], context: RunContext, seconds: float
) -> dict[str, Any]:
    """A measurement as plain data, for JSON, with how it was made."""
    figures = {}
    for name, values in measured.values.items():
        unit = units.get(name, "")
        shown = format_spread(values, unit=unit)
        figures[name] = Spread.of(values).as_dict() | {"values": values, "unit": unit, "shown": shown}
    return {
        "ran": measured.ran,
        "measured": figures,
        "seeds": max(map(len, measured.values.values()), default=1),
        "seconds": seconds,
        "size": context.size,
        "machine": describe_machine(context.device),
        "detail": measured.detail,
    }
