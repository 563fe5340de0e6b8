"""``minimoe claims``: the articles' claims, measured and judged on this machine."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import Progress, TaskID

from minimoe.claims.claim import Claim
from minimoe.claims.html import write_page
from minimoe.claims.ledger import Entry, predict_seconds, run
from minimoe.claims.registry import choose
from minimoe.claims.report import STYLES, duration, print_ledger
from minimoe.cli.console import console
from minimoe.cli.options import ExperimentOptions, JsonOption
from minimoe.data.corpus import check_data
from minimoe.distributed.errors import Interrupted
from minimoe.experiments.context import RunContext
from minimoe.reporting.progress import progress_bar
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.run_dir import close_folder

MIN_SEEDS = 3


@dataclass(frozen=True)
class Claims(ExperimentOptions, JsonOption):
    """Test the articles' claims on this machine: what was measured, the bound, the verdict, and a page."""

    ids: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """claims to test, by id (pi, half-the-space, …) [default: all]"""
    quick: bool = False
    """smaller sizes: all claims in under 5 minutes on 2 CPU cores, instead of half an hour or more"""
    seeds: int = MIN_SEEDS
    """number of seeds of claims about training; at least 3"""

    def run(self) -> None:
        claims = choose(list(self.ids))
        if self.seeds < MIN_SEEDS:
            raise ValueError(
                f"--seeds ({self.seeds}) must be at least {MIN_SEEDS}: claims about training need a spread"
            )
        self.check_json()
        check_data(self.data)  # even if no claim reads it
        out = self.folder("claims", *self.ids, *(["quick"] if self.quick else []))
        device = self.set_device()
        progress = progress_bar(console)
        bar = progress.add_task("")
        context = RunContext(
            out, "quick" if self.quick else "full", self.seeds, device, self.data,
            on_progress=lambda seconds: progress.advance(bar, seconds),
        )  # fmt: skip
        for claim in claims:
            context.check(() if claim.experiment is None else claim.experiment.jobs(context))
        settings = {"ids": [claim.id for claim in claims], "quick": self.quick, "seeds": self.seeds}
        settings |= {"data": self.data, "device": device}
        self.open_folder(out, settings)
        keep_freed_memory()
        with console.status("measuring the machine"):
            seconds = predict_seconds(claims, context)
        total = sum(seconds.values())
        progress.update(bar, total=total)
        console.print(
            f"{len(claims)} claim{'s' * (len(claims) > 1)}, about {duration(total)} on this machine",
            highlight=False,
        )
        with progress if console.is_terminal else nullcontext():
            entries = self._measure(claims, context, seconds, progress, bar)
        self._write(entries, out)

    def _measure(
        self,
        claims: list[Claim],
        context: RunContext,
        seconds: dict[str, float],
        progress: Progress,
        bar: TaskID,
    ) -> list[Entry]:
        done = 0.0

        def on_start(claim: Claim) -> None:
            progress.update(bar, description=f"{claim.id} (about {duration(seconds[claim.id])})")
            if not console.is_terminal and claim.experiment is not None:
                console.print(f"{claim.id}: about {duration(seconds[claim.id])}", highlight=False)

        def on_entry(entry: Entry) -> None:
            nonlocal done
            done += seconds[entry["id"]]
            progress.update(bar, completed=done)
            style = STYLES[entry["verdict"]]
            console.print(
                f"[{style}]{entry['verdict']}[/{style}] · {entry['id']} · {entry['reason']} "
                f"· {duration(entry['seconds'])}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip

        try:
            return run(claims, context, on_start, on_entry)
        except KeyboardInterrupt as error:  # finished entries and trained models are kept
            raise Interrupted from error

    def _write(self, entries: list[Entry], out: Path) -> None:
        self.write_json(entries, out / "claims.json")
        write_page(entries, out, out / "claims.html")
        close_folder(out)
        console.print()
        print_ledger(entries, console)
        console.print(f"\nPage: {out / 'claims.html'}   Data: {out / 'claims.json'}", soft_wrap=True)
