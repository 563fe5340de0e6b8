"""A claim of the articles: what it says, what it stands on, and the verdict that a measurement amounts to.

A claim stands on bounds, each an inequality of one measured figure. A figure has a value a seed (one value
where nothing is drawn). A bound is met where the mean clears it with 95 % confidence (one side of Student's t
over seeds), broken where it fails as surely, and otherwise open. The verdict follows from the bounds alone:

holds here                   all are met
does not hold here           one is broken
not testable at this scale   none is broken, and one is open: the seeds differ too much
not built                    the technique is not in this project
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from minimoe.data.corpus import Corpus


class Untestable(Exception):
    """This machine cannot run the experiment; the message says why."""


class Job(Protocol):
    """Something trained that claims may share; equal work is done once."""

    def seconds(self, device: str) -> float:
        """About how long it takes."""
        ...

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError where the text is too little for it."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Measured:
    """What an experiment found."""

    values: dict[str, list[float]]
    """figures by key, a value a seed: those that the bounds name, and others worth telling"""
    detail: dict[str, Any] = field(default_factory=dict)
    """plain data that the picture is drawn from"""
    ran: str = ""
    """what was run, with its sizes, in a sentence or two"""
