"""[evidence] Running all cases, twice, so that an interrupted run can be resumed.

out/measured.jsonl    the machine's peaks, then a line per measurement, written as they are made
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
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
    with _progress(console, cases, len(measured)) as on_case:
        for repeat in range(REPEATS):
            for case in cases:
                if (case.key, repeat) not in measured:
                    on_case(case, repeat)
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


@contextlib.contextmanager
def _progress(console: Console, cases: Sequence[Case], done: int) -> Iterator[Callable[[Case, int], None]]:
    """Show the current case and the time left: a bar on a terminal, elsewhere a line per group."""
    groups: set[tuple[str, str, int]] = set()
    bar = progress_bar(console, "cases", transient=True)
    task = bar.add_task("", total=REPEATS * len(cases), completed=done)

    def on_case(case: Case, repeat: int) -> None:
        nonlocal done
        if console.is_terminal:
            bar.update(task, completed=done, description=case.key)
        elif (group := (case.suite, case.group, repeat)) not in groups:
            groups.add(group)
            console.print(f"{done} of {REPEATS * len(cases)} · {case.suite} · {case.group}", highlight=False)
        done += 1

    with bar if console.is_terminal else contextlib.nullcontext():
        yield on_case
