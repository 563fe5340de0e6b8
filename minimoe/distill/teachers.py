"""What can be seen of a teacher: all its logits, its likeliest tokens, or only the text that it writes.

A teacher may be dense, a mixture or in 8 bits; it is a ``GPT`` here. ``look`` answers for the batch of a
step, so that an answer may be computed now (``LogitTeacher``, ``TopKTeacher``) or have been stored before
(``cache.CachedTopK``). A teacher of which only text can be had is not looked at: see ``writing``.

Dimensions: B batch, L sequence length, V vocabulary, K teacher entries a token.
"""

from dataclasses import replace
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from minimoe.distill.topk_loss import TopK, top_k
from minimoe.models.gpt import GPT
from minimoe.precision.linear import quantize_weights_

TeacherOutput: TypeAlias = Tensor | TopK

"""logits (B, L, V), or the K likeliest tokens of each place."""


class Teacher(Protocol):
    """Says what it thinks of a student's text."""

    def predict(self, tokens_BL: Tensor, step: int, micro: int) -> TeacherOutput:
        """What follows each token, as the teacher thinks. ``step`` and ``micro`` say which batch it is."""
        ...


class LogitTeacher:
    """A model at hand. It is put into eval mode, and stays there.

    It remembers its last answer, so that students who read the same batch in turn share one look.
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
    """Of a teacher's answer the ``k`` likeliest tokens alone, as an interface may show them.

    Args:
        temperature: of the probabilities; the student's loss must have the same.
    """

    def __init__(self, teacher: LogitTeacher, k: int, temperature: float = 1.0) -> None:
        self.teacher, self.k, self.temperature = teacher, k, temperature
        self.model = teacher.model

    def predict(self, tokens_BL: Tensor, step: int = 0, micro: int = 0) -> TopK:
        """K log-probabilities and their tokens, (B, L, K) each."""
        return top_k(self.teacher.predict(tokens_BL, step, micro), self.k, temperature=self.temperature)


def in_8_bits(model: GPT, recipe: str = "deepseek-v3") -> GPT:
    """A copy of a trained model whose linear layers hold 8-bit codes alone."""
    weight = model.embedding.weight
    copy = GPT(replace(model.config, precision=recipe)).to(weight.device, weight.dtype)
    copy.load_state_dict(model.state_dict())
    quantize_weights_(copy)
    return copy
