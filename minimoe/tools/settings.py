"""Compares settings: what a run, a checkpoint or a cache was made with, and what is requested now."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def first_difference(made: Mapping[str, Any], requested: Mapping[str, Any], where: str = "now") -> str | None:
    """The first setting that differs, as "made with model.dim = 64, now it is 128"; None if none does.

    Nested settings are compared key by key, in the order of ``requested`` and as JSON would store them. A
    missing setting counts as None.
    """
    before, now = (dict(_flatten(json.loads(json.dumps(settings)))) for settings in (made, requested))
    for key in now | before:
        if before.get(key) != now.get(key):
            return f"made with {key} = {before.get(key)}, {where} it is {now.get(key)}"
    return None


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"model": {"dim": 64}} -> ("model.dim", 64)."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
