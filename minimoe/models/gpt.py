"""A GPT, a decoder-only transformer, whose feed-forward networks are dense or mixtures of experts.

Pre-norm blocks of RMSNorm, causal attention with rotary position embeddings, and SwiGLU or MoE; the embedding
is also the output matrix. All results are returned: ``logits_BLV, routings = model(tokens_BL)``.

Left out for brevity: grouped-query attention, latent attention (V3's MLA), dropout, biases.

Dimensions: B batch, L sequence length, D model width, V vocabulary, N heads, C head width.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimoe.models.config import ModelConfig
from minimoe.moe.feed_forward import SwiGLU
from minimoe.moe.layer import MoE
from minimoe.moe.router import Routing
from minimoe.precision.linear import linear


class KVCache:
    """The KV cache: keys and values of earlier tokens, one (B, N, context, C) pair per layer.

    The caller owns it and passes it in; the model appends new rows and advances ``length``.
    """

    def __init__(self, config: ModelConfig, batch: int, device=None, dtype=torch.float32) -> None:
        shape = (config.n_layers, 2, batch, config.n_heads, config.context, config.head_dim)
        self.layers = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append new rows to a layer; return all of its rows."""
        end = self.length + key.shape[2]
        self.layers[layer, 0, :, :, self.length : end] = key
        self.layers[layer, 1, :, :, self.length : end] = value
        return self.layers[layer, 0, :, :, :end], self.layers[layer, 1, :, :, :end]


def rotary_table(context: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """(context, C/2) cosines and sines: position p rotates pair i by p * theta^(-2i/C) (arXiv 2104.09864)."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BNLC: Tensor, cos_LC: Tensor, sin_LC: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + C/2}) by the angles of their position."""
    a, b = x_BNLC.chunk(2, dim=-1)
    return torch.cat((a * cos_LC - b * sin_LC, b * cos_LC + a * sin_LC), dim=-1)


class Attention(nn.Module):
    """Causal multi-head attention with rotary position embeddings."""

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
            # Query i is at position length + i and attends to every key up to its own.
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
    """tokens_BL -> logits_BLV and the routing of each mixture-of-experts layer, in layer order."""

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
        """Normal with standard deviation gain / sqrt(fan-in), so that a matrix's output does not depend on
        its width; divided by sqrt(2 * layers) for outputs added to the residual stream, so that its variance
        does not grow with depth (GPT-2, section 2.3; its 0.02 at width 768 is a gain of 0.55). Draws from
        torch's global generator."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                std = gain / math.sqrt(parameter.shape[-1])
                if name.endswith(("out_proj.weight", "down_proj.weight", "down_proj")):
                    std /= math.sqrt(2 * self.config.n_layers)
                parameter.normal_(std=std)

    def forward(self, tokens_BL: Tensor, cache: KVCache | None = None) -> tuple[Tensor, list[Routing]]:
        """tokens_BL (B, L) int64 -> logits_BLV (B, L, V) and one Routing per mixture-of-experts layer.

        With a ``cache``, tokens_BL follow the tokens in the cache.

        Raises:
            ValueError: more tokens than the context length.
        """
        start = cache.length if cache is not None else 0
        end = start + tokens_BL.shape[1]
        if end > self.config.context:
            raise ValueError(
                f"{end} tokens exceed the model's context ({self.config.context}); "
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
