"""Teachers and students that the claims about distillation share: alone, on logits, on the likeliest, on the
teacher's text alone.

Both where the student may read as much text as it likes and where it has little of what its teacher read.
The experiment is that of ``minimoe distill``, with fewer methods.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from minimoe.data.corpus import Corpus
from minimoe.experiments.context import RunContext
from minimoe.experiments.distillation.experiment import ALONE, SETUPS, Experiment, Setup, teach
from minimoe.experiments.distillation.gather import read_outcome
from minimoe.experiments.distillation.results import DistillationResults
from minimoe.experiments.jobs import ProgressDisplay, step_seconds
from minimoe.models.config import ModelConfig

AMPLE = 1.0  # of the teacher's text, what the student may read

SCARCE = {"quick": 0.01, "full": 0.05}  # so little that it is soon learnt by heart

SMALL_TEACHER = ModelConfig(dim=96, n_layers=4, n_heads=3, context=64, hidden_dim=256)

SMALL_STUDENT = ModelConfig(dim=48, n_layers=2, n_heads=2, context=64, hidden_dim=128)

WRITING = 6000.0  # bytes a second, about


@dataclass(frozen=True)
class DistillJob:
    """A teacher, its students and what they may read, for all seeds: what both claims need."""

    setup: Setup
    seeds: int

    @property
    def text(self) -> list[str]:
        """Methods that read the teacher's text alone, by its amount: a ninth, a third, all."""
        names = [name for name in self.setup.methods() if name.startswith("text ")]
        return names[1:] if self.setup.data_fraction < AMPLE else []

    @property
    def methods(self) -> list[str]:
        return [ALONE, "logits", "top-4", *self.text]

    def seconds(self, device: str) -> float:
        setup, how = self.setup, self.setup.training
        one = step_seconds(setup.teacher, how, device)
        for method in self.methods:
            looks = setup.methods()[method].lesson.needs_looks
            one += step_seconds(setup.student, how, device, setup.teacher if looks else None)
        return self.seeds * (how.steps * one + (setup.teacher_tokens / WRITING if self.text else 0))

    def check(self, corpus: Corpus) -> None:
        corpus.part(self.setup.data_fraction).check(self.setup.student.context)


def scarce(context: RunContext) -> float:
    return SCARCE["quick" if context.quick else "full"]


def taught(context: RunContext, data_fraction: float) -> DistillJob:
    whole = replace(SETUPS["quick"], data_fraction=data_fraction)
    if context.quick:
        training = replace(whole.training, steps=100, warmup=10, eval_every=25, eval_sequences=16)
        whole = replace(whole, teacher=SMALL_TEACHER, student=SMALL_STUDENT, teacher_tokens=45_000)
    else:
        training = replace(whole.training, steps=250)
        whole = replace(whole, teacher_tokens=200_000)
    whole = replace(whole, training=training)
    return DistillJob(whole, context.seeds)


def teach_all(context: RunContext, data_fraction: float) -> tuple[DistillationResults, Experiment]:
    """Teacher and students of every seed, trained or read back."""
    wanted = taught(context, data_fraction)
    methods = {name: method for name, method in wanted.setup.methods().items() if name in wanted.methods}
    folder = context.folder / "taught"
    out, other = (
        folder / f"{data_fraction:g}",
        folder / f"{AMPLE if data_fraction < AMPLE else scarce(context):g}",
    )
    experiment = Experiment(
        wanted.setup, methods, context.corpus, out, context.seeds, context.device, given=None
    )
    _same_teachers(other, out, context.seeds)
    teach(
        experiment,
        resume=True,
        display=lambda title: ProgressDisplay(context.on_progress, context.device),
        progress=lambda title: _writing(context, wanted.setup.teacher_tokens),
    )
    return read_outcome(experiment)[0], experiment


def _same_teachers(there: Path, here: Path, seeds: int) -> None:
    """A teacher reads all of the text whatever its students may: it need be trained only once."""
    for seed in range(seeds):
        source, target = (folder / f"seed-{seed}" / "teacher" for folder in (there, here))
        if source.exists() and not target.exists():
            shutil.copytree(source, target)


def _writing(context: RunContext, tokens: int) -> Callable[[int, int], None]:
    def on_progress(done: int, of: int) -> None:
        context.on_progress(tokens / WRITING / of)

    return on_progress
