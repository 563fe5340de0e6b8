"""[evidence] Running all cases, twice, so that an interrupted run can be resumed.

out/measured.jsonl    the machine's peaks, then a line per measurement, written as they are made
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from minimoe.bench.case import Case
from minimoe.bench.measure import Effort, Measurement, case_records, time_case, usual_reference
from minimoe.reporting.progress import progress_bar
from minimoe.tools import records
from minimoe.tools.timing import Peaks, peaks

REPEATS = 2

MEASURED = "measured.jsonl"


def run_cases(
    cases: Sequence[Case], device: torch.device, effort: Effort, out: Path, console: Console
) -> tuple[Peaks, list[dict[str, Any]]]:
    """Check and time every case, then time all of them again; measurements that ``out`` has are not repeated.

    Progress is a bar on a terminal, elsewhere a line per group.

    Returns:
        The machine's peaks and the records of all cases.

    Raises:
        ValueError: two cases have the same key; otherwise as in ``time_case``, with the case named.
    """
    keys = [case.key for case in cases]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{keys.count(twice)} cases have the key {twice!r}; give each its own shape")
    path = out / MEASURED
    lines = list(records.read(path))
    machine_peaks = next((Peaks(**line["peaks"]) for line in lines if line["kind"] == "peaks"), None)
    if machine_peaks is None:
        with console.status("measuring the machine's peaks"):
            machine_peaks = peaks(device)
        records.append(path, {"kind": "peaks", "peaks": asdict(machine_peaks)})
    measured = {(line["case"], line["repeat"]): line for line in lines if line["kind"] == "case"}
    jobs = [(case, repeat) for repeat in range(REPEATS) for case in cases]
    bar = progress_bar(console, "cases", transient=True)
    task = bar.add_task("", total=len(jobs), completed=len(measured))
    missing = [job for job in jobs if (job[0].key, job[1]) not in measured]
    with bar if console.is_terminal else contextlib.nullcontext():
        for (suite, group, _), batch in groupby(missing, lambda job: (job[0].suite, job[0].group, job[1])):
            if not console.is_terminal:
                console.print(f"{len(measured)} of {len(jobs)} · {suite} · {group}", highlight=False)
            for case, repeat in batch:
                bar.update(task, completed=len(measured), description=case.key)
                measured[case.key, repeat] = _measure(case, repeat, device, effort)
                records.append(path, measured[case.key, repeat])
    usual = usual_reference(measured.values())
    made = []
    for case in cases:
        measurements = [measured[case.key, repeat] for repeat in range(REPEATS)]
        made += case_records(case, device, measurements, machine_peaks, usual)
    return machine_peaks, made


def _measure(case: Case, repeat: int, device: torch.device, effort: Effort) -> Measurement:
    try:
        return {"kind": "case", "repeat": repeat} | time_case(case, device, effort, check=repeat == 0)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{case.key}: {error}") from error
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
