"""Which numbers of a matmul become how many bits, and how their products are added up.

A recipe names three operands. In training every weight matrix W is in three products,

    forward          y  = x W        activation x, weight W       contracted over the inputs
    input gradient   dx = g Wᵀ       gradient g,   weight W       contracted over the outputs
    weight gradient  dW = xᵀ g       activation x, gradient g     contracted over the tokens

and each is quantised along the axis that the product at hand contracts, from high precision every time: what
shares a scale must lie on one contracted axis, and rounding what was rounded along another loses twice.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.blockwise import Block, check_block
from minimoe.precision.formats import BF16, E4M3, E5M2, Format
from minimoe.precision.quantize import Quantized, fake_quantize, quantize
from minimoe.precision.scales import Scale, check_scale, is_power_of_two

Backend = Literal["auto", "fold", "bf16", "blocks", "hardware"]


@dataclass(frozen=True)
class Cast:
    """How one operand becomes few bits: a format, the block that shares a scale, and the scale's rule.

    ``block`` is (rows, columns) with the contracted axis as the columns, whatever axis that is in memory.
    None is one scale for the matrix.
    """

    fmt: Format
    block: Block | None = None
    scale: Scale = "fp32"

    def __post_init__(self) -> None:
        check_block(self.block)
        check_scale(self.scale)

    def quantize(self, x: Tensor, contracted: int) -> Quantized:
        """x (..., M, K), contracted along its axis -1 or -2 -> codes and scales in x's own layout."""
        return quantize(x, self.fmt, self._block(contracted), self.scale)

    def fake(self, x: Tensor, contracted: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """What those codes mean, as ``dtype``."""
        if x.stride(-2) == 1 and x.stride(-1) != 1:  # a transpose: work in the order of memory
            return self.fake(x.mT, -1 if contracted == -2 else -2, dtype).mT
        return fake_quantize(x, self.fmt, self._block(contracted), self.scale, dtype)

    def _block(self, contracted: int) -> Block:
        block = self.block or (None, None)  # a matrix of a stack has its own scale
        return block if contracted == -1 else (block[1], block[0])

    @property
    def exact_in_bf16(self) -> bool:
        """Whether what the codes mean is a bf16: few mantissa bits under a power of two. (Below 1e-38, where
        bf16 has fewer bits and some processors none, it may not be.)"""
        return is_power_of_two(self.scale) and self.fmt.mantissa_bits <= BF16.mantissa_bits


@dataclass(frozen=True)
class Recipe:
    """How the matmuls of a layer are done.

    Args:
        name: for people.
        activation, weight, gradient: how each kind of operand is cast; None leaves it as it is.
        accumulator: how sums are kept. Other than float32 they are emulated, sum by sum, and slow; stochastic
            ones draw from torch's global generator.
        output: the format that the result is rounded to, None for float32.
        backend: ``fold``, one float32 matmul of what the codes mean; ``bf16``, the same in bf16 with sums in
            float32, for scales that are powers of two (exact in bf16) and an ``output`` of BF16; ``blocks``,
            the definition, block by block with the accumulator named, each block's sum scaled and added in
            float32; ``hardware``, torch's scaled matmul of the codes; ``auto``, the fastest that is exact.

    Raises:
        ValueError: an unknown backend, or one that cannot do what the recipe says.
    """

    name: str
    activation: Cast | None = None
    weight: Cast | None = None
    gradient: Cast | None = None
    accumulator: Accumulator = Accumulator.fp32()  # noqa: RUF009 (frozen)
    output: Format | None = None
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, not {self.backend!r}")
        if self.backend in ("fold", "bf16") and self.accumulator != Accumulator.fp32():
            raise ValueError(
                f"backend {self.backend!r} sums in float32; take 'blocks' for {self.accumulator}"
            )
        casts = (self.activation, self.weight, self.gradient)
        if self.backend == "bf16" and not (
            self.output == BF16 and all(cast is not None and cast.exact_in_bf16 for cast in casts)
        ):
            raise ValueError(
                "backend 'bf16' needs output BF16 and casts that are exact in bf16 "
                f"(scales that are powers of two); {self.name} has not; take 'fold'"
            )

    def with_(self, **changes) -> "Recipe":
        """A copy with other fields, for instance ``recipe.with_(accumulator=Accumulator.tensor_core())``."""
        return replace(self, **changes)


TILE, BLOCK = (1, 128), (128, 128)

DEEPSEEK_V3 = Recipe("deepseek-v3", Cast(E4M3, TILE), Cast(E4M3, BLOCK), Cast(E4M3, TILE))

"""V3, section 3.3: E4M3 everywhere, 1×128 tiles of activations and gradients, 128×128 blocks of weights."""

DEEPSEEK_V3_POW2 = Recipe(
    "deepseek-v3-pow2",
    Cast(E4M3, TILE, "pow2"),
    Cast(E4M3, BLOCK, "pow2"),
    Cast(E4M3, TILE, "pow2"),
    output=BF16,
)

"""The same with scales that are powers of two, as in DeepSeek-V3.1, and results in bf16, as V3's are."""

TENSORWISE = Recipe("tensorwise", Cast(E4M3), Cast(E4M3), Cast(E5M2))

"""One scale a tensor; E4M3 forward, E5M2 for gradients (Micikevicius et al., arXiv 2209.05433)."""

_ROW = Cast(E4M3, (1, None))

ROWWISE = Recipe("rowwise", _ROW, _ROW, _ROW)

"""One scale for each row of x and each column of W: for each vector that is contracted."""

_MX = Cast(E4M3, (1, 32), "ocp")

MXFP8 = Recipe("mxfp8", _MX, _MX, _MX)

"""OCP MX 1.0: blocks of 32 along the contracted axis, scales E8M0 by the standard's rule."""

_UNSCALED = Cast(E4M3, None, "none")

NAIVE = Recipe("naive", _UNSCALED, _UNSCALED, _UNSCALED)

"""The bad example: E4M3 without any scale."""

FULL = Recipe("full")

"""Nothing quantised."""

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (FULL, DEEPSEEK_V3, DEEPSEEK_V3_POW2, TENSORWISE, ROWWISE, MXFP8, NAIVE)
}


def as_recipe(recipe: Recipe | str) -> Recipe:
    """A Recipe as it is, or one of ``RECIPES`` by name.

    Raises:
        ValueError: there is no such name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe in RECIPES:
        return RECIPES[recipe]
    raise ValueError(f"unknown recipe {recipe!r}; take one of {', '.join(RECIPES)}, or make a Recipe")
