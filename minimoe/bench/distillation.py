"""What distillation adds to a step, and its loss a chunk at a time.

Dimensions: B batch, T tokens, V vocabulary, D width.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimoe.bench.case import Built, Case, Cost
from minimoe.bench.checks import require_close
from minimoe.bench.models import make_model, require_same_loss, step_cost, text, training_of
from minimoe.cost import flops_per_token, parameters
from minimoe.data.corpus import Corpus
from minimoe.distill.chunked_loss import chunked_kd_loss
from minimoe.distill.config import DistillConfig
from minimoe.distill.losses import kd_loss
from minimoe.distill.teachers import LogitTeacher
from minimoe.distill.trainer import DistillationTrainer
from minimoe.models.config import ModelConfig
from minimoe.tools.memory import bytes_kept_for_backward
from minimoe.training.trainer import Trainer


def lesson_step(
    case: Case, device: torch.device, *, student: ModelConfig, teacher: ModelConfig,
    corpus: Callable[[], Corpus] = text,
) -> Built:  # fmt: skip
    """A student's step from its teacher's logits, which the teacher computes within it, and one alone."""
    training, looks = training_of(case), LogitTeacher(make_model(teacher, device))
    alone = DistillationTrainer(
        make_model(student, device),
        corpus(),
        training,
        DistillConfig(signal="labels"),
        None,
        None,
        str(device),
    )
    taught = DistillationTrainer(
        make_model(student, device), corpus(), training, DistillConfig(), looks, None, str(device)
    )
    trainers: dict[str, Trainer] = {"alone": alone, "on logits": taught}

    def check() -> None:  # the same weights and text: the cross-entropy, which both report, is the same
        require_same_loss(trainers, "alone", 1e-5)

    both = step_cost(student, case)
    look = case.shape["T"] * flops_per_token(teacher, training=False)
    costs = {"alone": both, "on logits": Cost(both.flops + look, both.bytes + 4 * parameters(teacher))}
    return Built(check, {name: trainer.train_step for name, trainer in trainers.items()}, costs)


class _Loss(nn.Module):
    """A distillation loss of hidden states, with the two heads as its weights."""

    def __init__(self, head_VD: Tensor, teacher_VD: Tensor, chunked: bool) -> None:
        super().__init__()
        self.head_VD = nn.Parameter(head_VD.clone())
        self.teacher_VD: Tensor
        self.register_buffer("teacher_VD", teacher_VD)
        self.chunked = chunked

    def forward(self, hidden_TD: Tensor) -> Tensor:
        heads = self.head_VD, self.teacher_VD
        if self.chunked:  # the teacher's states are the student's, so that one tensor is all that goes in
            return chunked_kd_loss(hidden_TD, heads[0], hidden_TD.detach(), heads[1])
        return kd_loss(F.linear(hidden_TD, heads[0]), F.linear(hidden_TD.detach(), heads[1]))


def chunks(case: Case, device: torch.device) -> Built:
    """The loss and its gradients from all logits at once, and a chunk of tokens at a time; memory is what
    is kept for the backward pass."""
    T, V, D = (case.shape[letter] for letter in "TVD")
    head_VD, teacher_VD = torch.randn(2, V, D, device=device)
    hidden_TD = (torch.randn(T, D, device=device) * D**-0.5).requires_grad_()
    ways = {"plain": _Loss(head_VD, teacher_VD, False), "chunked": _Loss(head_VD, teacher_VD, True)}

    def gradients(way: _Loss) -> list[Tensor]:
        loss = way(hidden_TD)
        return [loss, *torch.autograd.grad(loss, [hidden_TD, way.head_VD])]

    def check() -> None:
        plain, chunked = (gradients(way) for way in ways.values())
        for what, ours, theirs in zip(("loss", "gradient of x", "gradient of the head"), chunked, plain,
                                      strict=True):  # fmt: skip
            require_close(f"chunked: {what}", ours, theirs, 1e-4)

    def memory() -> dict[str, int]:
        return {name: bytes_kept_for_backward(way, hidden_TD) for name, way in ways.items()}

    cost = Cost(8 * T * V * D, 4 * (6 * T * V + 3 * V * D))  # four products; logits of both there and back
    return Built(
        check, {n: partial(gradients, w) for n, w in ways.items()}, dict.fromkeys(ways, cost), memory
    )
