"""[evidence] Benchmarks of distillation: what a teacher adds to a training step, and the chunked loss.

Dimensions: B batch, T tokens, V vocabulary, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minimoe.bench.case import BuiltCase, Case, Work
from minimoe.bench.checks import require_close
from minimoe.bench.models import (
    Text,
    default_corpus,
    make_model,
    require_same_loss,
    step_work,
    training_config,
)
from minimoe.cost import flops_per_token, parameters
from minimoe.distill.chunked_loss import chunked_kd_loss
from minimoe.distill.config import DistillConfig
from minimoe.distill.losses import kd_loss
from minimoe.distill.teachers import LogitTeacher
from minimoe.distill.trainer import DistillationTrainer
from minimoe.models.config import ModelConfig
from minimoe.tools.memory import saved_activation_bytes
from minimoe.training.trainer import Trainer

LABELS, TEACHER_LOGITS = "labels", "teacher logits"


def build_distill_step(
    case: Case,
    device: torch.device,
    *,
    student: ModelConfig,
    teacher: ModelConfig,
    corpus: Text = default_corpus,
) -> BuiltCase:
    """A student's step on its teacher's logits, the teacher's forward pass included, and one on labels."""

    def trainer(config: DistillConfig, teacher: LogitTeacher | None) -> DistillationTrainer:
        model, training = make_model(student, device), training_config(case)
        return DistillationTrainer(model, corpus(), training, config, teacher, None, str(device))

    trainers: dict[str, Trainer] = {
        LABELS: trainer(DistillConfig(signal="labels"), None),
        TEACHER_LOGITS: trainer(DistillConfig(), LogitTeacher(make_model(teacher, device))),
    }

    def check() -> None:  # same weights and text: the cross-entropy that both report is the same
        require_same_loss(trainers, LABELS, 1e-5)

    step = step_work(student, case)
    forward = case.shape["T"] * flops_per_token(teacher, training=False)
    with_teacher = Work(step.flops + forward, step.bytes + 4 * parameters(teacher))
    tasks = {name: trainer.train_step for name, trainer in trainers.items()}
    return BuiltCase(check, tasks, {LABELS: step, TEACHER_LOGITS: with_teacher})


def plain_kd_loss(
    student_TD: Tensor, student_VD: Tensor, teacher_TD: Tensor, teacher_VD: Tensor, *args: Any, **options: Any
) -> Tensor:
    """The loss that ``chunked_kd_loss`` computes, from all logits at once."""
    return kd_loss(student_TD @ student_VD.T, teacher_TD @ teacher_VD.T, *args, **options)


LOSSES: dict[str, Callable[..., Tensor]] = {"plain": plain_kd_loss, "chunked": chunked_kd_loss}


class _Loss(nn.Module):
    """A distillation loss on hidden states, with the heads of student and teacher as its weights."""

    def __init__(self, loss: Callable[..., Tensor], head_VD: Tensor, teacher_VD: Tensor) -> None:
        super().__init__()
        self.loss = loss
        self.head_VD, self.teacher_VD = nn.Parameter(head_VD.clone()), nn.Buffer(teacher_VD)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """The teacher's hidden states are the student's, so that there is a single input."""
        return self.loss(hidden_TD, self.head_VD, hidden_TD.detach(), self.teacher_VD)


def build_chunked_loss(case: Case, device: torch.device) -> BuiltCase:
    """The loss and its gradients from all logits at once, and chunk by chunk; memory is what is kept for the
    backward pass."""
    T, V, D = (case.shape[letter] for letter in "TVD")
    head_VD, teacher_VD = torch.randn(2, V, D, device=device)
    hidden_TD = (torch.randn(T, D, device=device) * D**-0.5).requires_grad_()
    losses = {name: _Loss(loss, head_VD, teacher_VD) for name, loss in LOSSES.items()}

    def gradients(loss: _Loss) -> list[Tensor]:
        value = loss(hidden_TD)
        return [value, *torch.autograd.grad(value, [hidden_TD, loss.head_VD])]

    def check() -> None:
        plain, chunked = (gradients(loss) for loss in losses.values())
        names = ("loss", "gradient of x", "gradient of the head")
        for name, actual, expected in zip(names, chunked, plain, strict=True):
            require_close(f"chunked, {name}", actual, expected, 1e-4)

    def memory() -> dict[str, int]:
        return {name: saved_activation_bytes(loss, hidden_TD) for name, loss in losses.items()}

    tasks = {name: partial(gradients, loss) for name, loss in losses.items()}
    # Four matmuls; the logits of both, written and read.
    work = Work(8 * T * V * D, 4 * (6 * T * V + 3 * V * D))
    return BuiltCase(check, tasks, dict.fromkeys(losses, work), memory)
