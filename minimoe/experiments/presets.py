"""[evidence] Presets: sizes of the comparison of a mixture of experts with dense networks.

Three models: the MoE model with its shared expert, a dense network with the MoE's *active* parameters (so
with equal FLOPs per token), and one with its *total* parameters (so with equal memory).
"""

from dataclasses import dataclass, replace
from typing import Literal

from minimoe.cost import dense_width
from minimoe.models.config import ModelConfig
from minimoe.training.config import TrainConfig

PresetName = Literal["quick", "standard", "gpu"]

# A constant learning rate after the warm-up, and evaluation with averaged weights: every point of a loss
# curve is a fair place to stop. A cosine schedule would favor the model that reaches its end.
COMPARABLE = TrainConfig(schedule="constant", average=0.1)

LARGE_BATCH = replace(COMPARABLE, batch_size=64, autocast="bf16")


@dataclass(frozen=True)
class Preset:
    """The MoE model, and how all three models train, each with its own learning rate.

    The rates are the best of a grid that was the same for all models (``lr_search``): over the whole run of
    quick and over the first 250 steps of standard. Those of gpu were not searched.
    """

    moe: ModelConfig
    training: TrainConfig
    lr: dict[str, float]

    def models(self) -> dict[str, ModelConfig]:
        """The three configurations by name."""
        moe = self.moe
        active, total = (
            replace(moe, n_experts=0, hidden_dim=dense_width(moe.expert_dim, moe.n_experts, n + moe.n_shared))
            for n in (moe.top_k, moe.n_experts)
        )
        return {"dense-active": active, "dense-total": total, "moe": moe}


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        ModelConfig(dim=64, n_layers=3, n_heads=2, context=128, n_experts=32, top_k=4, expert_dim=32),
        replace(COMPARABLE, steps=600, warmup=30, eval_every=30, checkpoint_every=100),
        {"dense-active": 3e-3, "dense-total": 3e-3, "moe": 3e-3},
    ),
    "standard": Preset(
        ModelConfig(dim=192, n_layers=4, n_heads=3, context=128, n_experts=32, top_k=4, expert_dim=96),
        replace(COMPARABLE, steps=1500, warmup=50, eval_every=50, checkpoint_every=50),
        {"dense-active": 1e-3, "dense-total": 1e-3, "moe": 1e-3},
    ),
    "gpu": Preset(
        ModelConfig(dim=512, n_layers=8, n_heads=8, context=256, n_experts=64, top_k=6, expert_dim=256),
        replace(LARGE_BATCH, steps=3000, warmup=100, eval_every=100, checkpoint_every=500),
        {"dense-active": 1e-3, "dense-total": 1e-3, "moe": 1e-3},
    ),
}
