"""A student's loop: the project's one training loop, with another objective and, if asked, other text.

Dimensions: B batch, L sequence length, V vocabulary.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimoe.data.corpus import Batch, Corpus
from minimoe.distill.config import DistillConfig
from minimoe.distill.losses import kd_loss
from minimoe.distill.shard_store import describe
from minimoe.distill.teacher_text import IGNORED, TeacherText, as_batch, draw_prompts, write, write_text
from minimoe.distill.teachers import LogitTeacher, Teacher, TopKTeacher
from minimoe.distill.topk_loss import TopK, sparse_kd_loss
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train_in_turns
from minimoe.training.progress import Display
from minimoe.training.trainer import Evaluation, Trainer


class DistillationTrainer(Trainer):
    """A trainer whose model learns from a teacher.

    Args:
        teacher: who is asked about each batch; None where the lesson needs no look.
        text: what the teacher wrote, where the lesson reads it.

    Raises:
        ValueError: lesson, teacher and text do not fit together, or the student does not fit the teacher.
    """

    def __init__(
        self,
        model: GPT,
        corpus: Corpus,
        config: TrainConfig,
        lesson: DistillConfig,
        teacher: Teacher | None = None,
        text: TeacherText | None = None,
        device: str = "cpu",
    ) -> None:
        if lesson.needs_looks and teacher is None:
            raise ValueError(f"a lesson that sees {lesson.signal} needs a teacher to look at")
        if lesson.data_source == "teacher" and text is None:
            raise ValueError("a lesson that reads the teacher's text needs that text; see write_text")
        if text is not None and text.rows_NL.shape[1] != model.config.context + 1:
            raise ValueError(
                f"the teacher's text has rows of {text.rows_NL.shape[1]} bytes, the student reads context "
                f"+ 1 ({model.config.context + 1}); write it anew for this context"
            )
        if lesson.data_source != "corpus" and lesson.prompt >= model.config.context:
            raise ValueError(
                f"prompt ({lesson.prompt}) must be shorter than the context ({model.config.context})"
            )
        if isinstance(teacher, LogitTeacher | TopKTeacher):
            check_fit(model.config, teacher.model.config)
        asked = getattr(teacher, "temperature", lesson.temperature)  # of a teacher seen through few tokens
        if asked != lesson.temperature:
            raise ValueError(
                f"the teacher answers at temperature {asked} and the lesson has {lesson.temperature}; "
                "make them the same"
            )
        # Before the rest: choosing a dtype already takes a step's gradient.
        self.lesson, self.teacher, self.text = lesson, teacher, text
        self.known: dict[str, Any] = {}  # what a run that goes on must find again
        if isinstance(teacher, LogitTeacher | TopKTeacher):
            self.known = describe(teacher.model)
        if text is not None:
            self.known["text"] = text.fingerprint
        super().__init__(model, corpus, config, device)

    def settings(self) -> dict[str, dict[str, Any]]:
        return super().settings() | {"lesson": asdict(self.lesson), "teacher": self.known}

    def batch(self, micro: int) -> Batch:
        if self.text is not None:
            size = self.config.batch_size
            return self.text.batch(self.config.seed, self.step, size, micro=micro, device=self.device)
        if self._writes(micro):
            return self._own_batch(micro)
        return super().batch(micro)

    def objective(self, logits_BLV: Tensor, batch: Batch, micro: int, loss: Tensor) -> Tensor:
        """α · cross-entropy + (1 - α) · T² · divergence; of the student's own text the divergence alone: its
        words are no labels."""
        if self.teacher is None:
            return loss
        sight = self.teacher.predict(batch.tokens_BL, self.step, micro)
        lesson = self.lesson
        settings: dict[str, Any] = {
            name: getattr(lesson, name) for name in ("kind", "temperature", "alpha", "beta")
        }
        settings["mask"] = batch.targets_BL != IGNORED
        targets_BL = None if self._writes(micro) else batch.targets_BL
        if isinstance(sight, TopK):
            return sparse_kd_loss(logits_BLV, sight, targets_BL, **settings)
        return kd_loss(logits_BLV, sight, targets_BL, **settings)

    def _writes(self, micro: int) -> bool:
        """Whether this batch is the student's own text: by (seed, step, micro) alone."""
        if (
            self.lesson.data_source != "student"
            or self.step < self.lesson.on_policy_start * self.config.steps
        ):
            return False
        return (
            np.random.default_rng((self.config.seed, self.step, micro, 1)).random()
            < self.lesson.on_policy_fraction
        )

    def _own_batch(self, micro: int) -> Batch:
        """The next of the batches that the student wrote; it writes new ones when they are used up.

        They are kept in checkpoints, because the weights that wrote them are gone.
        """
        size, lesson, config = self.config.batch_size, self.lesson, self.config
        used = int(self.extra_state["used"]) if "used" in self.extra_state else lesson.generation_batches
        if used == lesson.generation_batches:
            seed = int(np.random.default_rng((config.seed, self.step, micro, 2)).integers(2**62))
            prompts, domains = draw_prompts(
                self.corpus, size * lesson.generation_batches, lesson.prompt, seed
            )
            length = self.model.config.context + 1
            rows = write(self.model, prompts.to(self.device), length, lesson, seed)
            self.extra_state |= {"rows": rows, "domains": domains}
            used = 0
        self.extra_state["used"] = torch.tensor(used + 1)
        mine = slice(used * size, (used + 1) * size)
        return as_batch(self.extra_state["rows"][mine], self.extra_state["domains"][mine], lesson.prompt).to(
            self.device
        )


def check_fit(student: ModelConfig, teacher: ModelConfig) -> None:
    """Raise ValueError where a student cannot learn from a teacher."""
    for name, remedy in (
        ("vocab_size", "they must know the same tokens"),
        ("context", "a teacher cannot read further than its own context"),
    ):
        mine, theirs = getattr(student, name), getattr(teacher, name)
        if mine > theirs or (name == "vocab_size" and mine != theirs):
            raise ValueError(f"the student has {name} {mine} and its teacher {theirs}; {remedy}")


def distill(
    student: GPT,
    teacher: GPT | Teacher | None,
    corpus: Corpus,
    config: TrainConfig,
    lesson: DistillConfig | None = None,
    *,
    out: Path | str | None = None,
    device: str = "cpu",
    resume: bool = False,
    display: Display | None = None,
) -> list[Evaluation]:
    """Teach a student; return its evaluations, the last one after the last step.

    Args:
        teacher: a model, or anything with ``look`` (``cache.CachedTopK``, say). Where the lesson reads the
            teacher's text it must be a model. None to train alone (sees labels, reads the corpus).
        out: a folder for records, checkpoints and the teacher's text; None keeps nothing.
        resume: go on from the newest checkpoint in ``out``, to the same bits on a CPU.

    Raises:
        ValueError: lesson, teacher and student do not fit together. Otherwise as ``train``.
    """
    lesson = lesson or DistillConfig()
    folder = None if out is None else Path(out)
    text = None
    if lesson.data_source == "teacher":
        if not isinstance(teacher, GPT):
            raise ValueError("a lesson that reads the teacher's text needs a model (GPT) that writes it")
        check_fit(student.config, teacher.config)
        where = None if folder is None else folder / "text"
        text = write_text(teacher.to(device), corpus, student.config.context, lesson, config.seed, where)
    looks = as_teacher(teacher, lesson, device)
    trainer = DistillationTrainer(student, corpus, config, lesson, looks, text, device)
    evaluations: list[Evaluation] = []
    folders = {} if folder is None else {"student": folder}
    train_in_turns({"student": trainer}, folders, resume=resume, display=display, keep=evaluations)
    return evaluations


def as_teacher(teacher: GPT | Teacher | None, lesson: DistillConfig, device: str = "cpu") -> Teacher | None:
    """Who answers under this lesson: nobody, the model, or what may be seen of it."""
    if not lesson.needs_looks or teacher is None:
        return None
    looks = LogitTeacher(teacher.to(device)) if isinstance(teacher, GPT) else teacher
    if lesson.signal == "top-k" and isinstance(looks, LogitTeacher):
        return TopKTeacher(looks, lesson.k, lesson.temperature)
    return looks
