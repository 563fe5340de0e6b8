"""The experiment behind ``minimoe distill``: one student, taught in every way, on real text.

A teacher is trained (or loaded), and a mixture of experts as a second one; then students, all from the same
weights, learn in turn: alone, from all logits, from a few, from the teacher's text, from its judgement of
their own. All train at a constant rate and are evaluated with averaged weights, so that every point of a
curve is a fair place to stop; a student alone goes on longer, until it has had as much arithmetic as the
others with their teacher.

    out/seed-0/teacher/dense     a run as ``train`` leaves it        out/seed-0/text      what it wrote
    out/seed-0/student/<method>  the same for each student
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from minimoe.data.corpus import Corpus
from minimoe.distill.config import DistillConfig
from minimoe.distill.shard_store import fingerprint
from minimoe.distill.teacher_text import TeacherText, write_text
from minimoe.distill.teachers import LogitTeacher, in_8_bits
from minimoe.distill.trainer import DistillationTrainer, as_teacher, check_fit
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.training.checkpoint import load_model
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train_in_turns
from minimoe.training.progress import Display
from minimoe.training.trainer import Trainer

TeacherName = Literal["dense", "mixture", "8 bits"]

ALONE, LONGER = "alone", "alone for longer"


@dataclass(frozen=True)
class Method:
    """How one student is taught, and by whom."""

    lesson: DistillConfig
    teacher: TeacherName = "dense"


@dataclass(frozen=True)
class Setup:
    """Who teaches whom, and how long."""

    teacher: ModelConfig
    mixture: ModelConfig
    student: ModelConfig
    training: TrainConfig
    """of the student, and but for the rate of the teachers"""
    teacher_lr: float
    ks: tuple[int, ...] = (1, 4, 16, 64)
    """how many logits the top-k students see"""
    teacher_tokens: int = 300_000
    """bytes that the teacher writes; the curve of queries ends there"""
    lesson: DistillConfig = field(default_factory=DistillConfig)
    """divergence, temperature, prompt, sampling of all methods"""
    data_fraction: float = 1.0
    """of the training text, what the students have; the teachers have all"""
    baseline_factor: int = 4
    """how many times as long a student alone trains, to be read at the others' arithmetic"""

    def methods(self) -> dict[str, Method]:
        """Every way of teaching, by name."""
        whole, text = self.lesson, replace(self.lesson, signal="labels", data_source="teacher")
        methods = {
            ALONE: Method(replace(whole, signal="labels")),
            LONGER: Method(replace(whole, signal="labels")),
            "logits": Method(whole),
            "logits and labels": Method(replace(whole, alpha=0.5)),
        }
        methods |= {f"top-{k}": Method(replace(whole, signal="top-k", k=k)) for k in self.ks}
        methods["top-4 and labels"] = Method(replace(whole, signal="top-k", k=4, alpha=0.5))
        methods["on-policy"] = Method(replace(whole, data_source="student"))
        methods["mixture's logits"] = Method(whole, "mixture")
        methods["8-bit logits"] = Method(whole, "8 bits")
        for part in (27, 9, 3, 1):
            tokens = self.teacher_tokens // part
            amount = f"{tokens // 1000}k" if tokens >= 1000 else str(tokens)
            methods[f"text {amount}"] = Method(replace(text, teacher_tokens=tokens))
        return methods


_FAIR = TrainConfig(schedule="constant", average=0.1)

SETUPS: dict[str, Setup] = {
    "quick": Setup(
        ModelConfig(dim=128, n_layers=4, n_heads=4, hidden_dim=336),
        ModelConfig(dim=96, n_layers=3, n_heads=3, n_experts=16, top_k=4, expert_dim=64),
        ModelConfig(dim=64, n_layers=2, n_heads=2, hidden_dim=176),
        replace(_FAIR, steps=400, lr=5e-3, warmup=30, eval_every=50, checkpoint_every=100),
        teacher_lr=2e-3,
    ),
}


@dataclass(frozen=True)
class Experiment:
    """A setup with its methods, text and folder."""

    setup: Setup
    methods: dict[str, Method]
    corpus: Corpus
    out: Path
    seeds: int
    device: str
    given: GPT | None
    """a teacher that is there already, in place of the dense one"""

    def __post_init__(self) -> None:
        """Refuse a teacher that cannot teach this student, and too little text, before any work is lost."""
        setup = self.setup
        for config in (setup.teacher, setup.mixture) if self.given is None else (self.given.config,):
            check_fit(setup.student, config)
        self.corpus.check(max(setup.teacher.context, setup.mixture.context))
        self.corpus.part(setup.data_fraction).check(setup.student.context)

    @property
    def taught(self) -> dict[TeacherName, ModelConfig]:
        """The teachers to be trained here."""
        wanted = {method.teacher for method in self.methods.values()}
        found: dict[TeacherName, ModelConfig] = (
            {} if self.given is not None else {"dense": self.setup.teacher}
        )
        return found | ({"mixture": self.setup.mixture} if "mixture" in wanted else {})

    def teacher_folder(self, seed: int, name: TeacherName) -> Path:
        return self.out / f"seed-{seed}" / "teacher" / name

    def student_folder(self, seed: int, method: str) -> Path:
        return (
            self.out / f"seed-{seed}" / "student" / method.replace(" ", "-").replace("'", "").replace(",", "")
        )

    def teachers(self, seed: int) -> dict[TeacherName, GPT]:
        """The teachers of a seed, once they are trained. The one in 8 bits is the dense one's copy."""
        models = {name: load_model(self.teacher_folder(seed, name), self.device) for name in self.taught}
        if self.given is not None:
            models["dense"] = self.given
        if any(method.teacher == "8 bits" for method in self.methods.values()):
            models["8 bits"] = in_8_bits(models["dense"])
        return models


def teach(
    experiment: Experiment,
    *,
    resume: bool,
    display: Callable[[str], Display],
    progress: Callable[[str], Callable[[int, int], None]],
) -> None:
    """Train teachers and students of each seed, recording as they go. What is finished is passed over when
    resuming."""
    for seed in range(experiment.seeds):
        of = f" · seed {seed + 1} of {experiment.seeds}" if experiment.seeds > 1 else ""
        setup, corpus = experiment.setup, experiment.corpus
        training = replace(setup.training, seed=seed)
        trainers: dict[str, Trainer] = {}
        folders = {}
        for name, config in experiment.taught.items():
            torch.manual_seed(seed)
            trainers[name] = Trainer(
                GPT(config), corpus, replace(training, lr=setup.teacher_lr), experiment.device
            )
            folders[str(name)] = experiment.teacher_folder(seed, name)
        train_in_turns(trainers, folders, resume=resume, display=display(f"teachers{of}"))
        models = experiment.teachers(seed)
        text = _text(experiment, models["dense"], seed, progress(f"the teacher writes{of}"))
        students = _students(experiment, training, models, text)
        folders = {name: experiment.student_folder(seed, name) for name in students}
        train_in_turns(students, folders, resume=resume, display=display(f"students{of}"))


def _text(
    experiment: Experiment, teacher: GPT, seed: int, progress: Callable[[int, int], None]
) -> TeacherText | None:
    """What the teacher writes, if anybody reads it: as much as the most curious student asks for."""
    readers = [
        method.lesson for method in experiment.methods.values() if method.lesson.data_source == "teacher"
    ]
    if not readers:
        return None
    longest = max(readers, key=lambda lesson: lesson.teacher_tokens)
    setup, folder = experiment.setup, experiment.out / f"seed-{seed}" / "text"
    prompts = experiment.corpus.part(setup.data_fraction)
    return write_text(teacher, prompts, setup.student.context, longest, seed, folder, progress)


def _students(
    experiment: Experiment, training: TrainConfig, models: dict[TeacherName, GPT], text: TeacherText | None
) -> dict[str, Trainer]:
    """All from the same weights. Those with the same teacher share its looks."""
    setup, corpus = experiment.setup, experiment.corpus.part(experiment.setup.data_fraction)
    looks = {name: LogitTeacher(model) for name, model in models.items()}
    students: dict[str, Trainer] = {}
    for name, method in experiment.methods.items():
        torch.manual_seed(training.seed)
        lesson = method.lesson
        config = replace(training, steps=training.steps * (setup.baseline_factor if name == LONGER else 1))
        teacher = as_teacher(looks[method.teacher], lesson)
        mine = (
            text.first(lesson.teacher_tokens)
            if text is not None and lesson.data_source == "teacher"
            else None
        )
        students[name] = DistillationTrainer(
            GPT(setup.student), corpus, config, lesson, teacher, mine, experiment.device
        )
    return students


def settings(experiment: Experiment, data: str) -> dict[str, object]:
    """What must be the same for a stopped experiment to go on."""
    return {
        "setup": asdict(experiment.setup),
        "methods": list(experiment.methods),
        "data": data,
        "seeds": experiment.seeds,
        "device": experiment.device,
        "teacher": "trained here" if experiment.given is None else fingerprint(experiment.given),
    }
