"""Parameters and operations of this project's own models: ``counting`` for a ``ModelConfig``."""

import math
from dataclasses import dataclass

from minimoe.cost.architecture import Architecture, from_config
from minimoe.models.config import ModelConfig


def parameters(config: ModelConfig, *, active: bool = False) -> int:
    """Parameters of the model; with ``active``, those that work on one token: the K picked experts of
    each layer in place of all E, everything else in full (the embedding counts once, it is tied)."""
    found = count(from_config(config))
    return found.active if active else found.total


def flops_per_token(config: ModelConfig, *, training: bool = True) -> float:
    """Operations a token, averaged over a full context."""
    return (3 if training else 1) * forward_flops(from_config(config))


def dense_width(config: ModelConfig, *, active: bool) -> int:
    """The SwiGLU width that gives a dense model this mixture's active (or total) parameters.

    Rounded up to a multiple of 16, in the dense model's favour: matmuls like such widths.
    """
    experts = (config.top_k if active else config.n_experts) + config.n_shared
    width = experts * config.expert_dim + config.n_experts / 3  # the gate's E * D over 3 * D a column
    return 16 * math.ceil(width / 16)


@dataclass(frozen=True)
class Parameters:
    """Of a whole model, by part; those of the mixtures for all experts."""

    embedding: int
    output: int
    """0 where it is the embedding"""
    attention: int
    dense: int
    router: int
    shared: int
    routed: int
    norms: int
    idle: int
    """of the routed experts, those that do not work on a token: E - K of E"""

    @property
    def total(self) -> int:
        parts = (self.embedding, self.output, self.attention, self.dense, self.router, self.shared)
        return sum(parts) + self.routed + self.norms

    @property
    def active(self) -> int:
        """What works on one token; embedding and output count in full, as in the published figures."""
        return self.total - self.idle


def count(a: Architecture) -> Parameters:
    """From the configuration alone."""
    norm, expert = a.dim * (1 + int(a.biases)), network(a, a.expert_dim)
    return Parameters(
        embedding=a.dim * (a.vocab_size + (a.context if a.positions else 0)),
        output=0 if a.tied else a.dim * a.vocab_size,
        attention=a.n_layers * attention(a),
        dense=(a.n_layers - a.n_mixtures) * network(a, a.hidden_dim) if a.n_layers > a.n_mixtures else 0,
        router=a.n_mixtures * a.dim * a.n_experts,
        shared=a.n_mixtures * network(a, a.n_shared * a.expert_dim) if a.n_shared else 0,
        routed=a.n_mixtures * a.n_experts * expert,
        norms=(2 * a.n_layers + 1) * norm + a.n_layers * _inner_norms(a),
        idle=a.n_mixtures * (a.n_experts - a.top_k) * expert,
    )


def network(a: Architecture, width: int) -> int:
    """One feed-forward network, or one expert."""
    matrices = 3 if a.gated else 2
    hidden = matrices - 1  # biases of the first matrices are as wide as the hidden layer
    return matrices * a.dim * width + int(a.biases) * (hidden * width + a.dim)


def attention(a: Architecture) -> int:
    """Projections of one layer."""
    if a.latent is not None:
        m = a.latent
        query = a.dim * m.query_rank + m.query_rank * a.n_heads * (m.nope_dim + m.rope_dim)
        down = a.dim * (m.kv_rank + m.rope_dim)
        up = m.kv_rank * a.n_heads * (m.nope_dim + m.value_dim)
        return query + down + up + a.n_heads * m.value_dim * a.dim
    queries, keys = a.n_heads * a.head_dim, a.kv_heads * a.head_dim
    weights = a.dim * (queries + 2 * keys) + queries * a.dim
    return weights + int(a.biases) * (queries + 2 * keys + a.dim)


def attention_widths(a: Architecture) -> tuple[int, int, int, int]:
    """Numbers of a token's queries, keys, values and of what comes out, all heads of each together."""
    if a.latent is not None:
        width = a.latent.nope_dim + a.latent.rope_dim
        values = a.n_heads * a.latent.value_dim
        return a.n_heads * width, a.n_heads * width, values, values
    queries, keys = a.n_heads * a.head_dim, a.kv_heads * a.head_dim
    return queries, keys, keys, queries


def scored_numbers(a: Architecture) -> int:
    """Products of numbers that a token and one it attends to take in a layer, for score and value."""
    queries, _, _, out = attention_widths(a)
    return queries + out


def _inner_norms(a: Architecture) -> int:
    """Norms inside the attention of one layer."""
    if a.latent is not None:
        return a.latent.query_rank + a.latent.kv_rank
    if a.qk_norm == "none":
        return 0
    return 2 * a.head_dim if a.qk_norm == "head" else (a.n_heads + a.kv_heads) * a.head_dim


def forward_flops(a: Architecture, context: int | None = None) -> float:
    """Operations a token of the forward pass, averaged over a full context (default: the architecture's).

    A token attends to the (context + 1) / 2 tokens up to itself on average: a product of scores and one of
    values a head. An embedding is looked up, not multiplied.
    """
    p = count(a)
    length = ((a.context if context is None else context) + 1) / 2
    weights = p.active - p.embedding - p.norms + (a.dim * a.vocab_size if a.tied else 0)
    return 2 * (weights + a.n_layers * scored_numbers(a) * length)


def training_flops(a: Architecture, context: int | None = None) -> float:
    """Operations a token of forward and backward pass."""
    return 3 * forward_flops(a, context)
