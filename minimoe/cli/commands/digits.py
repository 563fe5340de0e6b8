"""``minimoe digits``: distillation on handwritten digits."""

from dataclasses import dataclass
from pathlib import Path

from minimoe.cli.console import console
from minimoe.cli.options import DebugOption, JsonOption, SeedsOption, ThreadsOption
from minimoe.experiments.context import RunContext
from minimoe.experiments.digits.experiment import digits
from minimoe.reporting.tables import print_table
from minimoe.tools.machine import describe_machine


@dataclass(frozen=True)
class Digits(DebugOption, JsonOption, ThreadsOption, SeedsOption):
    """Distill networks on handwritten digits, including digits that a student never sees. Takes a minute."""

    seeds: int = 10
    """number of networks of each kind, trained in one batch"""
    seed: int = 0
    """random seed of all networks"""
    json: Path | None = None
    """also write the results to this JSON file, and the figure beside it (.png)"""
    threads: int = 1
    """CPU threads; more do not help such small networks, and cost minutes on a busy machine"""

    def run(self) -> None:
        self.check_json()
        self.set_threads()
        experiment = digits(self.seed)
        with console.status("training"):
            detail = experiment.measure(RunContext(Path(), seeds=self.seeds)).detail
        for table in experiment.tables(detail):
            print_table(table, console)
        self.write_json({"machine": describe_machine("cpu"), "seed": self.seed} | detail)
        if self.json is not None:
            experiment.save_figure(detail, self.json.with_suffix(".png"))
