"""What the tutorials' exercises are checked with: an answer is right, or it is said what is wrong with it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Verdict:
    """Shown as a sentence; true where the answer is right."""

    right: bool
    said: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"Right. {self.said}" if self.right else f"Not yet. {self.said}"


def compare(
    answer: Callable[..., Any],
    cases: Iterable[tuple[tuple[Any, ...], Any]],
    *,
    praise: str,
    hints: Iterable[tuple[Callable[..., Any], str]] = (),
    tolerance: float = 1e-6,
) -> Verdict:
    """Hold an answer to examples.

    Args:
        cases: arguments, and what they should give.
        praise: what is said of a right answer.
        hints: wrong answers that are often given, as functions, and what is said to whoever gives one of them
            in every example (in one alone it may come out so by chance).
        tolerance: relative to the expected, and absolute below 1.
    """
    cases = list(cases)
    for arguments, expected in cases:
        shown = ", ".join(_short(argument) for argument in arguments)
        try:
            given = answer(*arguments)
        except Exception as error:  # whatever the reader's code does is told, not raised
            return Verdict(False, f"With {shown} it stops with {type(error).__name__}: {error}")
        if given is None:
            return Verdict(
                False, f"With {shown} it returns nothing yet; it should return {_short(expected)}."
            )
        if _close(given, expected, tolerance):
            continue
        for wrong, hint in hints:
            if all(_close(_outcome(answer, a), _outcome(wrong, a), tolerance) for a, _ in cases):
                return Verdict(False, hint)
        return Verdict(False, f"With {shown} {_difference(given, expected)}.")
    return Verdict(True, praise)


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What it returns, or the kind of error that it stops with."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error)


def _close(given: Any, expected: Any, tolerance: float) -> bool:
    try:
        ours, theirs = (np.asarray(torch.as_tensor(x).double()) for x in (given, expected))
    except (TypeError, ValueError, RuntimeError):
        return bool(given == expected)
    if ours.shape != theirs.shape:
        return False
    return bool(np.allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True))


def _difference(given: Any, expected: Any) -> str:
    """Of two large tensors of the same shape, where they differ most."""
    large = all(isinstance(x, torch.Tensor) and x.numel() > 8 for x in (given, expected))
    if not large or given.shape != expected.shape:
        return f"it returns {_short(given)}; it should be {_short(expected)}"
    worst = (given.double() - expected.double()).abs().argmax()
    place = [int(i) for i in torch.unravel_index(worst, given.shape)]
    values = f"{given[tuple(place)]:.6g} and should be {expected[tuple(place)]:.6g}"
    return f"it returns a tensor of the right shape, but at {place} it is {values}"


def _short(value: Any) -> str:
    """Few enough signs for a sentence."""
    if isinstance(value, torch.Tensor):
        shape = f"a tensor of shape {tuple(value.shape)}"
        return f"tensor({_short(value.tolist())})" if value.numel() <= 8 else shape
    if isinstance(value, np.ndarray):
        return f"array({_short(value.tolist())})"
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_short(each) for each in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
