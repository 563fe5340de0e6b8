"""The ledger: claims tried one after another, each entry kept as soon as it is known.

out/entries/<id>.json     what was measured, the verdict, what the picture is drawn from
out/pictures/<id>.png     the picture
out/trained, out/taught   models, so that a killed ledger goes on where it was
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minimoe.claims.claim import OPEN, Claim, Judgement
from minimoe.experiments.context import RunContext
from minimoe.experiments.measurement import Measured, Untestable
from minimoe.reporting.figures import new_figure
from minimoe.reporting.statistics import Spread, format_spread
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.tools.timing import peaks

Entry = dict[str, Any]

REFERENCE = 140e9  # FLOP/s: of the two cores that the claims' own seconds are told of


def predicted(claims: Sequence[Claim], context: RunContext) -> dict[str, float]:
    """About how many seconds each claim takes, in this order: what an earlier one has trained is free."""
    slower = max(1.0, REFERENCE / peaks(context.device).flops["float32"])
    done: set[Any] = set()
    found = {}
    for claim in claims:
        experiment = claim.experiment
        work = set(experiment.jobs(context)) if experiment is not None else set()
        training = sum(each.seconds(context.device) for each in work - done)
        done |= work
        found[claim.id] = training + slower * (
            0.0 if experiment is None else experiment.seconds[0 if context.quick else 1]
        )
    return found


def run(
    claims: Sequence[Claim],
    context: RunContext,
    about: Callable[[Claim], None],
    on_progress: Callable[[Entry], None],
) -> list[Entry]:
    """Try each claim, or read what was found before; ``about`` hears of it before, ``told`` after."""
    entries = []
    for claim in claims:
        path = context.folder / "entries" / f"{claim.id}.json"
        about(claim)
        if path.exists():
            found = json.loads(path.read_text())
        else:
            found = entry(claim, context)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        draw(claim, found, context.folder)
        entries.append(found)
        on_progress(found)
    return entries


def entry(claim: Claim, context: RunContext) -> Entry:
    """Measure and judge, as plain data."""
    begin = time.perf_counter()
    measured = Measured({})
    try:
        if claim.experiment is not None:
            measured = claim.experiment.measure(context)
        judgement = claim.judge(measured.values)
    except Untestable as why:
        judgement = Judgement(OPEN, str(why), [])
    units = dict(claim.experiment.labels if claim.experiment is not None else {}) | {
        bound.figure: bound.unit for bound in claim.bounds
    }
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "ran": measured.ran,
        "measured": {
            name: Spread.of(values).as_dict()
            | {
                "values": values,
                "unit": units.get(name, ""),
                "shown": format_spread(values, unit=units.get(name, "")),
            }
            for name, values in measured.values.items()
        },
        **judged(claim, judgement),
        "seeds": max(map(len, measured.values.values()), default=1) if claim.learns else 1,
        "seconds": time.perf_counter() - begin,
        "size": "quick" if context.quick else "full",
        "machine": describe_machine(context.device),
        "detail": measured.detail,
    }


def judged(claim: Claim, judgement: Judgement) -> Entry:
    """Bounds with their outcomes, the verdict and why."""
    outcomes: Sequence[str | None] = judgement.outcomes or [None] * len(claim.bounds)
    bounds = zip(claim.bounds, outcomes, strict=True)
    return {
        "bound": [asdict(bound) | {"limit": bound.limit(), "outcome": outcome} for bound, outcome in bounds],
        "verdict": judgement.verdict,
        "reason": judgement.reason,
    }


def draw(claim: Claim, found: Entry, folder: Path) -> None:
    """The picture, from the entry alone."""
    if claim.experiment is None or claim.experiment.draw is None or not found["detail"]:
        return
    path = folder / "pictures" / f"{claim.id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_figure(path, 7.5, 3.4) as figure:
        claim.experiment.draw(figure, found["detail"])
