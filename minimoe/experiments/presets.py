"""The main job: a mixture of experts against dense networks, trained on the same batches in turn.

Three models: the mixture with its shared expert, a dense network with the mixture's *active*
parameters (so with its arithmetic a token), and one with its *total* parameters (so with its memory).
All train at a constant rate after the warm-up and are evaluated with averaged weights, so that every
point of a curve is a fair place to stop; a cosine would favour whoever reaches its end.
"""

from dataclasses import dataclass, replace
from typing import Literal

from minimoe.cost import dense_width
from minimoe.models.config import ModelConfig
from minimoe.training.config import TrainConfig

PresetName = Literal["quick", "standard", "gpu"]


@dataclass(frozen=True)
class Preset:
    """A size of comparison: the mixture's shape, and how all three train, each at a rate of its own.

    The rates are the best of a grid that was the same for all (``benchmarks/search.py``): of quick's whole
    run, of the first 250 steps of standard; those of gpu were not searched.
    """

    moe: ModelConfig
    training: TrainConfig
    lr: dict[str, float]

    def models(self) -> dict[str, ModelConfig]:
        """The three configurations by name."""
        return {
            "dense-active": replace(self.moe, n_experts=0, hidden_dim=dense_width(self.moe, active=True)),
            "dense-total": replace(self.moe, n_experts=0, hidden_dim=dense_width(self.moe, active=False)),
            "moe": self.moe,
        }


_FAIR = TrainConfig(schedule="constant", average=0.1)

PRESETS: dict[str, Preset] = {
    "quick": Preset(
        ModelConfig(dim=64, n_layers=3, n_heads=2, context=128, n_experts=32, top_k=4, expert_dim=32),
        replace(_FAIR, steps=600, warmup=30, eval_every=30, checkpoint_every=100),
        {"dense-active": 3e-3, "dense-total": 3e-3, "moe": 3e-3},
    ),
    "standard": Preset(
        ModelConfig(dim=192, n_layers=4, n_heads=3, context=128, n_experts=32, top_k=4, expert_dim=96),
        replace(_FAIR, steps=1500, warmup=50, eval_every=50, checkpoint_every=50),
        {"dense-active": 1e-3, "dense-total": 1e-3, "moe": 1e-3},
    ),
    "gpu": Preset(
        ModelConfig(dim=512, n_layers=8, n_heads=8, context=256, n_experts=64, top_k=6, expert_dim=256),
        replace(
            _FAIR,
            steps=3000,
            batch_size=64,
            warmup=100,
            eval_every=100,
            checkpoint_every=500,
            autocast="bf16",
        ),
        {"dense-active": 1e-3, "dense-total": 1e-3, "moe": 1e-3},
    ),
}
