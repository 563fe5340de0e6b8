"""Bytes of activations that a training step holds: what is kept for the backward pass, and the peak.

Counted is what this project's layers keep as they run on a CPU (a test measures it): nothing is recomputed
but the experts' activation, whose backward pass is written out (``moe.loop``, ``moe.grouped``). Two kinds of
numbers would go with fused kernels: an RMSNorm keeps its input and the same divided by its root mean square,
and attention's output is kept twice, for attention itself and with its heads side by side for the projection.

``float32`` and ``bf16`` keep every number so. ``deepseek-v3`` caches inputs of linear layers in 8 bits with a
float32 scale for each 1x128, those of the projection after attention in 12 bits (E5M6), the experts' gate and
up in 8 bits, and the rest in bf16 (arXiv 2412.19437, section 3.3.3). Statistics of norms and attention and
all of the router are float32 in each. An expert's rows and gradients are no larger than their layer's.

Dimensions: D model width, V vocabulary, N heads, C width of a head, E experts, K experts a token, H width of
a network or an expert.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from minimoe.cost.architecture import Architecture
from minimoe.cost.parameters import attention_widths
from minimoe.moe.dispatch.loop import BLOCK


@dataclass(frozen=True)
class Stored:
    """Bytes of an activation, by what it is."""

    plain: float
    linear: float
    """input of a linear layer"""
    attended: float
    """input of the projection after attention"""
    hidden: float
    """gate and up of the routed experts"""


SCALE = 4 / 128

STORED: dict[str, Stored] = {
    "float32": Stored(4, 4, 4, 4),
    "bf16": Stored(2, 2, 2, 2),
    "deepseek-v3": Stored(2, 1 + SCALE, 1.5 + SCALE, 1 + SCALE),
}


@dataclass(frozen=True)
class Activations:
    """Bytes of a whole training step."""

    layers: float
    """kept for the backward pass, without what comes after the last layer"""
    moments: dict[str, float]
    """all that lives, at each moment that may be the peak"""

    @property
    def at(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=self.moments.__getitem__)

    @property
    def peak(self) -> float:
        return self.moments[self.at]


def activations(
    a: Architecture,
    tokens: int,
    keeping: str = "float32",
    *,
    dispatch: Literal["loop", "grouped"] = "loop",
    busiest: float = 1.0,
) -> Activations:
    """What a training step of ``tokens`` tokens holds, without parameters, gradients and inputs.

    Backward frees what a layer kept when it is through with it, so that the peak is early in it: at the loss
    (logits, their logarithms and the gradients of both), at the last norm, or within a feed-forward network.

    Args:
        dispatch: how experts get their rows; ``loop`` holds a few experts' at a time, ``grouped`` all.
        busiest: the busiest expert's tokens over the mean (MaxVio + 1).

    Raises:
        ValueError: an unknown way to keep numbers, no token, or a busiest below the mean.
    """
    if keeping not in STORED:
        raise ValueError(f"keeping must be one of {', '.join(STORED)}, not {keeping!r}")
    if tokens < 1 or busiest < 1:
        raise ValueError(f"tokens ({tokens}) and busiest ({busiest}) must be at least 1")
    stored = STORED[keeping]
    high = stored.plain
    logits, row = high * a.vocab_size, high * a.dim
    below, within = 0.0, dict[str, float]()
    for mixture in [False] * (a.n_layers - a.n_mixtures) + [True] * a.n_mixtures:
        below += attention(a, stored) + feed_forward(a, stored, mixture=mixture)
        for name, extra in _temporaries(a, stored, tokens, mixture, dispatch, busiest):
            within[name] = max(within.get(name, 0.0), below + logits + row + extra)
    moments = {
        # logits, and in float32 their log-softmax, its gradient and theirs
        "loss": below + _norm(a, stored) + logits + 12 * a.vocab_size,
        "last norm": below + logits + 6 * row + 4,
    } | within
    return Activations(below * tokens, {name: value * tokens for name, value in moments.items()})


def attention(a: Architecture, stored: Stored) -> float:
    """Bytes a token that one layer's attention and the norm before it keep."""
    queries, keys, values, heads_out = attention_widths(a)
    if a.latent is not None:
        m = a.latent
        # The two latents with their norms, queries and keys put together, and what both keys and values
        # were made in, of which the values are a part.
        latents = stored.plain * (2 * m.query_rank + 2 * m.kv_rank + m.rope_dim) + 8
        latents += stored.linear * (m.query_rank + m.kv_rank)
        inner = latents + stored.plain * (queries + keys + a.n_heads * (m.nope_dim + m.value_dim))
    else:
        # One projection makes all three; the values are a part of it and keep it. Turned ones are new.
        together = queries + keys + values
        turned = 0 if a.positions else queries + keys
        normed = 0 if a.qk_norm == "none" else queries + keys
        inner = stored.plain * (together + turned + normed)
    out = (stored.plain + stored.attended) * heads_out
    return _norm(a, stored) + inner + out + 4 * a.n_heads  # and a logarithm a head


def feed_forward(a: Architecture, stored: Stored, *, mixture: bool) -> float:
    """Bytes a token that one layer's feed-forward part and the norm before it keep."""
    if not mixture:
        return _norm(a, stored) + network(a, stored, a.hidden_dim)
    shared = network(a, stored, a.n_shared * a.expert_dim)
    # Of all experts logits and scores; of the picked the number (int64), logit, a term of logsigmoid and
    # weight; and which row is whose (int64).
    router = 8 * a.n_experts + (8 + 3 * 4 + 8) * a.top_k
    matrices = 2 if a.gated else 1
    return _norm(a, stored) + shared + router + stored.hidden * matrices * a.top_k * a.expert_dim


def network(a: Architecture, stored: Stored, width: int) -> float:
    """Bytes a token of a network that every token visits, without its input: gate, silu(gate) and up (or the
    one activation's input), and their product, the next layer's input."""
    return width * ((3 if a.gated else 1) * stored.plain + stored.linear)


def _norm(a: Architecture, stored: Stored) -> float:
    """Input, normalised input and its root mean square (a LayerNorm: mean and deviation); and the result,
    which is the input of linear layers."""
    return stored.plain * a.dim * (1 if a.biases else 2) + 4 * (2 if a.biases else 1) + stored.linear * a.dim


def _temporaries(
    a: Architecture, stored: Stored, tokens: int, mixture: bool, dispatch: str, busiest: float
) -> Iterator[tuple[str, float]]:
    """Bytes a token beyond what is kept and the stream's gradient, at the two moments of a layer's backward
    pass in which most lives."""
    shared = a.n_shared * a.expert_dim if mixture else a.hidden_dim
    if shared:
        # The product's gradient takes the place of the product; those of silu(gate) and up come on top.
        yield "network", 2 * stored.plain * shared
    if mixture:
        # The shared expert is through: what it kept is gone, its input's gradient is there. The routed
        # experts' own, into which they add, is zeros as yet.
        before = stored.plain * a.dim * (1 + bool(a.n_shared)) - network(a, stored, shared)
        yield "experts", before + stored.plain * _experts(a, tokens, dispatch, busiest)


def _experts(a: Architecture, tokens: int, dispatch: str, busiest: float) -> float:
    """Numbers a token within the experts' backward pass, without the gradients of their weights."""
    dim, width = a.dim, a.expert_dim
    if dispatch == "grouped":
        # The gradient's rows, dL/dh, five rows of the activation's backward pass and its result; or, later,
        # that result, h, dL/dh, and three times rows of the model's width.
        return a.top_k * max(dim + 7 * width, 3 * dim + 3 * width)
    # A block has x's rows too; of the block before it there are still the rows, the result and h. Autograd
    # makes zeros besides for the pre-activations, an output of the operator that has no gradient.
    block = _rows(a, tokens, busiest)
    before = min(_rows(a, tokens, 1.0), tokens * a.top_k - block)
    rows = block * (2 * dim + 7 * width) + before * (dim + 3 * width)
    return rows / tokens + 2 * a.top_k * width


def _rows(a: Architecture, tokens: int, busiest: float) -> float:
    """Rows that the loop takes together: whole experts as far as they fit a block, or one that does not."""
    each = tokens * a.top_k / a.n_experts
    fitting = max(1, BLOCK // a.dim)
    return max(busiest * each, min(fitting // max(each, 1), a.n_experts) * each)
