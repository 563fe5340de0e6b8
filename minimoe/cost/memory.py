"""Memory of weights, gradients, optimizer states and KV cache, by the precision in which they are stored.

``float32``: everything, as this project trains. ``bf16``: weights, activations and KV cache, with master
weights, gradients and moments in float32. ``deepseek-v3``: weights of linear layers in 8 bits with a float32
scale per 128x128 block; embedding, output, router and norms in bf16; master weights and gradients in float32,
AdamW's moments in bf16; inputs of linear layers, and the experts' gate and up, cached for the backward pass
in 8 bits with a float32 scale per 1x128 tile, those of the projection after attention in 12 bits (E5M6),
other activations in bf16 (arXiv 2412.19437, sections 3.3.1 to 3.3.3).
"""

from dataclasses import dataclass

from minimoe.cost.architecture import Architecture
from minimoe.cost.parameters import count

TILE_SCALE, BLOCK_SCALE = 4 / 128, 4 / 128**2  # bytes of scale per number


@dataclass(frozen=True)
class StoragePrecision:
    """Bytes per number, by what the number is."""

    name: str
    matmul_dtype: str
    """of the linear layers' matmuls"""
    linear: float
    """weights of linear layers as they are multiplied, scales included"""
    other: float
    """embedding, output, router and norms"""
    master: float
    """master weights, which the optimizer updates; 0 if it updates the weights themselves"""
    gradient: float
    moments: float
    """AdamW's two together"""
    cache: float
    """KV cache"""
    activation: float
    """activations, except the following"""
    linear_input: float
    attention_output: float
    """input of the projection after attention"""
    expert_hidden: float
    """gate and up of the routed experts"""


STORAGE_PRECISIONS: dict[str, StoragePrecision] = {
    precision.name: precision
    for precision in (
        StoragePrecision(
            "float32", "float32", linear=4, other=4, master=0, gradient=4, moments=8, cache=4,
            activation=4, linear_input=4, attention_output=4, expert_hidden=4,
        ),
        StoragePrecision(
            "bf16", "bfloat16", linear=2, other=2, master=4, gradient=4, moments=8, cache=2,
            activation=2, linear_input=2, attention_output=2, expert_hidden=2,
        ),
        StoragePrecision(
            "deepseek-v3", "fp8", linear=1 + BLOCK_SCALE, other=2, master=4, gradient=4, moments=4, cache=2,
            activation=2, linear_input=1 + TILE_SCALE, attention_output=1.5 + TILE_SCALE,
            expert_hidden=1 + TILE_SCALE,
        ),
    )
}  # fmt: skip


def get_storage_precision(name: str) -> StoragePrecision:
    """Raises ValueError for an unknown name."""
    if name not in STORAGE_PRECISIONS:
        raise ValueError(f"storage precision must be one of {', '.join(STORAGE_PRECISIONS)}, not {name!r}")
    return STORAGE_PRECISIONS[name]


@dataclass(frozen=True)
class MemoryFootprint:
    """Bytes of a model, by part."""

    weights: float
    master: float
    gradients: float
    optimizer: float
    cache_per_token: float

    @property
    def training(self) -> float:
        """All that training holds, except activations."""
        return self.weights + self.master + self.gradients + self.optimizer


def memory_footprint(a: Architecture, storage_precision: str = "bf16") -> MemoryFootprint:
    """Raises ValueError for an unknown storage precision."""
    per_number, n = get_storage_precision(storage_precision), count(a)
    linear = n.attention + n.dense + n.shared + n.routed
    return MemoryFootprint(
        weights=linear * per_number.linear + (n.total - linear) * per_number.other,
        master=n.total * per_number.master,
        gradients=n.total * per_number.gradient,
        optimizer=n.total * per_number.moments,
        cache_per_token=a.n_layers * kv_cache_numbers(a) * per_number.cache,
    )


def kv_cache_numbers(a: Architecture) -> int:
    """Numbers per token in a layer's KV cache: keys and values of all key/value heads, or the latent and one
    rotary key."""
    if a.latent is not None:
        return a.latent.kv_rank + a.latent.rope_dim
    return 2 * a.kv_heads * a.head_dim
