"""Architecture of a decoder-only transformer, as plain numbers: all sizes on which its cost depends.

These are the widths, layers, heads and experts that a published configuration states, and which parts have
biases or norms. ``published`` lists published models; ``from_config`` converts this project's
``ModelConfig``.
"""

from dataclasses import dataclass
from typing import Literal

from minimoe.models.config import ModelConfig


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (MLA): keys and values are projected from one narrow latent that all heads
    share, and the KV cache holds that latent and one rotary key (DeepSeek-V2, arXiv 2405.04434, section 2.1;
    V3, equations 1 to 11)."""

    query_rank: int
    kv_rank: int
    nope_dim: int
    """part of a head's query and key without positions"""
    rope_dim: int
    """part of a head's query, and of the one shared key, with rotary positions"""
    value_dim: int


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder-only transformer. Raises ValueError for invalid ones."""

    name: str
    dim: int
    n_layers: int
    vocab_size: int
    n_heads: int
    head_dim: int
    kv_heads: int
    context: int
    """context length in tokens, over which FLOPs are averaged"""
    hidden_dim: int = 0
    """width of the dense feed-forward network; 0 if every layer is an MoE layer"""
    first_dense: int = 0
    n_experts: int = 0
    top_k: int = 0
    expert_dim: int = 0
    n_shared: int = 0
    n_groups: int = 1
    """of experts, for group-limited routing"""
    top_groups: int | None = None
    """groups from which a token may choose experts; None for all"""
    gated: bool = True
    """three matrices per feed-forward network (SwiGLU) instead of two"""
    tied: bool = False
    """whether the output matrix is the embedding"""
    biases: bool = False
    """of all linear layers and norms"""
    positions: bool = False
    """learned positions instead of rotary ones: one vector per position"""
    qk_norm: Literal["none", "head", "width"] = "none"
    """norms of queries and keys: per head, or over the full width of all heads"""
    latent: LatentAttention | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "vocab_size", "n_heads", "head_dim", "kv_heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be divisible by kv_heads ({self.kv_heads})")
        limits = [(0, "first_dense", "n_layers")]
        limits += [(1, "top_k", "n_experts")] if self.n_experts else []
        limits += [(1, "top_groups", "n_groups")] if self.top_groups is not None else []
        for low, name, limit in limits:
            value, high = getattr(self, name), getattr(self, limit)
            if not low <= value <= high:
                raise ValueError(f"{name} ({value}) must be between {low} and {limit} ({high})")
        if not self.hidden_dim and (not self.n_experts or self.first_dense):
            raise ValueError("hidden_dim (0) must be at least 1 if any layer is dense")

    @property
    def n_moe_layers(self) -> int:
        """MoE layers."""
        return self.n_layers - self.first_dense if self.n_experts else 0


def from_config(config: ModelConfig) -> Architecture:
    """The architecture of one of this project's models: sizes of the same names."""
    names = ["dim", "n_layers", "vocab_size", "n_heads", "head_dim", "context", "hidden_dim"]
    if config.n_experts:
        names += ["first_dense", "n_experts", "top_k", "expert_dim", "n_shared", "n_groups", "top_groups"]
    sizes = {name: getattr(config, name) for name in names}
    return Architecture("minimoe", kv_heads=config.n_heads, tied=True, **sizes)
