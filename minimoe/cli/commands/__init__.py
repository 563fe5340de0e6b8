"""The commands of ``minimoe``, one file each: a dataclass whose fields are flags, documented below them."""

from typing import Any

from minimoe.cli.commands.bench import Bench
from minimoe.cli.commands.claims import Claims
from minimoe.cli.commands.compare import Compare
from minimoe.cli.commands.cost import Cost
from minimoe.cli.commands.digits import Digits
from minimoe.cli.commands.distill import Distill
from minimoe.cli.commands.experiment import RunExperiment
from minimoe.cli.commands.precision import Precision
from minimoe.cli.commands.sample import Sample
from minimoe.cli.commands.train import Train

COMMANDS: dict[str, Any] = {
    "compare": Compare,
    "train": Train,
    "sample": Sample,
    "precision": Precision,
    "distill": Distill,
    "digits": Digits,
    "cost": Cost,
    "claims": Claims,
    "experiment": RunExperiment,
    "bench": Bench,
}
