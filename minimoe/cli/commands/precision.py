"""The command ``minimoe precision``."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from minimoe.cli.console import console, prepare
from minimoe.experiments.context import RunContext
from minimoe.experiments.registry import EXPERIMENTS
from minimoe.reporting.tables import TextTable, print_table
from minimoe.tools.files import write_json
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import check_file

NAMES = ("quantization-noise", "outliers", "accumulation", "matmul-error", "error-bounds")


@dataclass(frozen=True)
class Precision:
    """Measure the errors of 8-bit formats: rounding, outliers, accumulation, matmul. Takes a minute."""

    out: Path | None = None
    """also write the tables to this JSON file"""
    threads: int | None = None
    """CPU threads; None: one per core"""
    seed: int = 0
    """random seed"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        device = prepare("cpu", self.threads)
        check_file("--out", self.out)
        context = RunContext(Path(), device=device, seed=self.seed)
        tables: list[TextTable] = []
        for name in NAMES:
            with console.status(f"measuring {name}"):
                measured = EXPERIMENTS[name].tables(EXPERIMENTS[name].measure(context).detail)
            for table in measured:
                print_table(table, console)
            tables += measured
        if self.out is not None:
            data = {"machine": describe_machine(device), "seed": self.seed}
            data |= {"tables": [dataclasses.asdict(table) for table in tables]}
            write_json(self.out, data)
