"""The training configuration: everything that determines a run besides the model and the text."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

Autocast = Literal["off", "bf16", "auto"]

Balance = Literal["none", "switch", "sequence", "bias", "bias+sequence"]

# Default weights of the auxiliary losses: Switch's, also for a sequence-wise loss on its own; with the bias
# DeepSeek-V3's, where the loss only prevents extreme imbalance within a sequence.
BALANCE_WEIGHTS: dict[str, float] = {"switch": 1e-2, "sequence": 1e-2, "bias+sequence": 1e-4}


@dataclass(frozen=True)
class TrainConfig:
    """What determines a run besides the model and the text. Raises ValueError for invalid values."""

    steps: int = 1000
    """optimizer steps"""
    batch_size: int = 16
    """sequences per micro-batch"""
    accumulate: int = 1
    """micro-batches per optimizer step (gradient accumulation)"""
    lr: float = 3e-3
    """peak learning rate"""
    warmup: int = 50
    """steps of linear learning rate warm-up"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """learning rate schedule after warm-up"""
    final_lr: float = 0.1
    """final learning rate of the cosine schedule, as a fraction of the peak"""
    average: float = 0.0
    """evaluate and save weights averaged over about this last fraction of the run so far; 0: no averaging"""
    weight_decay: float = 0.1
    """decoupled weight decay, on matrices only"""
    beta1: float = 0.9
    """AdamW's decay of the gradients' running mean"""
    beta2: float = 0.95
    """AdamW's decay of the squared gradients' running mean"""
    clip: float = 1.0
    """maximal gradient norm"""
    balance: Balance = "bias"
    """load balancing: an auxiliary loss (switch, sequence), a bias on the expert choice, both, or none"""
    balance_weight: float | None = None
    """weight of the auxiliary loss, per layer [default: switch, sequence 0.01; bias+sequence 0.0001]"""
    balance_speed: float = 1e-3
    """change of the bias per step"""
    autocast: Autocast = "off"
    """off: float32; bf16: matmuls in bfloat16; auto: bf16 if a measured step is faster with it"""
    eval_every: int = 100
    """steps between evaluations"""
    eval_sequences: int = 32
    """validation sequences per domain"""
    checkpoint_every: int = 200
    """steps between checkpoints"""
    seed: int = 0
    """random seed of initial weights and batches"""

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch_size", "accumulate", "eval_every", "eval_sequences", "checkpoint_every"
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if not (self.lr > 0 and self.clip > 0):
            raise ValueError(f"lr ({self.lr}) and clip ({self.clip}) must be above 0")
        for name in ("final_lr", "beta1", "beta2", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be between 0 and 1")
        for name in ("warmup", "weight_decay", "balance_weight", "balance_speed", "seed"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} ({value}) must be 0 or more")
        if self.balance not in (methods := get_args(Balance)):
            raise ValueError(
                f"balance must be {', '.join(methods[:-1])} or {methods[-1]}, not {self.balance!r}"
            )
        if self.balance_weight is not None and self.balance not in BALANCE_WEIGHTS:
            raise ValueError(
                f"balance_weight ({self.balance_weight}) needs an auxiliary loss, but balance is "
                f"{self.balance!r}; omit it, or choose one of {', '.join(BALANCE_WEIGHTS)}"
            )

    @property
    def loss_weight(self) -> float:
        """Weight of the auxiliary loss, per layer; 0 if there is none."""
        default = BALANCE_WEIGHTS.get(self.balance, 0.0)
        return default if self.balance_weight is None else self.balance_weight

    def shortened(self, steps: int) -> "TrainConfig":
        """The same run with ``steps`` steps, at least ten evaluations, and no more warm-up than steps."""
        every = max(1, min(self.eval_every, steps // 10))
        return replace(self, steps=steps, eval_every=every, warmup=min(self.warmup, steps))

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        fraction = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return self.lr * (self.final_lr + (1 - self.final_lr) * fraction)
