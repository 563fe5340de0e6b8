"""[speed] ``kd_loss`` from hidden states, one chunk of tokens at a time, so all logits never exist at once.

With a large vocabulary the logits are the largest tensors of a training step, and distillation has two of
them, each with its softmax. Here both heads are applied to a chunk of tokens, and the chunk's gradient is
computed immediately, so that its logits can be freed. Only the gradients of the hidden states and of the head
are kept; backward multiplies them by the incoming gradient. This is the idea of Liger Kernel's fused linear
losses (arXiv 2410.10989), in plain PyTorch.

Dimensions: T = B*L tokens, V vocabulary, D width (the student's and the teacher's may differ).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimoe.distill.checks import Kind, check_settings, check_tokens
from minimoe.distill.losses import kd_loss

CHUNK_BYTES = 32 * 2**20  # of float32 logits per chunk; large enough for fast matmuls


def chunked_kd_loss(
    student_hidden: Tensor, student_head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor,
    targets: Tensor | None = None, *, kind: Kind = "forward", temperature: float = 1.0, alpha: float = 0.5,
    beta: float = 0.5, ignore_index: int = -100, mask: Tensor | None = None, chunk_size: int | None = None,
) -> Tensor:  # fmt: skip
    """``kd_loss(student_hidden @ student_head.T, teacher_hidden @ teacher_head.T, ...)``, the mean over the
    tokens that count, and its gradients, in the memory of one chunk's logits. Second derivatives are not
    supported.

    Args:
        student_hidden, teacher_hidden: (..., D), the inputs of the heads. Each has its own D.
        student_head, teacher_head: (V, D). The student's gradient is accumulated in float32 or wider.
        chunk_size: tokens per chunk; by default as many as have 32 MB of float32 logits.
        Other arguments are those of ``kd_loss``.

    Raises:
        ValueError, TypeError: as ``kd_loss``; ValueError also for chunk_size below 1 or a head of the wrong
            shape.
    """
    check_settings(kind, temperature, alpha, beta)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size ({chunk_size}) must be at least 1, or None")
    logits = {
        "student": _empty_logits("student", student_hidden, student_head),
        "teacher": _empty_logits("teacher", teacher_hidden, teacher_head),
    }
    valid = check_tokens(targets, ignore_index, mask, **logits)
    student_TD = student_hidden.reshape(-1, student_hidden.shape[-1])
    teacher_TD = teacher_hidden.detach().reshape(-1, teacher_hidden.shape[-1])
    if valid is not None:  # the head's gradient multiplies every hidden state, and 0 · NaN = NaN
        student_TD = student_TD.masked_fill(~valid.reshape(-1, 1), 0)

    def sum_over(student_logits: Tensor, tokens: slice) -> Tensor:
        targets_T, mask_T = (None if x is None else x.reshape(-1)[tokens] for x in (targets, mask))
        try:
            return kd_loss(
                student_logits, teacher_TD[tokens] @ teacher_head.detach().T, targets_T, kind=kind,
                temperature=temperature, alpha=alpha, beta=beta, ignore_index=ignore_index, mask=mask_T,
                reduction="sum",
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"in the chunk from token {tokens.start}: {error}") from error

    chunk_size = chunk_size or max(1, CHUNK_BYTES // (4 * len(student_head)))
    # Inside a Function gradients are always disabled, so their state is passed in.
    total = _SumInChunks.apply(student_TD, student_head, sum_over, chunk_size, torch.is_grad_enabled())
    return total / (len(student_TD) if valid is None else valid.sum().clamp(min=1))


def _empty_logits(name: str, hidden: Tensor, head: Tensor) -> Tensor:
    """(..., V) with the logits' shape and dtype, without memory. ValueError for a head of the wrong shape."""
    if head.ndim != 2 or hidden.ndim == 0 or hidden.shape[-1] != head.shape[-1]:
        raise ValueError(
            f"{name} hidden {tuple(hidden.shape)} and head {tuple(head.shape)} must be (..., D) and (V, D), "
            "with the same D; transpose a head that is (D, V)"
        )
    return torch.empty((*hidden.shape[:-1], len(head)), dtype=hidden.dtype, device="meta")


class _SumInChunks(torch.autograd.Function):
    """sum_over(hidden_TD @ head_VD.T) and its gradients, computed one chunk of tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head_VD: Tensor, sum_over: Callable[[Tensor, slice], Tensor],
        chunk_size: int, with_grad: bool,
    ) -> Tensor:  # fmt: skip
        for_hidden, for_head = (with_grad and needed for needed in ctx.needs_input_grad[:2])
        wide = torch.promote_types(head_VD.dtype, torch.float32)
        grad_hidden_TD = torch.empty_like(hidden_TD) if for_hidden else None
        # A bf16 sum over many chunks stops growing once a chunk is smaller than its last digit.
        grad_head_VD = torch.zeros_like(head_VD, dtype=wide) if for_head else None
        total = torch.zeros((), dtype=wide, device=hidden_TD.device)
        for start in range(0, len(hidden_TD), chunk_size):
            tokens = slice(start, start + chunk_size)
            logits = hidden_TD[tokens] @ head_VD.T
            with torch.set_grad_enabled(for_hidden or for_head):
                loss = sum_over(logits.requires_grad_(for_hidden or for_head), tokens)
            total = total + loss.detach()
            if not loss.requires_grad:
                continue
            (grad,) = torch.autograd.grad(loss, logits)
            if grad_hidden_TD is not None:
                grad_hidden_TD[tokens] = grad @ head_VD
            if grad_head_VD is not None:
                grad_head_VD += grad.T @ hidden_TD[tokens]
        ctx.save_for_backward(grad_hidden_TD, grad_head_VD)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        # Autograd rounds the head's gradient to the head's dtype.
        grads = [None if saved is None else grad_total * saved for saved in ctx.saved_tensors]
        return (*grads, None, None, None)
