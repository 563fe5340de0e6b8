"""The commands ``minimoe distill`` and ``minimoe digits``."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from minimoe.cli.console import console, prepare
from minimoe.experiments.digits.networks import train_teachers
from minimoe.experiments.digits.tables import TABLES, plot_dark_knowledge
from minimoe.reporting.tables import print_table
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import check_file


@dataclass(frozen=True)
class Digits:
    """What distillation does on handwritten digits, even for those that a student never saw. A minute."""

    seeds: int = 10
    """networks of each kind, trained side by side"""
    out: Path | None = None
    """also write the tables to this JSON file, and the figure beside it (.png)"""
    threads: int = 1
    """CPU threads; the networks are so small that more gain nothing, and on a busy machine lose minutes"""
    seed: int = 0
    """of all random numbers"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        check_file("--out", self.out)
        device = prepare("cpu", self.threads)
        with console.status("training the teachers"):
            teachers = train_teachers(seeds=self.seeds, seed=self.seed)
        tables = []
        for measure in TABLES:
            with console.status("training students"):
                tables.append(measure(teachers))
            print_table(tables[-1], console)
        if self.out is not None:
            plot_dark_knowledge(teachers, self.out.with_suffix(".png"))
            data = {"machine": describe_machine(device), "seeds": self.seeds, "seed": self.seed}
            data |= {"tables": [dataclasses.asdict(table) for table in tables]}
            write_atomically(self.out, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
