"""The configuration of ``gpt.GPT``: its sizes, its routing and its precision.

Dimensions: D model width, H expert width, E routed experts, K experts per token, V vocabulary.
"""

from dataclasses import dataclass

from minimoe.moe.arguments import (
    Dispatch,
    Score,
    check_capacity_factor,
    check_dispatch,
    check_jitter,
    check_layer,
    check_routing,
)
from minimoe.precision.recipe import Recipe, as_recipe


@dataclass(frozen=True)
class ModelConfig:
    """All that determines a model's shape. Raises ValueError for invalid values."""

    dim: int = 128
    """D, the width of the residual stream"""
    n_layers: int = 4
    """blocks of attention and feed-forward network"""
    n_heads: int = 4
    """attention heads; each is dim / n_heads wide"""
    context: int = 128
    """context length in tokens (bytes)"""
    hidden_dim: int = 336
    """width of the dense SwiGLU; with n_experts > 0, of the first_dense layers only"""
    n_experts: int = 0
    """E, routed experts per layer; 0 makes every feed-forward network dense"""
    first_dense: int = 0
    """first layers that are dense in a mixture of experts (3 of 61 in DeepSeek-V3)"""
    top_k: int = 4
    """K, experts per token"""
    expert_dim: int = 64
    """H, width of one expert"""
    n_shared: int = 1
    """shared experts, which process every token; 0 for none"""
    score: Score = "sigmoid"
    """how the gate's logits become scores"""
    normalize: bool = True
    """make each token's K weights sum to the scale"""
    scale: float = 1.0
    """routed scaling factor"""
    n_groups: int = 1
    """groups of experts for group-limited routing"""
    top_groups: int | None = None
    """groups that each token's experts may come from; None for all"""
    jitter: float = 0.0
    """noise on the gate's input, in training; 0.01 in Switch"""
    dispatch: Dispatch = "auto"
    """dispatcher; capacity drops tokens, and leaks the future where top_k > 1"""
    capacity_factor: float = 1.25
    """tokens per expert relative to an even share, for dispatch capacity only"""
    vocab_size: int = 256
    """V, vocabulary size; 256 for bytes"""
    rope_theta: float = 10_000.0
    """base of the rotary position frequencies"""
    norm_eps: float = 1e-5
    """epsilon of the RMSNorms"""
    precision: str = "full"
    """recipe for the matmuls of the linear layers (minimoe.precision.RECIPES): full, deepseek-v3, …"""

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "context", "hidden_dim", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.dim % self.n_heads or (self.dim // self.n_heads) % 2:
            raise ValueError(
                f"dim ({self.dim}) must be n_heads ({self.n_heads}) times an even width, because "
                "rotary position embeddings rotate pairs of values"
            )
        if not (self.norm_eps > 0 and self.rope_theta > 1):
            raise ValueError(
                f"norm_eps ({self.norm_eps}) must be above 0 and rope_theta ({self.rope_theta}) above 1"
            )
        if self.n_experts < 0:
            raise ValueError(f"n_experts ({self.n_experts}) must be 0 (dense) or more")
        check_dispatch(self.dispatch, None)
        if not 0 <= self.first_dense <= self.n_layers:
            raise ValueError(
                f"first_dense ({self.first_dense}) must be between 0 and n_layers ({self.n_layers})"
            )
        check_jitter(self.jitter)
        check_capacity_factor(self.capacity_factor)
        recipe = self.recipe  # raises for an unknown precision
        if self.n_experts:
            layer = (self.dim, self.expert_dim, self.n_experts, self.n_shared)
            check_layer(*layer, "token", self.dispatch, recipe)
            check_routing(self.n_experts, self.top_k, self.score, self.n_groups, self.top_groups)

    def is_mixture(self, layer: int) -> bool:
        """Whether the feed-forward network of this layer (0, 1, …) is a mixture of experts."""
        return self.n_experts > 0 and layer >= self.first_dense

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of the linear layers and the experts; None for plain float32. Embedding, head, norms,
        gate and the attention between its projections stay in high precision, as in V3 (section 3.3.1)."""
        return None if self.precision == "full" else as_recipe(self.precision)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads
