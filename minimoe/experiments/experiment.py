"""What every experiment offers: the training it needs, a measurement, a figure and tables.

A command runs one, a claim holds its figures against bounds, a page of the documentation shows its tables.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.jobs import Job
from minimoe.experiments.measurement import Measured
from minimoe.reporting.tables import TextTable

Detail = dict[str, Any]


def no_jobs(context: RunContext) -> Sequence[Job]:
    """For an experiment that trains nothing."""
    return ()


def no_tables(detail: Detail) -> Sequence[TextTable]:
    """For an experiment whose figures say everything."""
    return ()


@dataclass(frozen=True)
class Experiment:
    """One experiment; ``detail`` is plain data that JSON can hold, so a recorded run can be drawn again."""

    measure: Callable[[RunContext], Measured]
    draw: Callable[[Figure, Detail], None] | None = None
    """draws ``Measured.detail`` onto an empty figure"""
    jobs: Callable[[RunContext], Sequence[Job]] = no_jobs
    """what must be trained or sampled first; equal jobs run once and are shared"""
    tables: Callable[[Detail], Sequence[TextTable]] = no_tables
    seconds: tuple[float, float] = (0.0, 0.0)
    """approximate time besides the jobs, quick and full, on two cores of 70 GFLOP/s each"""
    labels: Mapping[str, str] = field(default_factory=dict)
    """units of measured figures, by the figure's key"""
