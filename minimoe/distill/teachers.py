"""Teachers: models whose predictions a student learns from, as logits or as their most likely tokens.

A teacher may be dense, a mixture of experts or quantized to 8 bits. ``predict`` is called for the batch of a
given step, so predictions may be computed live (``LogitTeacher``, ``TopKTeacher``) or read from a disk
(``logit_cache.CachedTopK``). Text that a teacher generates is in ``teacher_text``.

Dimensions: B batch, L sequence length, V vocabulary, K teacher entries per token.
"""

from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from minimoe.distill.topk_loss import TopK, top_k
from minimoe.models.gpt import GPT

TeacherOutput: TypeAlias = Tensor | TopK  # logits (B, L, V), or the K most likely tokens at each position


class Teacher(Protocol):
    """Predicts the next tokens of a student's text."""

    def predict(self, tokens_BL: Tensor, step: int, micro: int) -> TeacherOutput:
        """Predict what follows each token of micro-batch ``micro`` of step ``step``."""
        ...


class LogitTeacher:
    """A model in memory, put into eval mode for good.

    The last prediction is cached, so students that train on the same batch in turn share one forward pass.
    """

    def __init__(self, model: GPT) -> None:
        self.model = model.eval()
        self.last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def predict(self, tokens_BL: Tensor, step: int = 0, micro: int = 0) -> Tensor:
        """(B, L, V) logits."""
        if self.last is None or not torch.equal(self.last[0], tokens_BL):
            with torch.autocast(tokens_BL.device.type, enabled=False):
                self.last = tokens_BL, self.model(tokens_BL)[0]
        return self.last[1]


class TopKTeacher:
    """Only the ``k`` most likely tokens of a teacher's prediction, as an API may show them.

    Args:
        temperature: of the probabilities; the student's loss must use the same.
    """

    def __init__(self, teacher: LogitTeacher, k: int, temperature: float = 1.0) -> None:
        self.teacher, self.k, self.temperature = teacher, k, temperature
        self.model = teacher.model

    def predict(self, tokens_BL: Tensor, step: int = 0, micro: int = 0) -> TopK:
        """K log-probabilities and their token ids, (B, L, K) each."""
        return top_k(self.teacher.predict(tokens_BL, step, micro), self.k, temperature=self.temperature)
