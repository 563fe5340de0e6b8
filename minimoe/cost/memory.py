"""Bytes of weights, gradients, optimizer and key/value cache, by how numbers are kept.

``float32``: everything, as this project trains. ``bf16``: weights and cache, with float32 masters, gradients
and moments. ``deepseek-v3``: weights of the linear layers in 8 bits with a float32 scale for each 128x128
block; embedding, output, router and norms in bf16; masters and gradients in float32, AdamW's moments in bf16
(arXiv 2412.19437, sections 3.3.1 to 3.3.3).
"""

from dataclasses import dataclass

from minimoe.cost.architecture import Architecture
from minimoe.cost.parameters import count

BLOCK = 128 * 128


@dataclass(frozen=True)
class StoragePrecision:
    """Bytes a number, by what it is."""

    name: str
    linear: float
    """weights of the linear layers as they are multiplied, scales included"""
    other: float
    """embedding, output, router and norms"""
    master: float
    """a second copy of the weights that the optimizer changes; 0 where there is none"""
    gradient: float
    moments: float
    """AdamW's two, together"""
    cache: float
    """a number of the key/value cache"""


STORAGE_PRECISIONS: dict[str, StoragePrecision] = {
    k.name: k
    for k in (
        StoragePrecision("float32", 4, 4, 0, 4, 8, 4),
        StoragePrecision("bf16", 2, 2, 4, 4, 8, 2),
        StoragePrecision("deepseek-v3", 1 + 4 / BLOCK, 2, 4, 4, 4, 2),
    )
}


@dataclass(frozen=True)
class MemoryFootprint:
    """Of a whole model; the cache of one token."""

    weights: float
    master: float
    gradients: float
    optimizer: float
    cache_per_token: float

    @property
    def training(self) -> float:
        """Without activations."""
        return self.weights + self.master + self.gradients + self.optimizer


def memory_footprint(a: Architecture, keeping: str = "bf16") -> MemoryFootprint:
    """Raises ValueError for an unknown way to keep numbers."""
    if keeping not in STORAGE_PRECISIONS:
        raise ValueError(f"keeping must be one of {', '.join(STORAGE_PRECISIONS)}, not {keeping!r}")
    how, n = STORAGE_PRECISIONS[keeping], count(a)
    linear = n.attention + n.dense + n.shared + n.routed
    return MemoryFootprint(
        weights=linear * how.linear + (n.total - linear) * how.other,
        master=n.total * how.master,
        gradients=n.total * how.gradient,
        optimizer=n.total * how.moments,
        cache_per_token=a.n_layers * cached_numbers(a) * how.cache,
    )


def cached_numbers(a: Architecture) -> int:
    """Numbers that a layer keeps of a token: keys and values of each key/value head, or the latent and one
    rotary key."""
    if a.latent is not None:
        return a.latent.kv_rank + a.latent.rope_dim
    return 2 * a.kv_heads * a.head_dim
