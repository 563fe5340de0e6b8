"""The commands of ``minimoe``: compare, train, sample, precision (distill and digits: ``distill.commands``).

Each dataclass is a command; its fields are the flags, the strings below them the help.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from minimoe.cli.console import console, prepare
from minimoe.experiments.precision.tables import TABLES
from minimoe.reporting.tables import print_table
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import check_file


@dataclass(frozen=True)
class Precision:
    """Measure what 8 bits lose and what 32-bit sums save: rounding, outliers, sums, products. A minute."""

    out: Path | None = None
    """also write the tables to this JSON file"""
    threads: int | None = None
    """CPU threads; None is one a core"""
    seed: int = 0
    """of the random numbers"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        device = prepare("cpu", self.threads)
        check_file("--out", self.out)
        tables = []
        for measure in TABLES:
            with console.status(f"measuring {measure.__name__.replace('_', ' ')}"):
                tables.append(measure(seed=self.seed))
            print_table(tables[-1], console)
        if self.out is not None:
            data = {"machine": describe_machine(device), "seed": self.seed}
            data |= {"tables": [dataclasses.asdict(table) for table in tables]}
            write_atomically(self.out, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
