"""Distillation: the small learn from the big."""

from minimoe.distill.chunked import chunked_kd_loss
from minimoe.distill.lesson import Lesson
from minimoe.distill.losses import divergence, kd_loss
from minimoe.distill.sparse import TopK, sparse_divergence, sparse_kd_loss, top_k
from minimoe.distill.training import Student, distill

__all__ = [
    "Lesson", "Student", "TopK", "chunked_kd_loss", "distill", "divergence", "kd_loss", "sparse_divergence",
    "sparse_kd_loss", "top_k",
]  # fmt: skip
