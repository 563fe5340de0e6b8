"""Models that claims need trained: the same is trained once, however many claims ask for it, and what is
trained is kept in a folder named after what it is, so that a killed ledger goes on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch

from minimoe.cost import flops_per_token
from minimoe.data.corpus import Corpus
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.tools.timing import peaks
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train_in_turns
from minimoe.training.trainer import Evaluation, Step, Trainer

OnProgress = Callable[[float], None]

# The share of its matmul peak at which a small model trains on a CPU: enough to say beforehand how long
# something takes. Emulated 8 bits cost about the same again.
SHARE, EMULATED = 0.3, 1.8


class Job(Protocol):
    """Something trained that claims may share; equal work is done once."""

    def seconds(self, device: str) -> float:
        """About how long it takes."""
        ...

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError where the text is too little for it."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class TrainingJob:
    """One model and how it is trained, the seed included."""

    model: ModelConfig
    how: TrainConfig

    def name(self, data: str) -> str:
        """A folder's name: another model, training or text has another."""
        settings = json.dumps([asdict(self.model), asdict(self.how), data], sort_keys=True)
        kind = f"{self.model.n_experts}-experts" if self.model.n_experts else "dense"
        return f"{kind}-seed-{self.how.seed}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    def seconds(self, device: str) -> float:
        """About how long it will take, from its operations and the machine's measured peak."""
        return self.how.steps * step_seconds(self.model, self.how, device)

    def check(self, corpus: Corpus) -> None:
        corpus.check(self.model.context)

    def trainer(self, corpus: Corpus, device: str) -> Trainer:
        torch.manual_seed(self.how.seed)
        return Trainer(GPT(self.model), corpus, self.how, device)


def step_seconds(
    model: ModelConfig, how: TrainConfig, device: str, teacher: ModelConfig | None = None
) -> float:
    """About how long a step takes, with a look at a teacher if there is one."""
    tokens = how.batch_size * how.accumulate * model.context
    flops = flops_per_token(model) * (1.0 if model.precision == "full" else EMULATED)
    look = 0.0 if teacher is None else flops_per_token(teacher, training=False)
    return tokens * (flops + look) / (peaks(device).flops["float32"] * SHARE)


def train_wanted(
    wanted: list[TrainingJob], corpus: Corpus, folder: Path, device: str, on_progress: OnProgress
) -> dict[TrainingJob, Path]:
    """Train what is not trained yet, a step each in turn; where each lies. ``on_progress`` hears of work done, in
    seconds as ``TrainingJob.seconds`` predicts them."""
    folders = {training: folder / training.name(corpus.fingerprint) for training in wanted}
    waiting = {t: path for t, path in folders.items() if not (path / "finished").exists()}
    if waiting:
        trainers = {path.name: t.trainer(corpus, device) for t, path in waiting.items()}
        places = {path.name: path for path in waiting.values()}
        train_in_turns(trainers, places, resume=True, display=ProgressDisplay(on_progress, device))
    for path in waiting.values():
        (path / "finished").touch()
    return folders


class ProgressDisplay:
    """A display that tells of every step what it was worth, in seconds as predicted."""

    def __init__(self, on_progress: OnProgress, device: str) -> None:
        self.on_progress, self.device = on_progress, device
        self.worth: dict[str, float] = {}

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *exception: object) -> None: ...

    def start(self, trainers: Mapping[str, Trainer]) -> None:
        for name, trainer in trainers.items():
            teacher = getattr(getattr(trainer, "teacher", None), "model", None)  # of a student that looks
            config = None if teacher is None else teacher.config
            self.worth[name] = step_seconds(trainer.model.config, trainer.config, self.device, config)
            self.on_progress(self.worth[name] * trainer.step)

    def step(self, name: str, step: Step) -> None:
        self.on_progress(self.worth[name])

    def evaluation(self, name: str, evaluation: Evaluation) -> None: ...
