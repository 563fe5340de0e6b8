"""``minimoe experiment``: a single experiment."""

import time
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from minimoe.cli.console import console, print_header
from minimoe.cli.options import ExperimentOptions, JsonOption
from minimoe.data.corpus import check_data
from minimoe.distributed.errors import Interrupted
from minimoe.experiments.context import RunContext, Size
from minimoe.experiments.experiment import as_record
from minimoe.experiments.registry import EXPERIMENTS
from minimoe.reporting.tables import TextTable, print_table
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.run_dir import close_folder
from minimoe.training.progress import Terminal


@dataclass(frozen=True, kw_only=True)
class Experiment(ExperimentOptions, JsonOption):
    """Run one experiment: train what it needs, measure, and print its tables.

    Saves NAME.png and NAME.json.
    """

    name: Annotated[str, tyro.conf.Positional]
    """the experiment (moe-vs-dense, load-balance, fp8-training, …; a wrong name lists all)"""
    size: Size = "full"
    """quick: as in claims --quick; full: as in claims; long: as in the tables of the documentation"""
    seeds: int = 3
    """number of seeds of an experiment that trains"""

    def run(self) -> None:
        if self.name not in EXPERIMENTS:
            raise ValueError(f"there is no experiment {self.name!r}; choose among {', '.join(EXPERIMENTS)}")
        experiment = EXPERIMENTS[self.name]
        self.check_json()
        check_data(self.data)
        out, device = self.folder("experiment", self.name, self.size), self.set_device()
        context = RunContext(
            out, self.size, self.seeds, device, self.data, named_folders=True,
            display=lambda title: Terminal(console, title),
        )  # fmt: skip
        jobs = experiment.jobs(context)
        with console.status("reading text"):
            context.check(jobs)
        settings = {"experiment": self.name, "size": self.size, "seeds": self.seeds}
        settings |= {"data": self.data, "device": device}
        self.open_folder(out, settings)
        keep_freed_memory()
        if jobs:
            print_header(context.corpus, device)

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
        self.write_json(record, out / f"{self.name}.json")
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
