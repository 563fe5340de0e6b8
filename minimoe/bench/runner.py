"""Going through the cases, twice, and going on where a killed run stopped.

out/measured.jsonl    the machine's peaks, then a line a measurement, as they are made
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from minimoe.bench.case import Case
from minimoe.bench.measure import Effort, Turn, case_records, time_case, usual
from minimoe.reporting.progress import progress_bar
from minimoe.tools import records
from minimoe.tools.timing import Peaks, peaks

TURNS = 2

MEASURED = "measured.jsonl"


def run_cases(
    cases: Sequence[Case], device: torch.device, effort: Effort, out: Path, console: Console
) -> tuple[Peaks, list[dict[str, Any]]]:
    """Check and time every case, then time all of them once more; what ``out`` has already is not measured
    again.

    Returns:
        The machine's peaks and the records of all cases.

    Raises:
        ValueError: two cases bear the same key. Otherwise as ``time_case``, with the case named.
    """
    keys = [case.key for case in cases]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is there {keys.count(twice)} times; a case needs a shape of its own")
    path = out / MEASURED
    lines = list(records.read(path))
    known = next((Peaks(**line["peaks"]) for line in lines if line["kind"] == "peaks"), None)
    if known is None:
        with console.status("measuring the machine's peaks"):
            known = peaks(device)
        records.append(path, {"kind": "peaks", "peaks": asdict(known)})
    found = {(line["case"], line["turn"]): line for line in lines if line["kind"] == "case"}
    with _shown(console, cases, len(found)) as step:
        for turn in range(TURNS):
            for case in cases:
                if (case.key, turn) not in found:
                    step(case, turn)
                    found[case.key, turn] = _measured(case, turn, device, effort)
                    records.append(path, found[case.key, turn])
    normal = usual(found.values())
    made = []
    for case in cases:
        turns = [found[case.key, turn] for turn in range(TURNS)]
        made += case_records(case, device, turns, known, normal)
    return known, made


def _measured(case: Case, turn: int, device: torch.device, effort: Effort) -> Turn:
    try:
        return {"kind": "case", "turn": turn} | time_case(case, device, effort, check=turn == 0)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{case.key}: {error}") from error
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _shown(console: Console, cases: Sequence[Case], done: int) -> Iterator[Any]:
    """What is measured and the time left: a bar on a terminal, elsewhere a line a group."""
    groups: list[tuple[str, str, int]] = []
    progress = progress_bar(console, "cases", transient=True)
    task = progress.add_task("", total=TURNS * len(cases), completed=done)
    begun = done

    def step(case: Case, turn: int) -> None:
        nonlocal begun
        if console.is_terminal:
            progress.update(task, completed=begun, description=case.key)
        elif (group := (case.suite, case.group, turn)) not in groups:
            groups.append(group)
            console.print(f"{begun} of {TURNS * len(cases)} · {case.suite} · {case.group}", highlight=False)
        begun += 1

    if not console.is_terminal:
        yield step
        return
    with progress:
        yield step
