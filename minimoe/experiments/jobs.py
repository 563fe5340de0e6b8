"""[evidence] Training jobs: the models an experiment needs. Each distinct job runs once and is shared.

A job's folder holds records and checkpoints as ``training.loop`` writes them. A job is finished when the
checkpoint of its last step is there, so a stopped experiment resumes from these folders alone.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from minimoe.cost import flops_per_token
from minimoe.data.corpus import Corpus
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.tools.timing import peaks
from minimoe.training import checkpoint
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train_in_turns
from minimoe.training.progress import Display, Silent
from minimoe.training.trainer import Step, Trainer

OnProgress = Callable[[float], None]

# For predicted times: the fraction of its matmul peak that a CPU reaches with a small model, and how much
# longer a step takes with emulated 8-bit matmuls.
UTILIZATION, EMULATION_SLOWDOWN = 0.3, 1.8


class Job(Protocol):
    """Training that experiments may share; equal jobs run once."""

    def seconds(self, device: str) -> float:
        """Predicted duration."""

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError if the corpus is too small."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class TrainingJob:
    """One model and how it is trained, including the seed."""

    model: ModelConfig
    training: TrainConfig
    perturbation: float = 0.0
    """relative size of noise on the initial weights"""
    label: str = field(default="", compare=False)
    """name within its experiment"""

    def name(self, data: str) -> str:
        """A folder name that differs for every model, training configuration and corpus fingerprint."""
        settings = [asdict(self.model), asdict(self.training), self.perturbation, data]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        kind = f"{self.model.n_experts}-experts" if self.model.n_experts else "dense"
        return f"{kind}-seed-{self.training.seed}-{digest}"

    def seconds(self, device: str) -> float:
        """Predicted duration, from the model's FLOPs and the machine's measured peak."""
        return self.training.steps * step_seconds(self.model, self.training, device)

    def check(self, corpus: Corpus) -> None:
        corpus.check(self.model.context)

    def trainer(self, corpus: Corpus, device: str) -> Trainer:
        torch.manual_seed(self.training.seed)
        model = GPT(self.model)
        if self.perturbation:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + self.perturbation * torch.randn_like(parameter))
        return Trainer(model, corpus, self.training, device)

    def is_finished(self, folder: Path) -> bool:
        checkpoints = folder / "checkpoints"
        return checkpoint.latest(checkpoints) == checkpoints / f"step-{self.training.steps:08d}"


def step_seconds(
    model: ModelConfig, training: TrainConfig, device: str, teacher: ModelConfig | None = None
) -> float:
    """Predicted duration of a training step, including the forward pass of a teacher if there is one."""
    tokens = training.batch_size * training.accumulate * model.context
    flops = flops_per_token(model) * (1.0 if model.precision == "full" else EMULATION_SLOWDOWN)
    if teacher is not None:
        flops += flops_per_token(teacher, training=False)
    return tokens * flops / (peaks(device).flops["float32"] * UTILIZATION)


def train_jobs(
    folders: Mapping[TrainingJob, Path], corpus: Corpus, device: str, display: Callable[[str], Display]
) -> None:
    """Train the jobs that are not finished, seed by seed; the models of a seed take turns, a step each."""
    seeds = sorted({job.training.seed for job in folders})
    for i, seed in enumerate(seeds):
        of_seed = {job: path for job, path in folders.items() if job.training.seed == seed}
        unfinished = {path.name: job for job, path in of_seed.items() if not job.is_finished(path)}
        if unfinished:
            trainers = {name: job.trainer(corpus, device) for name, job in unfinished.items()}
            paths = {name: folders[job] for name, job in unfinished.items()}
            title = f"seed {i + 1} of {len(seeds)}" if len(seeds) > 1 else "training"
            train_in_turns(trainers, paths, resume=True, display=display(title))


class ProgressDisplay(Silent):
    """A training display that reports the predicted seconds of every step done."""

    def __init__(self, on_progress: OnProgress, device: str) -> None:
        self.on_progress, self.device = on_progress, device
        self.seconds: dict[str, float] = {}

    def start(self, trainers: Mapping[str, Trainer]) -> None:
        for name, trainer in trainers.items():
            teacher = getattr(getattr(trainer, "teacher", None), "model", None)  # of a distilled student
            config = None if teacher is None else teacher.config
            self.seconds[name] = step_seconds(trainer.model.config, trainer.config, self.device, config)
            self.on_progress(self.seconds[name] * trainer.step)

    def step(self, name: str, step: Step) -> None:
        self.on_progress(self.seconds[name])
