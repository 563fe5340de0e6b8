"""What an experiment found, as plain data; and why it may find nothing on some machine."""

from dataclasses import dataclass, field
from typing import Any


class Untestable(Exception):
    """This machine cannot run the experiment; the message says why."""


@dataclass(frozen=True)
class Measured:
    """What an experiment found."""

    values: dict[str, list[float]]
    """figures by key, a value a seed: those that the bounds name, and others worth telling"""
    detail: dict[str, Any] = field(default_factory=dict)
    """plain data that the picture is drawn from"""
    ran: str = ""
    """what was run, with its sizes, in a sentence or two"""
