"""What an experiment has to work with: a size, seeds, a device, the text, a folder, trained models."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from minimoe.data.corpus import Corpus, load_corpus
from minimoe.experiments.jobs import Job, OnProgress, TrainingJob, train_wanted
from minimoe.models.gpt import GPT
from minimoe.tools import records
from minimoe.training.checkpoint import load_model

Size = TypeVar("Size")

MIN_SEEDS = 3  # of a claim about learning


@dataclass(frozen=True)
class RunContext:
    """One for a whole ledger. Raises ValueError for too few seeds."""

    folder: Path
    quick: bool = False
    seeds: int = MIN_SEEDS
    device: str = "cpu"
    data: str = "default"
    on_progress: OnProgress = lambda seconds: None
    """hears of work done, in seconds as they were predicted"""

    def __post_init__(self) -> None:
        if self.seeds < MIN_SEEDS:
            raise ValueError(
                f"--seeds ({self.seeds}) must be at least {MIN_SEEDS}: claims about learning need a spread"
            )

    @cached_property
    def corpus(self) -> Corpus:
        return load_corpus(self.data)

    def check(self, wanted: Iterable[Job]) -> None:
        """Raise ValueError, before any of it is done, where the text is not to be had or too little."""
        for work in wanted:
            work.check(self.corpus)

    def pick(self, quick: Size, full: Size) -> Size:
        return quick if self.quick else full

    def generator(self, seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def train(self, wanted: Iterable[TrainingJob]) -> dict[TrainingJob, Path]:
        """Their folders, once all are trained."""
        return train_wanted(list(wanted), self.corpus, self.folder / "trained", self.device, self.on_progress)

    def model(self, training: TrainingJob) -> GPT:
        return load_model(self.train([training])[training], self.device)

    def records(self, training: TrainingJob, kind: str) -> list[dict[str, Any]]:
        """Its records of one kind, "step" or "evaluation"."""
        path = self.train([training])[training] / "records.jsonl"
        return [line for line in records.read(path) if line["kind"] == kind]

    def reached(self, training: TrainingJob) -> float:
        """Validation bits per byte at the end."""
        return float(self.records(training, "evaluation")[-1]["bits_per_byte"])
