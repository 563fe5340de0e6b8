"""``minimoe precision``: errors of number formats and of accumulation."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from minimoe.cli.console import console
from minimoe.cli.options import DebugOption, JsonOption, ThreadsOption
from minimoe.experiments.context import RunContext
from minimoe.experiments.registry import EXPERIMENTS
from minimoe.reporting.tables import TextTable, print_table
from minimoe.tools.machine import describe_machine

NAMES = ("quantization-noise", "outliers", "accumulation", "matmul-error", "error-bounds")


@dataclass(frozen=True)
class Precision(DebugOption, JsonOption, ThreadsOption):
    """Measure the errors of 8-bit formats: rounding, outliers, accumulation, matmul. Takes a minute."""

    seed: int = 0
    """random seed"""

    def run(self) -> None:
        self.set_threads()
        self.check_json()
        context = RunContext(Path(), seed=self.seed)
        tables: list[TextTable] = []
        for name in NAMES:
            with console.status(f"measuring {name}"):
                measured = EXPERIMENTS[name].tables(EXPERIMENTS[name].measure(context).detail)
            for table in measured:
                print_table(table, console)
            tables += measured
        data = {"machine": describe_machine("cpu"), "seed": self.seed}
        self.write_json(data | {"tables": [dataclasses.asdict(table) for table in tables]})
