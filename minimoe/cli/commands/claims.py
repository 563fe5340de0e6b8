"""The command ``minimoe claims``."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.progress import Progress

from minimoe.claims.claim import Claim
from minimoe.claims.html import write_page
from minimoe.claims.ledger import Entry, predicted, run
from minimoe.claims.registry import choose
from minimoe.claims.report import STYLES, duration, print_ledger
from minimoe.cli.console import console, prepare
from minimoe.data.corpus import check_data
from minimoe.experiments.context import RunContext
from minimoe.reporting.progress import progress_bar
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.run_dir import check_file, close_folder, open_folder
from minimoe.training.loop import Interrupted


@dataclass(frozen=True)
class Claims:
    """Try the articles' claims on this machine: what was measured, the bound, the verdict, and a page."""

    ids: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """claims to try, by id (pi, half-the-space, …) [default: all]"""
    quick: bool = False
    """smaller and sooner: all claims in under 5 minutes on 2 CPU cores, and not in half an hour or more"""
    json: Path | None = None
    """also write the ledger to this file: a list of objects, one a claim"""
    seeds: int = 3
    """of claims about learning; at least 3"""
    data: str = "default"
    """default, article, all, names of domains joined by commas, or a folder of text files"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    threads: int | None = None
    """CPU threads; None is one a core. On a machine that is busy with something else, fewer are faster"""
    out: Path | None = None
    """folder for entries, pictures, models and the page [default: runs/claims-…, by what is tried]"""
    resume: bool = False
    """go on with the ledger that was stopped in --out"""
    overwrite: bool = False
    """replace the ledger in --out"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        claims = choose(list(self.ids))
        check_file("--json", self.json)
        out = self.out or Path("runs") / "-".join(["claims", *self.ids, *(["quick"] if self.quick else [])])
        device = prepare(self.device, self.threads)
        progress = progress_bar(console)
        ledger = progress.add_task("")
        context = RunContext(
            out, self.quick, self.seeds, device, self.data, lambda s: progress.advance(ledger, s)
        )
        check_data(self.data)  # also where no claim reads it
        for claim in claims:
            context.check(() if claim.experiment is None else claim.experiment.jobs(context))
        settings = {"ids": [claim.id for claim in claims], "quick": self.quick, "seeds": self.seeds}
        settings |= {"data": self.data, "device": device}
        open_folder(out, settings, resume=self.resume, overwrite=self.overwrite)
        keep_freed_memory()
        with console.status("measuring the machine"):
            seconds = predicted(claims, context)
        total = sum(seconds.values())
        console.print(
            f"{len(claims)} claim{'s' * (len(claims) > 1)}, about {duration(total)} on this machine",
            highlight=False,
        )
        progress.update(ledger, total=total)
        with progress if console.is_terminal else nullcontext():
            entries = self._tried(claims, context, seconds, progress, ledger)
        self._written(entries, out)

    def _tried(
        self,
        claims: list[Claim],
        context: RunContext,
        seconds: dict[str, float],
        progress: Progress,
        ledger: Any,
    ) -> list[Entry]:
        done = 0.0

        def about(claim: Claim) -> None:
            progress.update(ledger, description=f"{claim.id} (about {duration(seconds[claim.id])})")
            if not console.is_terminal and claim.experiment is not None:
                console.print(f"{claim.id}: about {duration(seconds[claim.id])}", highlight=False)

        def on_progress(entry: Entry) -> None:
            nonlocal done
            done += seconds[entry["id"]]
            progress.update(ledger, completed=done)
            style = STYLES[entry["verdict"]]
            console.print(
                f"[{style}]{entry['verdict']}[/{style}] · {entry['id']} · {entry['reason']} "
                f"· {duration(entry['seconds'])}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip

        try:
            return run(claims, context, about, on_progress)
        except KeyboardInterrupt as error:  # between trainings; what was found is kept
            raise Interrupted from error

    def _written(self, entries: list[Entry], out: Path) -> None:
        text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
        for path in (out / "claims.json", self.json):
            if path is not None:
                write_atomically(path, text)
        write_page(entries, out, out / "claims.html")
        close_folder(out)
        console.print()
        print_ledger(entries, console)
        console.print(f"\nPage: {out / 'claims.html'}   Data: {out / 'claims.json'}", soft_wrap=True)
