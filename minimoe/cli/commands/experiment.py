"""The command ``minimoe experiment``."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from minimoe.cli.console import console, introduce, prepare
from minimoe.data.corpus import check_data
from minimoe.experiments.context import RunContext, Size
from minimoe.experiments.experiment import as_record
from minimoe.experiments.registry import EXPERIMENTS
from minimoe.reporting.tables import TextTable, print_table
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_json
from minimoe.tools.run_dir import check_file, close_folder, open_folder
from minimoe.training.loop import Interrupted
from minimoe.training.progress import Terminal


@dataclass(frozen=True)
class RunExperiment:
    """Run one experiment: train what it needs, measure, and print its tables.

    Saves NAME.png and NAME.json.
    """

    name: Annotated[str, tyro.conf.Positional]
    """the experiment (moe-vs-dense, load-balance, fp8-training, …; a wrong name lists all)"""
    size: Size = "full"
    """quick: as in claims --quick; full: as in claims; long: as in the tables of the documentation"""
    json: Path | None = None
    """also write the record to this file"""
    seeds: int = 3
    """number of seeds of an experiment that trains"""
    data: str = "default"
    """default, article, all, names of domains joined by commas, or a folder of text files"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    threads: int | None = None
    """CPU threads; None is one per core. If the machine is busy with other work, fewer are faster"""
    out: Path | None = None
    """folder for models, record and figure [default: runs/experiment-NAME-SIZE]"""
    resume: bool = False
    """resume the stopped run in --out"""
    overwrite: bool = False
    """replace the run in --out"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        if self.name not in EXPERIMENTS:
            raise ValueError(f"there is no experiment {self.name!r}; choose among {', '.join(EXPERIMENTS)}")
        experiment = EXPERIMENTS[self.name]
        check_file("--json", self.json)
        check_data(self.data)
        out = self.out or Path("runs") / f"experiment-{self.name}-{self.size}"
        device = prepare(self.device, self.threads)
        context = RunContext(
            out, self.size, self.seeds, device, self.data, named_folders=True,
            display=lambda title: Terminal(console, title),
        )  # fmt: skip
        jobs = experiment.jobs(context)
        with console.status("reading text"):
            context.check(jobs)
        settings = {"experiment": self.name, "size": self.size, "seeds": self.seeds}
        settings |= {"data": self.data, "device": device}
        open_folder(out, settings, resume=self.resume, overwrite=self.overwrite)
        keep_freed_memory()
        if jobs:
            introduce(context.corpus, device)

        start = time.perf_counter()
        try:
            measured = experiment.measure(context)
        except KeyboardInterrupt as error:  # trained models are kept
            raise Interrupted from error
        record: dict[str, Any] = {
            "experiment": self.name,
            "data": context.corpus.fingerprint if jobs else None,
        }
        record |= as_record(measured, experiment.units, context, time.perf_counter() - start)
        for path in filter(None, (out / f"{self.name}.json", self.json)):
            write_json(path, record)
        figure = out / f"{self.name}.png"
        drawn = experiment.save_figure(measured.detail, figure)
        close_folder(out)

        rows = [[name, value["shown"]] for name, value in record["measured"].items()]
        figures = TextTable("figures", measured.ran, ["figure", "measured"], rows)
        for table in [*experiment.tables(measured.detail), figures]:
            print_table(table, console)
        if drawn:
            console.print(f"Figure: {figure}", soft_wrap=True)
        console.print(f"Data: {figure.with_suffix('.json')}", soft_wrap=True)
