"""Recipes: which operands of a matmul are quantized, how, and how their products are accumulated.

In training every weight matrix W takes part in three products,

    forward          y  = x W        activation x, weight W       contracted over the inputs
    input gradient   dx = g Wᵀ       gradient g,   weight W       contracted over the outputs
    weight gradient  dW = xᵀ g       activation x, gradient g     contracted over the tokens

and each operand is quantized from high precision along the axis that the product contracts: numbers that
share a scale must lie on one contracted axis, and rounding again what was rounded along another axis loses
twice.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.arguments import Block, ScaleRule, check_choice, check_scaling
from minimoe.precision.formats import BF16, E4M3, E5M2, Format
from minimoe.precision.quantize import Quantized, fake_quantize, quantize

Backend = Literal["auto", "dequantize", "bf16", "blocks", "hardware"]


@dataclass(frozen=True)
class Cast:
    """How one operand is quantized: the format, the block that shares a scale, and the scale's rule.

    ``block`` is (rows, columns) with the contracted axis as the columns, whichever axis that is in memory.
    None is one scale per matrix.
    """

    fmt: Format
    block: Block | None = None
    scale: ScaleRule = "fp32"

    def __post_init__(self) -> None:
        check_scaling(self.block, self.scale)

    def quantize(self, x: Tensor, contracted: int) -> Quantized:
        """x (..., M, K), contracted along its axis -1 or -2 -> codes and scales in x's own layout."""
        return quantize(x, self.fmt, self._block(contracted), self.scale)

    def fake_quantize(self, x: Tensor, contracted: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers that those codes stand for, as ``dtype``."""
        if x.stride(-2) == 1 and x.stride(-1) != 1:  # a transpose: work in memory order
            return self.fake_quantize(x.mT, -1 if contracted == -2 else -2, dtype).mT
        return fake_quantize(x, self.fmt, self._block(contracted), self.scale, dtype)

    def _block(self, contracted: int) -> Block:
        block = self.block or (None, None)  # each matrix of a stack has its own scale
        return block if contracted == -1 else (block[1], block[0])

    @property
    def exact_in_bf16(self) -> bool:
        """Whether bf16 holds the dequantized numbers: few mantissa bits times a power of two. (Below 1e-38,
        where bf16 has fewer bits and some processors flush to zero, it may not.)"""
        return self.scale != "fp32" and self.fmt.mantissa_bits <= BF16.mantissa_bits


@dataclass(frozen=True)
class Recipe:
    """How the matmuls of a layer are computed.

    Args:
        name: for display.
        activation, weight, gradient: how each kind of operand is cast; None leaves it in float32.
        accumulator: how sums are kept. All but float32 are emulated, and slow; stochastic rounding draws from
            torch's global generator.
        output: the format that the result is rounded to, None for float32.
        backend: ``blocks``, the definition: block by block with the given accumulator, each block's sum
            scaled and added in float32; ``dequantize``, one float32 matmul of the dequantized operands;
            ``bf16``, the same in bf16 with float32 sums, for scales that are powers of two (exact in bf16)
            and an ``output`` of BF16; ``hardware``, torch's scaled matmul of the codes; ``auto``, the fastest
            of these that is exact.

    Raises:
        ValueError: an unknown backend, or one that cannot compute what the recipe says.
    """

    name: str
    activation: Cast | None = None
    weight: Cast | None = None
    gradient: Cast | None = None
    accumulator: Accumulator = Accumulator.fp32()  # noqa: RUF009 (frozen)
    output: Format | None = None
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        check_choice("backend", self.backend, Backend)
        if self.backend in ("dequantize", "bf16") and self.accumulator != Accumulator.fp32():
            raise ValueError(f"backend {self.backend!r} sums in float32; use 'blocks' for {self.accumulator}")
        casts = (self.activation, self.weight, self.gradient)
        if self.backend == "bf16" and not (self.output == BF16 and all(c and c.exact_in_bf16 for c in casts)):
            raise ValueError(
                "backend 'bf16' needs output BF16 and casts that are exact in bf16 (scales that are powers "
                f"of two), unlike {self.name}; use 'dequantize'"
            )

    def with_(self, **changes) -> "Recipe":
        """A copy with other fields, for instance ``recipe.with_(accumulator=Accumulator.tensor_core())``."""
        return replace(self, **changes)


def _uniform(name: str, cast: Cast) -> Recipe:
    return Recipe(name, cast, cast, cast)


_TILE = Cast(E4M3, (1, 128))
_TILE_POW2 = replace(_TILE, scale="pow2")

DEEPSEEK_V3 = Recipe("deepseek-v3", _TILE, Cast(E4M3, (128, 128)), _TILE)
"""V3, section 3.3: E4M3 everywhere, 1×128 tiles of activations and gradients, 128×128 blocks of weights."""

DEEPSEEK_V3_POW2 = Recipe(
    "deepseek-v3-pow2", _TILE_POW2, Cast(E4M3, (128, 128), "pow2"), _TILE_POW2, output=BF16
)
"""The same with scales that are powers of two, as in DeepSeek-V3.1, and results in bf16, as V3's are."""

TENSORWISE = Recipe("tensorwise", Cast(E4M3), Cast(E4M3), Cast(E5M2))
"""One scale per tensor; E4M3 forward, E5M2 for gradients (Micikevicius et al., arXiv 2209.05433)."""

ROWWISE = _uniform("rowwise", Cast(E4M3, (1, None)))
"""One scale per row of x and per column of W: per vector that is contracted."""

MXFP8 = _uniform("mxfp8", Cast(E4M3, (1, 32), "ocp"))
"""OCP MX 1.0: blocks of 32 along the contracted axis, E8M0 scales by the standard's rule."""

NAIVE = _uniform("naive", Cast(E4M3, None, "none"))
"""E4M3 without scales: shows why they are needed."""

FULL = Recipe("full")
"""No quantization."""

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (FULL, DEEPSEEK_V3, DEEPSEEK_V3_POW2, TENSORWISE, ROWWISE, MXFP8, NAIVE)
}


def as_recipe(recipe: Recipe | str) -> Recipe:
    """A Recipe unchanged, or one of ``RECIPES`` by name.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe in RECIPES:
        return RECIPES[recipe]
    raise ValueError(f"unknown recipe {recipe!r}; use one of {', '.join(RECIPES)}, or define a Recipe")
