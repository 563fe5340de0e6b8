"""[evidence] Jobs of the distillation experiment: teachers, the text they generate, and students.

Jobs are shared like any other: a teacher, its text or a student that several experiments need is made once.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from minimoe.data.corpus import Corpus
from minimoe.distill.config import DistillConfig
from minimoe.distill.teacher_text import TeacherText, generate_text
from minimoe.distill.teachers import LogitTeacher
from minimoe.distill.trainer import DistillationTrainer, as_teacher, check_fit
from minimoe.experiments.context import RunContext
from minimoe.experiments.distillation.setup import Method, Setup, TeacherName
from minimoe.experiments.jobs import Job, TrainingJob, step_seconds
from minimoe.models.gpt import GPT
from minimoe.precision.linear import quantize_weights_

GENERATION_SPEED = 6000.0  # bytes per second, for predicted times


@dataclass(frozen=True)
class GivenTeacher:
    """A trained model from elsewhere."""

    fingerprint: str
    model: GPT = field(compare=False, repr=False)


TeacherSource = TrainingJob | GivenTeacher


@dataclass(frozen=True)
class TextJob:
    """Text that a teacher generates for all students of a seed that read it."""

    source: TeacherSource
    config: DistillConfig
    context: int
    data_fraction: float
    """of the training text, from which the prompts are drawn"""
    seed: int

    def seconds(self, device: str) -> float:
        return self.config.teacher_tokens / GENERATION_SPEED

    def check(self, corpus: Corpus) -> None:
        corpus.part(self.data_fraction).check(self.context)

    def folder(self, context: RunContext) -> Path:
        if context.named_folders:
            return context.folder / f"seed-{self.seed}" / "text"
        name = f"text-seed-{self.seed}-{_digest(self, context.corpus.fingerprint)}"
        return context.folder / "trained" / name


class TeacherPool:
    """A run's teachers and their texts, each loaded once, so that students share a teacher's predictions."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.teacher, self.text = cache(self._load_teacher), cache(self._generate_or_read)

    def _load_teacher(self, source: TeacherSource, quantized: bool) -> LogitTeacher:
        if quantized:
            return LogitTeacher(in_8_bits(self.teacher(source, False).model))
        return LogitTeacher(source.model if isinstance(source, GivenTeacher) else self.context.model(source))

    def _generate_or_read(self, job: TextJob) -> TeacherText:
        context, seconds = self.context, job.seconds(self.context.device)
        return generate_text(
            self.teacher(job.source, False).model, context.corpus.part(job.data_fraction), job.context,
            job.config, job.seed, job.folder(context),
            lambda done, n_shards: context.on_progress(seconds / n_shards),
        )  # fmt: skip


@dataclass(frozen=True)
class DistillJob(TrainingJob):
    """A student: ``model`` trained by one method."""

    method: Method = field(kw_only=True)
    source: TeacherSource = field(kw_only=True)
    text: TextJob | None = field(kw_only=True)
    data_fraction: float = field(kw_only=True)
    pool: TeacherPool = field(kw_only=True, compare=False, repr=False)

    def name(self, data: str) -> str:
        return f"student-seed-{self.training.seed}-{_digest(self, data)}"

    def seconds(self, device: str) -> float:
        needs_teacher = self.method.distill_config.needs_teacher
        teacher = self.source.model if needs_teacher and isinstance(self.source, TrainingJob) else None
        return self.training.steps * step_seconds(self.model, self.training, device, teacher)

    def check(self, corpus: Corpus) -> None:
        corpus.part(self.data_fraction).check(self.model.context)

    def teacher(self) -> LogitTeacher:
        return self.pool.teacher(self.source, self.method.teacher == "8 bits")

    def trainer(self, corpus: Corpus, device: str) -> DistillationTrainer:
        config = self.method.distill_config
        teacher = as_teacher(self.teacher(), config) if config.needs_teacher else None
        text = None if self.text is None else self.pool.text(self.text).first(config.teacher_tokens)
        torch.manual_seed(self.training.seed)
        part = corpus.part(self.data_fraction)
        return DistillationTrainer(GPT(self.model), part, self.training, config, teacher, text, device)


def _digest(job: TextJob | DistillJob, data: str) -> str:
    """12 hexadecimal digits that differ for every job and corpus fingerprint."""
    return hashlib.sha256(f"{job} {data}".encode()).hexdigest()[:12]


def in_8_bits(model: GPT, recipe: str = "deepseek-v3") -> GPT:
    """A copy of a trained model whose linear layers hold only 8-bit codes."""
    weight = model.embedding.weight
    copy = GPT(replace(model.config, precision=recipe)).to(weight.device, weight.dtype)
    copy.load_state_dict(model.state_dict())
    quantize_weights_(copy)
    return copy


@dataclass(frozen=True)
class DistillationRun:
    """A setup with some of its methods, for every seed of a context.

    Raises:
        ValueError: a teacher does not fit the student.
    """

    setup: Setup
    methods: Mapping[str, Method]
    given: GivenTeacher | None = None
    """in place of the dense teacher"""

    def __post_init__(self) -> None:
        configs = [self.given.model.config] if self.given else [self.setup.teacher, self.setup.mixture]
        for config in configs:
            check_fit(self.setup.student, config)

    def source(self, teacher: TeacherName, seed: int) -> TeacherSource:
        training = replace(self.setup.training, lr=self.setup.teacher_lr, seed=seed)
        if teacher == "mixture":
            return TrainingJob(self.setup.mixture, training, label="teacher/mixture")
        return self.given or TrainingJob(self.setup.teacher, training, label="teacher/dense")

    def teachers(self, seeds: int) -> list[TrainingJob]:
        """Teachers that are trained here; the one in 8 bits is a copy of the dense one."""
        needed: set[TeacherName] = {"dense", *(method.teacher for method in self.methods.values())} - {
            "8 bits"
        }
        sources = [self.source(name, seed) for name in sorted(needed) for seed in range(seeds)]
        return [source for source in sources if isinstance(source, TrainingJob)]

    def text_job(self, seed: int) -> TextJob | None:
        """As much text as any student reads; None if no student reads any."""
        configs = [method.distill_config for method in self.methods.values()]
        amounts = [config.teacher_tokens for config in configs if config.data_source == "teacher"]
        if not amounts:
            return None
        setup = self.setup
        config = replace(setup.distill_config, teacher_tokens=max(amounts))
        return TextJob(self.source("dense", seed), config, setup.student.context, setup.data_fraction, seed)

    def students(self, context: RunContext) -> dict[str, list[DistillJob]]:
        """A job per seed, by method."""
        pool = TeacherPool(context)
        return {
            name: [self.student(name, seed, pool) for seed in range(context.seeds)] for name in self.methods
        }

    def student(self, name: str, seed: int, pool: TeacherPool) -> DistillJob:
        method, slug = self.methods[name], name.replace(" ", "-").replace("'", "")
        return DistillJob(
            self.setup.student,
            replace(self.setup.training, seed=seed, steps=self.setup.steps(name)),
            label=f"student/{slug}",
            method=method,
            source=self.source(method.teacher, seed),
            text=self.text_job(seed) if method.distill_config.data_source == "teacher" else None,
            data_fraction=self.setup.data_fraction,
            pool=pool,
        )

    def jobs(self, context: RunContext) -> list[Job]:
        texts = [text for seed in range(context.seeds) if (text := self.text_job(seed))]
        students = [job for jobs in self.students(context).values() for job in jobs]
        return [*self.teachers(context.seeds), *texts, *students]

    def train(self, context: RunContext) -> dict[str, list[DistillJob]]:
        """Train the teachers, then the students; finished jobs are skipped. The students' jobs, by method."""
        context.train(self.teachers(context.seeds))
        students = self.students(context)
        context.train(job for jobs in students.values() for job in jobs)
        return students
