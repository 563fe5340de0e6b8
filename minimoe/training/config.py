"""How to train: everything that fixes a run beside the model and the text."""

import math
from dataclasses import dataclass, replace
from typing import Literal

Autocast = Literal["off", "bf16", "auto"]

Balance = Literal["none", "switch", "sequence", "bias", "bias+sequence"]

# Weights of the balance losses where none is given: Switch's; the same for a sequence-wise loss that works
# alone; and beside the bias that of DeepSeek-V3, where it only guards against single lopsided sequences.
BALANCE_WEIGHTS: dict[str, float] = {"switch": 1e-2, "sequence": 1e-2, "bias+sequence": 1e-4}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that fixes a run beside the model and the text. Raises ValueError for what cannot be."""

    steps: int = 1000
    """optimizer steps"""
    batch_size: int = 16
    """sequences a micro-batch"""
    accumulate: int = 1
    """micro-batches an optimizer step"""
    lr: float = 3e-3
    """peak learning rate"""
    warmup: int = 50
    """steps over which the rate rises to its peak"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """how the rate goes on from its peak"""
    final_lr: float = 0.1
    """where the cosine ends, as a fraction of the peak"""
    average: float = 0.0
    """evaluate and save weights averaged over about this last fraction of the run so far; 0: as they are"""
    weight_decay: float = 0.1
    """decoupled weight decay, on matrices only"""
    beta1: float = 0.9
    """AdamW's decay of the mean of gradients"""
    beta2: float = 0.95
    """AdamW's decay of the mean of squared gradients"""
    clip: float = 1.0
    """largest gradient norm"""
    balance: Balance = "bias"
    """what keeps the experts equally busy: a loss (switch, sequence), the bias of the choice, or nothing"""
    balance_weight: float | None = None
    """of the balance loss, a layer [default: switch, sequence 0.01; bias+sequence 0.0001]"""
    balance_speed: float = 1e-3
    """how far the balance bias moves in a step"""
    autocast: Autocast = "off"
    """off: float32; bf16: matmuls in bfloat16; auto: bf16 where a measured step is faster with it"""
    eval_every: int = 100
    """steps between evaluations"""
    eval_sequences: int = 32
    """validation sequences a domain"""
    checkpoint_every: int = 200
    """steps between checkpoints"""
    seed: int = 0
    """of the initial weights and the batches"""

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
        if self.balance not in (*BALANCE_WEIGHTS, "none", "bias"):
            raise ValueError(
                f"balance must be none, switch, sequence, bias or bias+sequence, not {self.balance!r}"
            )

        if self.balance_weight is not None and self.balance not in BALANCE_WEIGHTS:
            raise ValueError(
                f"balance_weight ({self.balance_weight}) weighs a loss, and balance {self.balance!r} has "
                f"none; leave it out, or choose one of {', '.join(BALANCE_WEIGHTS)}"
            )

    @property
    def loss_weight(self) -> float:
        """Of the balance loss, a layer; 0 where there is none."""
        default = BALANCE_WEIGHTS.get(self.balance, 0.0)
        return default if self.balance_weight is None else self.balance_weight

    def shortened(self, steps: int) -> "TrainConfig":
        """The same for ``steps`` steps: evaluated ten times at least, the warm-up no longer than the run."""
        every = max(1, min(self.eval_every, steps // 10))
        return replace(self, steps=steps, eval_every=every, warmup=min(self.warmup, steps))

    def lr_at(self, step: int) -> float:
        """The rate of step ``step`` (0 is the first)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        fraction = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return self.lr * (self.final_lr + (1 - self.final_lr) * fraction)
