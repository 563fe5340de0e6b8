"""Distillation: the small learn from the big."""

from minimoe.distill.chunked_loss import chunked_kd_loss
from minimoe.distill.config import DistillConfig
from minimoe.distill.losses import divergence, kd_loss
from minimoe.distill.topk_loss import TopK, sparse_divergence, sparse_kd_loss, top_k
from minimoe.distill.trainer import DistillationTrainer, distill

__all__ = [
    "DistillConfig", "DistillationTrainer", "TopK", "chunked_kd_loss", "distill", "divergence", "kd_loss", "sparse_divergence",
    "sparse_kd_loss", "top_k",
]  # fmt: skip
