"""The command ``minimoe digits``."""

from dataclasses import dataclass
from pathlib import Path

from minimoe.cli.console import console, prepare
from minimoe.experiments.context import RunContext
from minimoe.experiments.digits.experiment import digits
from minimoe.reporting.tables import print_table
from minimoe.tools.files import write_json
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import check_file


@dataclass(frozen=True)
class Digits:
    """Distill networks on handwritten digits, including digits that a student never sees. Takes a minute."""

    seeds: int = 10
    """number of networks of each kind, trained in one batch"""
    seed: int = 0
    """random seed of all networks"""
    out: Path | None = None
    """also write the results to this JSON file, and the figure beside it (.png)"""
    threads: int = 1
    """CPU threads; more do not help such small networks, and cost minutes on a busy machine"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        check_file("--out", self.out)
        device = prepare("cpu", self.threads)
        experiment = digits(self.seed)
        with console.status("training"):
            detail = experiment.measure(RunContext(Path(), seeds=self.seeds, device=device)).detail
        for table in experiment.tables(detail):
            print_table(table, console)
        if self.out is not None:
            experiment.save_figure(detail, self.out.with_suffix(".png"))
            data = {"machine": describe_machine(device), "seed": self.seed} | detail
            write_json(self.out, data)
