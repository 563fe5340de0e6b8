"""The least time that each part of a model can take: arithmetic or bytes, whichever is the longer.

    seconds = max(FLOPs / peak, bytes / bandwidth)          (Williams et al., CACM 2009)

Bytes are those of the weights, read once, and of what goes into each product and comes out of it. Of the
routed experts those are read that T tokens visit on average, E (1 - (1 - K/E)^T). Training is three times
forward in both: of output, input's gradient and weight's gradient each product reads two and writes one.
Norms, activation functions and rotations, whose arithmetic is little, are left out, and so is what travels.

Dimensions: T tokens, D model width, V vocabulary, E experts, K experts a token, H width of a network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from minimoe.cost.activations import STORED
from minimoe.cost.architecture import Architecture
from minimoe.cost.memory import STORAGE_PRECISIONS, cached_numbers
from minimoe.cost.parameters import attention, attention_widths, network, scored_numbers
from minimoe.cost.training_run import Accelerator
from minimoe.tools.timing import Peaks

DTYPES = {"float32": "float32", "bf16": "bfloat16", "deepseek-v3": "fp8"}


@dataclass(frozen=True)
class Part:
    """One part of one layer (or, of embedding and output, of the model)."""

    name: str
    layers: int
    """of the model that have it"""
    flops: float
    bytes: float
    arithmetic: float
    """seconds, at the peak"""
    movement: float
    """seconds, at the bandwidth"""

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.movement)

    @property
    def bound(self) -> Literal["arithmetic", "bytes"]:
        return "arithmetic" if self.arithmetic >= self.movement else "bytes"


def roofline(
    a: Architecture,
    tokens: int,
    machine: Peaks | Accelerator,
    *,
    keeping: str = "bf16",
    training: bool = False,
    context: int | None = None,
) -> list[Part]:
    """The parts for ``tokens`` tokens at once, each of which attends to (context + 1) / 2 on average.

    Products of linear layers run in the keeping's format, the router in float32, all others in bf16 under
    ``deepseek-v3``. Where the machine has no peak for a format, the next wider one's is taken.

    Raises:
        ValueError: an unknown way to keep numbers, or no token.
    """
    if keeping not in STORAGE_PRECISIONS:
        raise ValueError(f"keeping must be one of {', '.join(STORAGE_PRECISIONS)}, not {keeping!r}")
    if tokens < 1:
        raise ValueError(f"tokens ({tokens}) must be at least 1")
    peaks = machine if isinstance(machine, Peaks) else peaks_of(machine)
    times = 3 if training else 1
    low = DTYPES[keeping]
    high = "bfloat16" if low == "fp8" else low
    found = []
    for name, layers, flops, bytes_ in _parts(a, tokens, keeping, a.context if context is None else context):
        dtype = {"router": "float32", "scores": high, "embedding": high, "output": high}.get(name, low)
        peak = peaks.flops[next(d for d in _wider(dtype) if d in peaks.flops)]
        work, moved = times * flops, times * bytes_
        found.append(Part(name, layers, work, moved, work / peak, moved / peaks.bandwidth))
    return found


def peaks_of(card: Accelerator) -> Peaks:
    """An accelerator's peaks from its datasheet."""
    flops = {"float32": card.float32, "bfloat16": card.bf16}
    return Peaks(flops | ({} if card.fp8 is None else {"fp8": card.fp8}), card.bandwidth, threads=0)


def total(parts: list[Part]) -> float:
    """Seconds of the whole model, one part after another."""
    return sum(part.layers * part.seconds for part in parts)


def visited(a: Architecture, tokens: int) -> float:
    """Experts of a layer that have work, on average, where every choice is equally likely."""
    return a.n_experts * (1 - (1 - a.top_k / a.n_experts) ** tokens)


def _wider(dtype: str) -> list[str]:
    order = ["fp8", "bfloat16", "float32"]
    return order[order.index(dtype) :]


Row = tuple[str, int, float, float]


def _parts(a: Architecture, tokens: int, keeping: str, context: int) -> Iterator[Row]:
    """Name, layers that have it, operations and bytes of the forward pass."""
    other, number = STORAGE_PRECISIONS[keeping].other, STORED[keeping].plain
    queries, keys, values, out = attention_widths(a)
    dense, seen = a.n_layers - a.n_mixtures, (context + 1) / 2
    through = 2 * a.dim + queries + keys + values + out
    yield "projections", a.n_layers, *_linear(keeping, attention(a), tokens, through)
    # Queries in, results out; the keys and values of all that is attended to, as the cache keeps them.
    moved = tokens * (queries + out) + max(tokens, seen) * cached_numbers(a)
    yield "scores", a.n_layers, 2.0 * tokens * scored_numbers(a) * seen, number * moved
    if a.n_mixtures:
        gate = a.n_experts * a.dim
        yield "router", a.n_mixtures, 2.0 * gate * tokens, other * gate + 4 * tokens * (a.dim + a.n_experts)
    if a.n_mixtures and a.n_shared:
        width = a.n_shared * a.expert_dim
        yield "shared", a.n_mixtures, *_linear(keeping, network(a, width), tokens, _through(a, width))
    if a.n_mixtures:
        one, rows = network(a, a.expert_dim), tokens * a.top_k
        flops, moved = _linear(keeping, one, rows, _through(a, a.expert_dim))
        yield (
            "routed",
            a.n_mixtures,
            flops,
            moved + (visited(a, tokens) - 1) * one * STORAGE_PRECISIONS[keeping].linear,
        )
    if dense:
        yield "dense", dense, *_linear(keeping, network(a, a.hidden_dim), tokens, _through(a, a.hidden_dim))
    yield "embedding", 1, 0.0, (other + number) * tokens * a.dim  # rows looked up, and written
    head = a.dim * a.vocab_size
    yield "output", 1, 2.0 * head * tokens, other * head + number * tokens * (a.dim + a.vocab_size)


def _linear(keeping: str, weights: int, rows: int, through: int) -> tuple[float, float]:
    """Operations of weights that ``rows`` tokens go through, and bytes, with ``through`` numbers in and out a
    token."""
    moved = STORAGE_PRECISIONS[keeping].linear * weights + STORED[keeping].plain * rows * through
    return 2.0 * weights * rows, moved


def _through(a: Architecture, width: int) -> int:
    """Numbers a token into and out of a network's products: its input and result, what comes out of the first
    products (gate and up) and what goes into the last."""
    return 2 * a.dim + (3 if a.gated else 2) * width
