"""Distillation settings: what the student sees of the teacher, and whose text it is trained on."""

from dataclasses import dataclass
from typing import Literal, get_args

from minimoe.distill.checks import Kind, check_settings
from minimoe.models.generation import check_sampling

Signal = Literal["labels", "logits", "top-k"]

DataSource = Literal["corpus", "teacher", "student"]


@dataclass(frozen=True)
class DistillConfig:
    """Two choices make the methods. The signal: the text's own next byte (labels), all of the teacher's
    logits, or its most likely tokens. And the text: the corpus, the teacher's samples or the student's own.

    labels on the corpus      ordinary training, without a teacher
    logits on the corpus      knowledge distillation, Hinton, Vinyals and Dean 2015 (arXiv 1503.02531)
    labels on teacher text    sequence-level distillation (arXiv 1606.07947), as R1 into small models
    logits on student text    on-policy: the student samples, the teacher scores (GKD, arXiv 2306.13649)

    Raises:
        ValueError: an invalid setting.
    """

    signal: Signal = "logits"
    """labels, logits or top-k of them"""
    data_source: DataSource = "corpus"
    """whose text: corpus, teacher or student"""
    kind: Kind = "forward"
    """divergence from the teacher: forward, reverse, jsd, skew or tv"""
    temperature: float = 1.0
    """T of both softmaxes; the divergence is multiplied by its square"""
    alpha: float = 0.0
    """weight of the cross-entropy with the text's next byte; 0 learns from the teacher alone"""
    beta: float = 0.5
    """weight of the teacher in jsd and skew"""
    k: int = 16
    """teacher tokens per position, for top-k"""
    prompt: int = 16
    """corpus bytes that start a generated text; they are not trained on"""
    teacher_tokens: int = 300_000
    """bytes of teacher text to generate, for the teacher as data source"""
    on_policy_fraction: float = 0.5
    """fraction of batches that the student generates, for the student as data source; the rest is corpus"""
    on_policy_start: float = 0.5
    """fraction of the run before the student generates; text of an untrained model is not worth scoring"""
    generation_batches: int = 8
    """batches that the student generates at a time; fewer are more on-policy and slower"""
    sampling_temperature: float = 1.0
    """temperature of the generated text"""
    top_p: float = 1.0
    """nucleus of the generated text"""

    def __post_init__(self) -> None:
        if self.signal not in get_args(Signal) or self.data_source not in get_args(DataSource):
            raise ValueError(
                f"signal ({self.signal!r}) must be one of {', '.join(get_args(Signal))}, and data_source "
                f"({self.data_source!r}) one of {', '.join(get_args(DataSource))}"
            )
        if self.signal == "labels" and self.data_source == "student":
            raise ValueError("a student learns nothing from labels of its own text; use signal='logits'")
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
    def needs_teacher(self) -> bool:
        """Whether the teacher predicts every batch."""
        return self.signal != "labels"
