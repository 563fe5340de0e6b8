"""[evidence] The ledger: claims measured and judged one after another; a stopped run resumes.

out/entries/<id>.json     a finished entry: what was measured and the verdict
out/pictures/<id>.png     its figure
out/trained, out/taught   trained models, shared by claims
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from minimoe.claims.claim import OPEN, Claim, Judgement
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import as_record
from minimoe.experiments.measurement import Measured, Untestable
from minimoe.tools.files import write_json
from minimoe.tools.timing import peaks

Entry = dict[str, Any]

REFERENCE = 140e9  # FLOP/s of the two cores to which the experiments' own predicted seconds refer


def predict_seconds(claims: Sequence[Claim], context: RunContext) -> dict[str, float]:
    """Predicted seconds per claim, in this order: a job, or an experiment of several claims, counts for the
    first claim that needs it."""
    slowdown = max(1.0, REFERENCE / peaks(context.device).flops["float32"])
    done: set[Any] = set()
    seconds = {}
    for claim in claims:
        seconds[claim.id] = 0.0
        if claim.experiment is not None and id(claim.experiment) not in done:
            jobs = set(claim.experiment.jobs(context)) - done
            seconds[claim.id] = sum(job.seconds(context.device) for job in jobs)
            seconds[claim.id] += slowdown * claim.experiment.seconds[0 if context.quick else 1]
            done |= jobs | {id(claim.experiment)}
    return seconds


def run(
    claims: Sequence[Claim],
    context: RunContext,
    on_start: Callable[[Claim], None],
    on_entry: Callable[[Entry], None],
) -> list[Entry]:
    """Make the entry of each claim, or read the finished one; with callbacks before and after each."""
    entries = []
    results: dict[int, Measured] = {}
    for claim in claims:
        path = context.folder / "entries" / f"{claim.id}.json"
        on_start(claim)
        if path.exists():
            entry = json.loads(path.read_text(encoding="utf-8"))
        else:
            entry = make_entry(claim, context, results)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, entry)
        if claim.experiment is not None:
            claim.experiment.save_figure(entry["detail"], picture(context.folder, claim.id))
        entries.append(entry)
        on_entry(entry)
    return entries


def picture(folder: Path, id: str) -> Path:
    return folder / "pictures" / f"{id}.png"


def make_entry(claim: Claim, context: RunContext, results: dict[int, Measured]) -> Entry:
    """Measure, or take the result by the experiment's id, and judge; the entry is plain data."""
    begin = time.perf_counter()
    measured, experiment = Measured({}), claim.experiment
    try:
        if experiment is not None:
            if id(experiment) not in results:
                results[id(experiment)] = experiment.measure(context)
            measured = results[id(experiment)]
        judgement = claim.judge(measured.values)
    except Untestable as error:
        judgement = Judgement(OPEN, str(error), [])
    units = dict(experiment.units if experiment else {}) | {b.figure: b.unit for b in claim.bounds}
    record = as_record(measured, units, context, time.perf_counter() - begin)
    if not claim.learns:
        record["seeds"] = 1
    bounds = [
        asdict(bound) | {"limit": bound.limit(), "outcome": outcome}  # no outcomes if it is untestable
        for bound, outcome in zip_longest(claim.bounds, judgement.outcomes)
    ]
    head = {"id": claim.id, "statement": claim.statement, "source": claim.source}
    return head | record | {"bound": bounds, "verdict": judgement.verdict, "reason": judgement.reason}
