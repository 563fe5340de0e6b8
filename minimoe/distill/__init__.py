"""Knowledge distillation: losses, and training of a small student by a large teacher."""

from typing import TYPE_CHECKING, Any

from minimoe.distill.chunked_loss import chunked_kd_loss
from minimoe.distill.config import DistillConfig
from minimoe.distill.losses import divergence, kd_loss
from minimoe.distill.topk_loss import TopK, sparse_divergence, sparse_kd_loss, top_k

if TYPE_CHECKING:
    from minimoe.distill.trainer import DistillationTrainer, distill

__all__ = [
    "DistillConfig", "DistillationTrainer", "TopK", "chunked_kd_loss", "distill", "divergence", "kd_loss",
    "sparse_divergence", "sparse_kd_loss", "top_k",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load the trainer on first use, since the losses do not need it."""
    if name not in ("DistillationTrainer", "distill"):
        raise AttributeError(f"module 'minimoe.distill' has no attribute {name!r}")
    from minimoe.distill import trainer

    return getattr(trainer, name)
