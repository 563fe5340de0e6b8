"""[evidence] Run context: size, seeds, device, corpus and folder of an experiment, and its trained models."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from minimoe.data.corpus import Corpus, load_corpus
from minimoe.experiments.jobs import Job, OnProgress, ProgressDisplay, TrainingJob, train_jobs
from minimoe.experiments.presets import Preset
from minimoe.models.gpt import GPT
from minimoe.tools import records
from minimoe.training.checkpoint import load_model
from minimoe.training.progress import Display

T = TypeVar("T")

Size = Literal["quick", "full", "long"]
"""how much an experiment does: as `claims --quick`, as `claims`, or as the documentation's tables"""


@dataclass(frozen=True)
class RunContext:
    """What one experiment runs with, or all experiments of a ledger. Raises ValueError for no seeds."""

    folder: Path
    size: Size = "full"
    seeds: int = 3
    """number of seeds of an experiment that trains: 0, 1, …"""
    device: str = "cpu"
    data: str = "default"
    on_progress: OnProgress = lambda seconds: None
    """called with the predicted seconds of work that has just been done"""
    display: Callable[[str], Display] | None = None
    """makes what is shown while models train, from a title; None: progress goes to ``on_progress``"""
    seed: int = 0
    """random seed of what is not trained; training seeds are 0, 1, ..."""
    preset: Preset | None = None
    """sizes of the comparison of MoE with dense; None: those of ``size``"""
    named_folders: bool = False
    """whether a job's folder is seed-N/LABEL, as a single experiment can have it; otherwise it is named after
    the job's settings, so that several experiments share their jobs"""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds ({self.seeds}) must be at least 1")

    @property
    def quick(self) -> bool:
        return self.size == "quick"

    @cached_property
    def corpus(self) -> Corpus:
        return load_corpus(self.data)

    def check(self, jobs: Iterable[Job]) -> None:
        """Raise ValueError, before any job runs, if the corpus is missing or too small."""
        for job in jobs:
            job.check(self.corpus)

    def pick(self, quick: T, full: T, long: T | None = None) -> T:
        """The value for this size; ``long`` defaults to ``full``."""
        return {"quick": quick, "full": full, "long": full if long is None else long}[self.size]

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def job_folder(self, job: TrainingJob) -> Path:
        if self.named_folders:
            return self.folder / f"seed-{job.training.seed}" / job.label
        return self.folder / "trained" / job.name(self.corpus.fingerprint)

    def train(self, jobs: Iterable[TrainingJob]) -> dict[str, list[TrainingJob]]:
        """Run the jobs that are not finished; return all by label. Raises ValueError if two jobs would share
        a folder."""
        folders = {job: self.job_folder(job) for job in jobs}
        if len(set(folders.values())) < len(folders):
            raise ValueError(f"labels of jobs must differ per seed: {[job.label for job in folders]}")
        display = self.display or (lambda title: ProgressDisplay(self.on_progress, self.device))
        train_jobs(folders, self.corpus, self.device, display)
        by_label: dict[str, list[TrainingJob]] = {}
        for job in folders:
            by_label.setdefault(job.label, []).append(job)
        return by_label

    def model(self, job: TrainingJob) -> GPT:
        """The job's trained model, in evaluation mode."""
        self.train([job])
        return load_model(self.job_folder(job), self.device)

    def records(self, job: TrainingJob, kind: Literal["step", "evaluation"]) -> list[dict[str, Any]]:
        """The job's records of one kind."""
        self.train([job])
        return [line for line in records.read(self.job_folder(job) / "records.jsonl") if line["kind"] == kind]

    def final_bits(self, job: TrainingJob) -> float:
        """Validation bits per byte after the last step."""
        return float(self.records(job, "evaluation")[-1]["bits_per_byte"])
