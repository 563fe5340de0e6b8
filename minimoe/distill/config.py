"""How a student is taught: what it sees of the teacher, and whose text it reads."""

from dataclasses import dataclass
from typing import Literal, get_args

from minimoe.distill.losses import Kind, check_settings
from minimoe.models.generation import check_sampling

Signal = Literal["labels", "logits", "top-k"]

DataSource = Literal["corpus", "teacher", "student"]


@dataclass(frozen=True)
class DistillConfig:
    """Two questions make the methods. What does the student see: the text's own next byte (labels), all the
    teacher's logits, or its likeliest tokens? And whose text is it: the corpus', the teacher's, its own?

    labels of the corpus      training alone, without a teacher
    logits of the corpus      Hinton, Vinyals, Dean 2015 (arXiv 1503.02531)
    labels of the teacher     sequence-level distillation (arXiv 1606.07947), as R1 into small models
    logits of the student     on-policy: the student writes, the teacher grades (GKD, arXiv 2306.13649)

    Raises:
        ValueError: a setting that cannot be.
    """

    signal: Signal = "logits"
    """labels, logits, or the top-k of them"""
    data_source: DataSource = "corpus"
    """who wrote the text: corpus, teacher or student"""
    kind: Kind = "forward"
    """divergence from the teacher: forward, reverse, jsd, skew, tv"""
    temperature: float = 1.0
    """T of both softmaxes; the divergence is multiplied by its square"""
    alpha: float = 0.0
    """weight of the text's own next byte; 0 learns from the teacher alone"""
    beta: float = 0.5
    """of jsd and skew"""
    k: int = 16
    """tokens seen of the teacher, for top-k"""
    prompt: int = 16
    """bytes of the corpus that a written text starts from; they are not learned"""
    teacher_tokens: int = 300_000
    """bytes that the teacher writes, where its text is read"""
    on_policy_fraction: float = 0.5
    """share of batches that the student writes, where its text is read; the others are the corpus'"""
    on_policy_start: float = 0.5
    """share of the run after which the student begins to write: at first it has no words worth grading"""
    generation_batches: int = 8
    """batches that the student writes at a time: fewer are fresher and slower"""
    sampling_temperature: float = 1.0
    """of what is written"""
    top_p: float = 1.0
    """nucleus of what is written"""

    def __post_init__(self) -> None:
        if self.signal not in get_args(Signal) or self.data_source not in get_args(DataSource):
            raise ValueError(
                f"signal ({self.signal!r}) must be one of {', '.join(get_args(Signal))}, and data_source "
                f"({self.data_source!r}) one of {', '.join(get_args(DataSource))}"
            )
        if self.signal == "labels" and self.data_source == "student":
            raise ValueError("a student that sees only labels learns nothing from its own text; see logits")
        check_settings(self.kind, self.temperature, self.alpha, self.beta)
        check_sampling(self.sampling_temperature, self.top_p)
        for name in ("k", "prompt", "teacher_tokens", "generation_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if not 0 < self.on_policy_fraction <= 1:
            raise ValueError(f"on_policy_fraction ({self.on_policy_fraction}) must be above 0 and at most 1")
        if not 0 <= self.on_policy_start < 1:
            raise ValueError(f"on_policy_start ({self.on_policy_start}) must be at least 0 and below 1")

    @property
    def needs_looks(self) -> bool:
        """Whether the teacher is asked about every batch."""
        return self.signal != "labels"
