"""Parameters and FLOPs of a model, total and active, counted from its configuration.

``count``, ``forward_flops`` and ``training_flops`` take any ``Architecture``; ``parameters``,
``flops_per_token`` and ``dense_width`` are for this project's own models.
"""

import math
from dataclasses import dataclass

from minimoe.cost.architecture import Architecture, from_config
from minimoe.models.config import ModelConfig


def parameters(config: ModelConfig, *, active: bool = False) -> int:
    """Parameters of the model, or the active ones alone: those of the K chosen experts of each layer instead
    of all E, everything else in full (the embedding, which is also the output matrix, once)."""
    counted = count(from_config(config))
    return counted.active if active else counted.total


def flops_per_token(config: ModelConfig, *, training: bool = True) -> float:
    """FLOPs per token, averaged over a full context."""
    a = from_config(config)
    return training_flops(a) if training else forward_flops(a)


def dense_width(expert_dim: int, n_experts: int, counted_experts: int) -> int:
    """Width of the dense SwiGLU with the parameters of an MoE layer's gate and ``counted_experts`` experts.

    For the active parameters count the K chosen and the shared experts, for the total all E and the shared.
    Rounded up to a multiple of 16, which favors the dense network: such widths suit matmuls.
    """
    width = counted_experts * expert_dim + n_experts / 3  # the gate's E * D over 3 * D per column
    return 16 * math.ceil(width / 16)


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model, by part; of MoE layers for all experts."""

    embedding: int
    output: int
    """0 if it is the embedding"""
    attention: int
    dense: int
    router: int
    shared: int
    routed: int
    norms: int
    inactive: int
    """of the routed experts, those that do not work on a given token: E - K of E"""

    @property
    def total(self) -> int:
        parts = (self.embedding, self.output, self.attention, self.dense, self.router, self.shared)
        return sum(parts) + self.routed + self.norms

    @property
    def active(self) -> int:
        """Parameters that work on one token; embedding and output count in full, as in published figures."""
        return self.total - self.inactive


def count(a: Architecture) -> Parameters:
    norm, expert = a.dim * (1 + int(a.biases)), network(a, a.expert_dim)
    n_dense = a.n_layers - a.n_moe_layers
    return Parameters(
        embedding=a.dim * (a.vocab_size + (a.context if a.positions else 0)),
        output=0 if a.tied else a.dim * a.vocab_size,
        attention=a.n_layers * attention(a),
        dense=n_dense * network(a, a.hidden_dim),
        router=a.n_moe_layers * a.dim * a.n_experts,
        shared=a.n_moe_layers * network(a, a.n_shared * a.expert_dim) if a.n_shared else 0,
        routed=a.n_moe_layers * a.n_experts * expert,
        norms=(2 * a.n_layers + 1) * norm + a.n_layers * _inner_norms(a),
        inactive=a.n_moe_layers * (a.n_experts - a.top_k) * expert,
    )


def network(a: Architecture, width: int) -> int:
    """Parameters of one feed-forward network, or of one expert."""
    matrices = 3 if a.gated else 2
    hidden = matrices - 1  # biases of the first matrices are as wide as the hidden layer
    return matrices * a.dim * width + int(a.biases) * (hidden * width + a.dim)


def attention(a: Architecture) -> int:
    """Parameters of one layer's attention projections."""
    queries, keys, values, out = attention_widths(a)
    if a.latent is not None:
        m = a.latent
        down = a.dim * (m.query_rank + m.kv_rank + m.rope_dim)
        up = m.query_rank * queries + m.kv_rank * a.n_heads * (m.nope_dim + m.value_dim)
        return down + up + out * a.dim
    biases = int(a.biases) * (queries + keys + values + a.dim)
    return a.dim * (queries + keys + values + out) + biases


def attention_widths(a: Architecture) -> tuple[int, int, int, int]:
    """Numbers per token in queries, keys, values and attention's output, over all heads."""
    if a.latent is not None:
        width = a.latent.nope_dim + a.latent.rope_dim
        values = a.n_heads * a.latent.value_dim
        return a.n_heads * width, a.n_heads * width, values, values
    queries, keys = a.n_heads * a.head_dim, a.kv_heads * a.head_dim
    return queries, keys, keys, queries


def attention_products(a: Architecture) -> int:
    """Multiply-adds of one layer for each pair of a token and a token it attends to: scores and values."""
    queries, _, _, out = attention_widths(a)
    return queries + out


def _inner_norms(a: Architecture) -> int:
    """Parameters of the norms inside one layer's attention."""
    if a.latent is not None:
        return a.latent.query_rank + a.latent.kv_rank
    if a.qk_norm == "none":
        return 0
    return 2 * a.head_dim if a.qk_norm == "head" else (a.n_heads + a.kv_heads) * a.head_dim


def forward_flops(a: Architecture, context: int | None = None) -> float:
    """FLOPs per token of the forward pass, averaged over a full context (default: the architecture's).

    A token attends to (context + 1) / 2 tokens on average, itself included. The embedding is a lookup and
    takes no FLOPs.
    """
    p = count(a)
    length = ((a.context if context is None else context) + 1) / 2
    weights = p.active - p.embedding - p.norms + (a.dim * a.vocab_size if a.tied else 0)
    return 2 * (weights + a.n_layers * attention_products(a) * length)


def training_flops(a: Architecture, context: int | None = None) -> float:
    """FLOPs per token of forward and backward pass."""
    return 3 * forward_flops(a, context)
