"""A GPT of today whose feed-forward part is either one dense network or a mixture of experts.

Pre-norm blocks: RMSNorm, causal attention with rotary positions, SwiGLU or MoE; the embedding is also
the output matrix. Everything leaves by return value: ``logits_BLV, routings = model(tokens_BL)``.

Not done here, for the sake of reading in a sitting: grouped key/value heads, latent attention (V3's
MLA), dropout (one pass over the data), biases.

Dimensions: B batch, L sequence length, D model width, V vocabulary, N heads, C width of a head.
"""

from dataclasses import dataclass

from minimoe.moe.dispatch.capacity import places
from minimoe.moe.experts import DISPATCHES, Dispatch
from minimoe.moe.router import Score, check_jitter, check_routing
from minimoe.precision.recipe import Recipe, as_recipe


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the model's shape. Raises ValueError at once for what cannot be."""

    dim: int = 128
    """D, the width of the residual stream"""
    n_layers: int = 4
    """blocks of attention and feed-forward"""
    n_heads: int = 4
    """attention heads; each is dim / n_heads wide"""
    context: int = 128
    """longest sequence the model attends over, in tokens (bytes)"""
    hidden_dim: int = 336
    """width of the dense SwiGLU; with n_experts > 0 only of the first_dense layers"""
    n_experts: int = 0
    """E, routed experts a layer; 0 makes every feed-forward dense"""
    first_dense: int = 0
    """layers at the bottom that stay dense in a mixture (3 of 61 in DeepSeek-V3)"""
    top_k: int = 4
    """K, experts a token"""
    expert_dim: int = 64
    """H, width of one expert"""
    n_shared: int = 1
    """shared experts, which every token visits; 0 for none"""
    score: Score = "sigmoid"
    """how the gate's logits become scores"""
    normalize: bool = True
    """make a token's K weights sum to the scale"""
    scale: float = 1.0
    """routed scaling factor"""
    n_groups: int = 1
    """groups of experts for group-limited routing"""
    top_groups: int | None = None
    """groups a token may draw its experts from; None for all"""
    jitter: float = 0.0
    """noise on what the gate sees, in training; 0.01 in Switch"""
    dispatch: Dispatch = "auto"
    """how tokens are brought to the experts; capacity drops some, and leaks the future where top_k > 1"""
    capacity_factor: float = 1.25
    """places an expert has over an even share, for dispatch capacity alone"""
    vocab_size: int = 256
    """V; bytes"""
    rope_theta: float = 10_000.0
    """base of the rotary frequencies"""
    norm_eps: float = 1e-5
    """epsilon of the RMS norms"""
    precision: str = "full"
    """recipe of the linear layers' matmuls (minimoe.precision.RECIPES): full, deepseek-v3, …"""

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "context", "hidden_dim", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.dim % self.n_heads or (self.dim // self.n_heads) % 2:
            raise ValueError(
                f"dim ({self.dim}) must be n_heads ({self.n_heads}) times an even width, because "
                "rotary positions turn pairs of values"
            )
        if not (self.norm_eps > 0 and self.rope_theta > 1):
            raise ValueError(
                f"norm_eps ({self.norm_eps}) must be above 0 and rope_theta ({self.rope_theta}) above 1"
            )
        if self.n_experts < 0:
            raise ValueError(f"n_experts ({self.n_experts}) must be 0 (dense) or more")
        if self.dispatch not in DISPATCHES:
            raise ValueError(f"dispatch must be one of {DISPATCHES}, not {self.dispatch!r}")
        if not 0 <= self.first_dense <= self.n_layers:
            raise ValueError(
                f"first_dense ({self.first_dense}) must be between 0 and n_layers ({self.n_layers})"
            )
        check_jitter(self.jitter)
        if self.recipe is not None and self.n_experts and self.dispatch != "auto":
            raise ValueError(f"precision {self.precision!r} needs dispatch 'auto', not {self.dispatch!r}")
        places(1, 1, 1, self.capacity_factor)  # refuses a factor that cannot be
        if self.n_experts:
            check_routing(self.n_experts, self.top_k, self.score, self.n_groups, self.top_groups)
            if self.expert_dim < 1 or self.n_shared < 0:
                raise ValueError(
                    f"expert_dim ({self.expert_dim}) must be at least 1 and n_shared "
                    f"({self.n_shared}) at least 0"
                )

    def is_mixture(self, layer: int) -> bool:
        """Whether the feed-forward part of layer 0, 1, … is a mixture of experts."""
        return self.n_experts > 0 and layer >= self.first_dense

    @property
    def recipe(self) -> Recipe | None:
        """How the linear layers and the experts multiply; None for plain float32. Embedding, head, norms,
        gate and the attention between the projections stay in high precision, as in V3 (section 3.3.1)."""
        return None if self.precision == "full" else as_recipe(self.precision)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads
