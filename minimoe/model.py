"""A GPT of today whose feed-forward part is either one dense network or a mixture of experts.

Pre-norm blocks: RMSNorm, causal attention with rotary positions, SwiGLU or MoE; the embedding is also
the output matrix. Everything leaves by return value: ``logits_BLV, routings = model(tokens_BL)``.

Not done here, for the sake of reading in a sitting: grouped key/value heads, latent attention (V3's
MLA), dropout (one pass over the data), biases.

Dimensions: B batch, L sequence length, D model width, V vocabulary, N heads, C width of a head.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimoe.moe.capacity import places
from minimoe.moe.experts import DISPATCHES, Dispatch
from minimoe.moe.layer import MoE, SwiGLU
from minimoe.moe.routing import Routing, Score, check_jitter, check_routing
from minimoe.precision.linear import linear
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


class KVCache:
    """Keys and values of the tokens seen so far, one (B, N, context, C) pair a layer.

    The caller owns it and passes it in; the model writes the new rows and moves ``length``.
    """

    def __init__(self, config: ModelConfig, batch: int, device=None, dtype=torch.float32) -> None:
        shape = (config.n_layers, 2, batch, config.n_heads, config.context, config.head_dim)
        self.layers = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new rows behind the old ones of a layer; return all of them."""
        end = self.length + key.shape[2]
        self.layers[layer, 0, :, :, self.length : end] = key
        self.layers[layer, 1, :, :, self.length : end] = value
        return self.layers[layer, 0, :, :, :end], self.layers[layer, 1, :, :, :end]


def rotary_table(context: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """(context, C/2) cosines and sines: position p turns pair i by p * theta^(-2i/C) (arXiv 2104.09864)."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BNLC: Tensor, cos_LC: Tensor, sin_LC: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + C/2}) by their position's angles."""
    a, b = x_BNLC.chunk(2, dim=-1)
    return torch.cat((a * cos_LC - b * sin_LC, b * cos_LC + a * sin_LC), dim=-1)


class Attention(nn.Module):
    """Causal multi-head attention; queries and keys carry rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv_proj = linear(config.dim, 3 * config.dim, config.recipe)
        self.out_proj = linear(config.dim, config.dim, config.recipe)

    def forward(
        self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None, layer: int
    ) -> Tensor:
        q, k, v = rearrange(self.qkv_proj(x_BLD), "b l (s n c) -> s b n l c", s=3, n=self.n_heads)
        cos, sin = (table.to(q.dtype) for table in rotary)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = cache.append(layer, k, v)
            # Query i stands at position length + i and sees every key up to its own.
            new, seen = q.shape[2], k.shape[2]
            mask = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(rearrange(y, "b n l c -> b l (n c)"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward: nn.Module
        if config.is_mixture(layer):
            self.feed_forward = MoE(
                config.dim,
                config.expert_dim,
                config.n_experts,
                config.top_k,
                n_shared=config.n_shared,
                score=config.score,
                normalize=config.normalize,
                scale=config.scale,
                n_groups=config.n_groups,
                top_groups=config.top_groups,
                dispatch=config.dispatch,
                jitter=config.jitter,
                capacity_factor=config.capacity_factor,
                recipe=config.recipe,
            )
        else:
            self.feed_forward = SwiGLU(config.dim, config.hidden_dim, config.recipe)

    def forward(
        self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None, layer: int
    ) -> tuple[Tensor, Routing | None]:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotary, cache, layer)
        normed_BLD = self.feed_forward_norm(x_BLD)
        if isinstance(self.feed_forward, MoE):
            y_BLD, routing = self.feed_forward(normed_BLD)
        else:
            y_BLD, routing = self.feed_forward(normed_BLD), None
        return x_BLD + y_BLD, routing


class GPT(nn.Module):
    """tokens_BL -> logits_BLV and the routing of each mixture-of-experts layer, first layer first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        cos, sin = rotary_table(config.context, config.head_dim, config.rope_theta)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, gain: float = 0.5) -> None:
        """Normal with deviation gain / sqrt(fan-in), so that a matrix's output does not depend on its
        width, and that / sqrt(2 * layers) for what is added to the residual stream, so that its variance
        does not grow with depth (GPT-2, section 2.3; its 0.02 at width 768 is a gain of 0.55). Draws from
        torch's global generator."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                std = gain / math.sqrt(parameter.shape[-1])
                if name.endswith(("out_proj.weight", "down_proj.weight", "down_proj")):
                    std /= math.sqrt(2 * self.config.n_layers)
                parameter.normal_(std=std)

    def forward(self, tokens_BL: Tensor, cache: KVCache | None = None) -> tuple[Tensor, list[Routing]]:
        """tokens_BL (B, L) int64 -> logits_BLV (B, L, V) and one Routing a mixture layer.

        With a ``cache``, tokens_BL are those that follow what the cache holds.

        Raises:
            ValueError: more tokens than the context holds.
        """
        start = cache.length if cache is not None else 0
        end = start + tokens_BL.shape[1]
        if end > self.config.context:
            raise ValueError(
                f"{end} tokens do not fit the model's context ({self.config.context}); "
                "shorten the input or raise ModelConfig.context"
            )
        rotary = self.cos[start:end], self.sin[start:end]
        x_BLD = self.embedding(tokens_BL)
        routings = []
        for layer, block in enumerate(self.blocks):
            x_BLD, routing = block(x_BLD, rotary, cache, layer)
            if routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.length = end
        return F.linear(self.norm(x_BLD), self.embedding.weight), routings
