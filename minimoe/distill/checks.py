"""Argument checks of the distillation losses, and error messages that say which logits are wrong.

Dimensions: ... the leading axes (B batch and L sequence length, or T tokens), V vocabulary, K teacher entries
per token.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["forward", "reverse", "jsd", "skew", "tv"]

Reduction = Literal["mean", "sum", "none"]

MAX_SUM = 1.01  # of a token's probabilities; float16's rounding stays well below


def check_settings(
    kind: Kind, temperature: float, alpha: float = 0.5, beta: float = 0.5, reduction: Reduction = "mean"
) -> None:
    """Raise ValueError for invalid settings."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind ({kind!r}) must be one of {', '.join(get_args(Kind))}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature ({temperature}) must be above 0 and finite")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha ({alpha}) must be from 0 to 1")
    if kind in ("jsd", "skew") and not 0 < beta < 1:
        raise ValueError(
            f"beta ({beta}) must be above 0 and below 1: at both ends jsd is 0 by definition (other "
            "libraries return a KL divergence there), at 0 skew is forward, at 1 it is 0; use kind='forward' "
            "or kind='reverse'"
        )
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction ({reduction!r}) must be one of {', '.join(get_args(Reduction))}")


def check_tokens(
    targets: Tensor | None, ignore_index: int, mask: Tensor | None, **logits: Tensor
) -> Tensor | None:
    """(...) bool: which tokens count, None if all do. Raises what ``losses.kd_loss`` lists."""
    first, student = next(iter(logits.items()))
    for name, x in logits.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} logits are {x.dtype}; pass floats")
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(f"{name} logits are {tuple(x.shape)}; pass (..., V) with at least one token")
        if x.shape[-1] != student.shape[-1]:
            raise ValueError(
                f"{first} has {student.shape[-1]} logits per token and {name} {x.shape[-1]}; truncate the "
                "padding, or pad both to the same size with -inf"
            )
        if x.shape != student.shape:
            raise ValueError(
                f"{first} logits {tuple(student.shape)}, {name} {tuple(x.shape)}; pass the same tokens"
            )
    for name, given, dtype in (("targets", targets, torch.int64), ("mask", mask, torch.bool)):
        if given is not None and given.dtype != dtype:
            raise TypeError(f"{name}: {given.dtype}; pass {dtype}")
        if given is not None and given.shape != student.shape[:-1]:
            shape = tuple(student.shape[:-1])
            raise ValueError(f"{name}: {tuple(given.shape)}; pass {shape}, one per token")
    if targets is None:
        return mask
    valid = targets != ignore_index if mask is None else mask & (targets != ignore_index)
    if is_inspectable(targets) and (wrong := valid & ((targets < 0) | (targets >= student.shape[-1]))).any():
        raise ValueError(
            f"{int(wrong.sum())} of {wrong.numel()} targets are outside 0 … {student.shape[-1] - 1}, the "
            f"first {int(targets[wrong][0])}; ignore_index ({ignore_index}) leaves a token out"
        )
    return valid


def check_top(log_probs: Tensor, ids: Tensor, student_logits: Tensor, valid: Tensor | None) -> None:
    """Raise what ``topk_loss.sparse_kd_loss`` lists for the teacher's top K."""
    size = student_logits.shape[-1]
    if not log_probs.is_floating_point() or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"log_probs are {log_probs.dtype} and ids {ids.dtype}; pass floats and integers")
    if log_probs.shape != ids.shape or ids.shape[:-1] != student_logits.shape[:-1]:
        raise ValueError(
            f"log_probs {tuple(log_probs.shape)} and ids {tuple(ids.shape)} must both be "
            f"{(*student_logits.shape[:-1], 'K')}, like the student's tokens"
        )
    if not 1 <= ids.shape[-1] <= size:
        raise ValueError(f"K ({ids.shape[-1]}) must be from 1 to {size}, the student's vocabulary size")
    if not is_inspectable(ids):
        return
    ids = ids.long()
    counts = torch.ones_like(ids[..., :1], dtype=torch.bool) if valid is None else valid.unsqueeze(-1)
    wrong = counts & ((ids < 0) | (ids >= size))
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {ids.numel()} ids are outside 0 … {size - 1}, the first is "
            f"{int(ids[wrong][0])}; teacher and student must share the vocabulary"
        )
    largest = float(log_probs.detach().double().exp().sum(-1).masked_fill(~counts.squeeze(-1), 0).max())
    if largest > MAX_SUM:
        raise ValueError(
            f"a token's probabilities add up to {largest:.3g}, above 1: these are not log-probabilities; use "
            "log_softmax over the whole vocabulary, or top_k"
        )


def is_inspectable(x: Tensor) -> bool:
    """Whether reading a value is free: a GPU would have to synchronize, and torch.compile has no values."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def explain_nan(loss: Tensor, valid: Tensor | None, **logits: Tensor) -> None:
    """Raise ValueError if a loss is NaN, naming the logits that made it so; otherwise read only the loss."""
    if not is_inspectable(loss) or not loss.isnan().any():
        return
    for name, x in logits.items():
        bad = x.isnan() | x.isposinf() | x.amax(-1, keepdim=True).isneginf()
        places = (bad if valid is None else bad & valid.unsqueeze(-1)).nonzero()
        if len(places):
            raise ValueError(
                f"the loss is NaN because {len(places)} of {x.numel()} {name} logits are NaN or +inf, or "
                f"all of a token's are -inf, the first at {tuple(places[0].tolist())}; lower the learning "
                "rate, or mask the token"
            )
