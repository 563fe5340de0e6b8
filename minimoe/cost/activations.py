"""Activation memory of a training step: bytes kept for the backward pass, and the peak.

Counted are the activations that this project's layers keep on a CPU, which a test measures. Nothing is
recomputed except the experts' activation, whose backward pass is written out (``moe.dispatch``). Fused
kernels would save two of the terms: an RMSNorm keeps its input and the normalized input, and attention's
output is kept twice, once for attention and once with its heads concatenated for the projection. Statistics
of norms and attention, and all of the router, are float32 at every storage precision (``memory``). An
expert's rows and gradients are no larger than their layer's.

Dimensions: D model width, V vocabulary, N heads, C head width, E experts, K experts per token, H width of a
feed-forward network or an expert.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from minimoe.cost.architecture import Architecture
from minimoe.cost.memory import StoragePrecision, get_storage_precision
from minimoe.cost.parameters import attention_widths
from minimoe.moe.dispatch.loop import BLOCK_FLOATS


@dataclass(frozen=True)
class Activations:
    """Bytes of activations of a whole training step."""

    layers: float
    """kept for the backward pass, except those after the last layer"""
    live: dict[str, float]
    """all live bytes, at each point of the backward pass that may be the peak"""

    @property
    def peak_at(self) -> str:
        """The point at which most bytes are live."""
        return max(self.live, key=self.live.__getitem__)

    @property
    def peak(self) -> float:
        return self.live[self.peak_at]


def activations(
    a: Architecture,
    tokens: int,
    storage_precision: str = "float32",
    *,
    dispatch: Literal["loop", "grouped"] = "loop",
    max_load_ratio: float = 1.0,
) -> Activations:
    """Activation memory of a training step of ``tokens`` tokens, without parameters, gradients and inputs.

    The backward pass frees a layer's activations when it leaves the layer, so the peak is early in it: at the
    loss (logits, their logarithms and the gradients of both), at the last norm, or within a feed-forward
    network.

    Args:
        dispatch: ``loop`` holds the rows of a few experts at a time, ``grouped`` those of all.
        max_load_ratio: load of the busiest expert over the mean load (MaxVio + 1).

    Raises:
        ValueError: an unknown storage precision, no tokens, or a load ratio below 1.
    """
    per_number = get_storage_precision(storage_precision)
    if tokens < 1 or max_load_ratio < 1:
        raise ValueError(f"tokens ({tokens}) and max_load_ratio ({max_load_ratio}) must be at least 1")
    logits, row = per_number.activation * a.vocab_size, per_number.activation * a.dim
    kept, within = 0.0, dict[str, float]()
    for is_moe in [False] * (a.n_layers - a.n_moe_layers) + [True] * a.n_moe_layers:
        kept += attention(a, per_number) + feed_forward(a, per_number, is_moe=is_moe)
        for name, extra in _temporaries(a, per_number, tokens, is_moe, dispatch, max_load_ratio):
            within[name] = max(within.get(name, 0.0), kept + logits + row + extra)
    live = {
        # logits, and in float32 their log-softmax, its gradient and theirs
        "loss": kept + _norm(a, per_number) + logits + 12 * a.vocab_size,
        "last norm": kept + logits + 6 * row + 4,
    } | within
    return Activations(kept * tokens, {name: value * tokens for name, value in live.items()})


def attention(a: Architecture, per_number: StoragePrecision) -> float:
    """Bytes per token that one layer's attention and the norm before it keep."""
    queries, keys, values, heads_out = attention_widths(a)
    if a.latent is not None:
        m = a.latent
        # The two latents with their norms; concatenated queries and keys; and the tensor that keys and values
        # are projected into, of which the values are a view.
        latents = per_number.activation * (2 * m.query_rank + 2 * m.kv_rank + m.rope_dim) + 8
        latents += per_number.linear_input * (m.query_rank + m.kv_rank)
        heads = queries + keys + a.n_heads * (m.nope_dim + m.value_dim)
        inner = latents + per_number.activation * heads
    else:
        # One projection makes all three; the values are a view of its result. Rotated and normed queries and
        # keys are copies.
        copies = (not a.positions) + (a.qk_norm != "none")
        inner = per_number.activation * (values + (1 + copies) * (queries + keys))
    out = (per_number.activation + per_number.attention_output) * heads_out
    return _norm(a, per_number) + inner + out + 4 * a.n_heads  # and a log-sum-exp per head


def feed_forward(a: Architecture, per_number: StoragePrecision, *, is_moe: bool) -> float:
    """Bytes per token that one layer's feed-forward part and the norm before it keep."""
    if not is_moe:
        return _norm(a, per_number) + network(a, per_number, a.hidden_dim)
    shared = network(a, per_number, a.n_shared * a.expert_dim)
    # Logits and scores of all experts; of the chosen ones the id (int64), logit, a term of logsigmoid and
    # weight; and the permutation of the rows (int64).
    router = 8 * a.n_experts + (8 + 3 * 4 + 8) * a.top_k
    matrices = 2 if a.gated else 1
    return (
        _norm(a, per_number) + shared + router + per_number.expert_hidden * matrices * a.top_k * a.expert_dim
    )


def network(a: Architecture, per_number: StoragePrecision, width: int) -> float:
    """Bytes per token of a network that every token visits, without its input: gate, silu(gate) and up (or
    the input of the one activation), and their product, which is the input of the next linear layer."""
    return width * ((3 if a.gated else 1) * per_number.activation + per_number.linear_input)


def _norm(a: Architecture, per_number: StoragePrecision) -> float:
    """Input, normalized input and root mean square (a LayerNorm: mean and deviation); and the result, which
    is the input of linear layers."""
    statistics = 4 * (2 if a.biases else 1)
    inputs = per_number.activation * a.dim * (1 if a.biases else 2)
    return inputs + statistics + per_number.linear_input * a.dim


def _temporaries(
    a: Architecture, per_number: StoragePrecision, tokens: int, is_moe: bool, dispatch: str, load_ratio: float
) -> Iterator[tuple[str, float]]:
    """Bytes per token beyond those kept and the gradient of the residual stream, at the two points of a
    layer's backward pass where most are live."""
    shared = a.n_shared * a.expert_dim if is_moe else a.hidden_dim
    if shared:
        # The product's gradient replaces the product; those of silu(gate) and up are additional.
        yield "network", 2 * per_number.activation * shared
    if is_moe:
        # The shared expert is done: its activations are freed, its input's gradient exists. The gradient of
        # the routed experts' input, into which they add, is still zeros.
        before = per_number.activation * a.dim * (1 + bool(a.n_shared)) - network(a, per_number, shared)
        yield "experts", before + per_number.activation * _experts(a, tokens, dispatch, load_ratio)


def _experts(a: Architecture, tokens: int, dispatch: str, load_ratio: float) -> float:
    """Numbers per token within the experts' backward pass, without the gradients of their weights."""
    dim, width = a.dim, a.expert_dim
    if dispatch == "grouped":
        # The gradient's rows, dL/dh, five rows of the activation's backward pass and its result; or, later,
        # that result, h, dL/dh, and three times rows of the model's width.
        return a.top_k * max(dim + 7 * width, 3 * dim + 3 * width)
    # A block has x's rows too; rows, result and h of the previous block are still live. Autograd also makes
    # zeros for the pre-activations, an output of the operator that has no gradient.
    block = _block_rows(a, tokens, load_ratio)
    before = min(_block_rows(a, tokens, 1.0), tokens * a.top_k - block)
    rows = block * (2 * dim + 7 * width) + before * (dim + 3 * width)
    return rows / tokens + 2 * a.top_k * width


def _block_rows(a: Architecture, tokens: int, load_ratio: float) -> float:
    """Rows per block of the loop: as many whole experts as fit, or one that does not."""
    per_expert = tokens * a.top_k / a.n_experts
    fitting = max(1, BLOCK_FLOATS // a.dim)
    return max(load_ratio * per_expert, min(fitting // max(per_expert, 1), a.n_experts) * per_expert)
