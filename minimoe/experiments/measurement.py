"""[evidence] The result of an experiment as plain data, and the exception for one that cannot run here."""

from dataclasses import dataclass, field
from typing import Any


class Untestable(Exception):
    """This machine or corpus does not support the experiment; the message says why."""


@dataclass(frozen=True)
class Measured:
    """The result of an experiment."""

    values: dict[str, list[float]]
    """figures by name, one value per seed"""
    detail: dict[str, Any] = field(default_factory=dict)
    """plain data from which the figure and the tables are made"""
    ran: str = ""
    """what was run, with its sizes, in a sentence or two"""
