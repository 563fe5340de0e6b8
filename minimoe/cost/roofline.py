"""Roofline model: a lower bound on the time of each part of a model, set by arithmetic or by memory traffic.

    seconds = max(FLOPs / peak, bytes / bandwidth)          (Williams et al., CACM 2009)

Bytes are those of the weights, read once, and of every matmul's inputs and output. Of the routed experts only
those that T tokens are expected to choose are read, E (1 - (1 - K/E)^T). Training counts both three times:
each matmul reads two and writes one of output, input gradient and weight gradient. Norms, activation
functions and rotary embeddings are left out because they take few FLOPs, and so is communication.

Dimensions: T tokens, D model width, V vocabulary, E experts, K experts per token, H width of a network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from minimoe.cost.architecture import Architecture
from minimoe.cost.memory import StoragePrecision, get_storage_precision, kv_cache_numbers
from minimoe.cost.parameters import attention, attention_products, attention_widths, network
from minimoe.cost.training_run import Accelerator
from minimoe.tools.timing import Peaks

DTYPES = ("fp8", "bfloat16", "float32")  # from narrow to wide


@dataclass(frozen=True)
class Part:
    """One part of one layer (embedding and output: of the model)."""

    name: str
    layers: int
    """number of layers that have it"""
    flops: float
    bytes: float
    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> Literal["compute", "memory"]:
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


def roofline(
    a: Architecture,
    tokens: int,
    machine: Peaks | Accelerator,
    *,
    storage_precision: str = "bf16",
    training: bool = False,
) -> list[Part]:
    """The parts for ``tokens`` tokens at once, each of which attends to (context + 1) / 2 on average.

    Linear layers run in the storage precision's matmul dtype, the router in float32, everything else in bf16
    if that dtype is fp8. A dtype for which the machine has no peak runs at the next wider dtype's.

    Raises:
        ValueError: an unknown storage precision, or no tokens.
    """
    precision = get_storage_precision(storage_precision)
    if tokens < 1:
        raise ValueError(f"tokens ({tokens}) must be at least 1")
    peaks = machine if isinstance(machine, Peaks) else peaks_of(machine)
    low = precision.matmul_dtype
    high = "bfloat16" if low == "fp8" else low
    dtypes = {"router": "float32", "scores": high, "embedding": high, "output": high}
    times = 3 if training else 1
    parts = []
    for name, layers, flops, bytes_ in _forward(a, tokens, precision):
        dtype = dtypes.get(name, low)
        peak = peaks.flops[next(d for d in DTYPES[DTYPES.index(dtype) :] if d in peaks.flops)]
        work, moved = times * flops, times * bytes_
        parts.append(Part(name, layers, work, moved, work / peak, moved / peaks.bandwidth))
    return parts


def peaks_of(accelerator: Accelerator) -> Peaks:
    """An accelerator's peaks from its datasheet."""
    flops = {"float32": accelerator.float32, "bfloat16": accelerator.bf16}
    fp8 = {} if accelerator.fp8 is None else {"fp8": accelerator.fp8}
    return Peaks(flops | fp8, accelerator.bandwidth, threads=0)


def total(parts: list[Part]) -> float:
    """Seconds of the whole model, one part after another."""
    return sum(part.layers * part.seconds for part in parts)


def expected_active_experts(n_experts: int, top_k: int, tokens: int) -> float:
    """Expected number of a layer's experts that at least one token chooses, if all choices are equally
    likely."""
    return n_experts * (1 - (1 - top_k / n_experts) ** tokens)


def _forward(
    a: Architecture, tokens: int, precision: StoragePrecision
) -> Iterator[tuple[str, int, float, float]]:
    """Name, number of layers, FLOPs and bytes of each part's forward pass."""
    number = precision.activation
    queries, keys, values, out = attention_widths(a)
    n_dense, attended = a.n_layers - a.n_moe_layers, (a.context + 1) / 2
    through = 2 * a.dim + queries + keys + values + out
    yield "projections", a.n_layers, *_linear(precision, attention(a), tokens, through)
    # Queries in, results out; keys and values of all attended tokens, as the KV cache holds them.
    moved = tokens * (queries + out) + max(tokens, attended) * kv_cache_numbers(a)
    yield "scores", a.n_layers, 2.0 * tokens * attention_products(a) * attended, number * moved
    if a.n_moe_layers:
        gate = a.n_experts * a.dim
        moved = precision.other * gate + 4 * tokens * (a.dim + a.n_experts)
        yield "router", a.n_moe_layers, 2.0 * gate * tokens, moved
        if a.n_shared:
            width = a.n_shared * a.expert_dim
            yield "shared", a.n_moe_layers, *_network(a, precision, width, tokens)
        flops, moved = _network(a, precision, a.expert_dim, tokens * a.top_k)
        others = expected_active_experts(a.n_experts, a.top_k, tokens) - 1
        moved += others * network(a, a.expert_dim) * precision.linear
        yield "routed", a.n_moe_layers, flops, moved
    if n_dense:
        yield "dense", n_dense, *_network(a, precision, a.hidden_dim, tokens)
    yield "embedding", 1, 0.0, (precision.other + number) * tokens * a.dim  # rows read and written
    head = a.dim * a.vocab_size
    moved = precision.other * head + number * tokens * (a.dim + a.vocab_size)
    yield "output", 1, 2.0 * head * tokens, moved


def _network(a: Architecture, precision: StoragePrecision, width: int, rows: int) -> tuple[float, float]:
    """FLOPs and bytes of a feed-forward network. Per row its input and result, the output of the first
    matmuls (gate and up) and the input of the last go through memory."""
    through = 2 * a.dim + (3 if a.gated else 2) * width
    return _linear(precision, network(a, width), rows, through)


def _linear(precision: StoragePrecision, weights: int, rows: int, through: int) -> tuple[float, float]:
    """FLOPs and bytes of ``weights`` for ``rows`` rows, with ``through`` numbers per row in and out."""
    moved = precision.linear * weights + precision.activation * rows * through
    return 2.0 * weights * rows, moved
