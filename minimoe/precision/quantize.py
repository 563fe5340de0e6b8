"""Quantization: tensors in 8 bits, with one scale per block.

    data = round(x / scale)        x ≈ data * scale        scale = amax / max of the format

amax is the largest finite magnitude of a block. A block is rows × columns of the last two axes, ``None`` for
the whole axis: (1, 128) is V3's tile of activations, (128, 128) its block of weights, (1, None) a row,
(1, 32) MX's block; without a block the whole tensor has one scale (V3, section 3.3.2; OCP MX 1.0).

An infinity or NaN stays one in the data and does not affect its block's other numbers. In formats without
NaN (FP6, FP4, INT8) only the scale can show it, and the block is lost.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minimoe.precision.arguments import Block, ScaleRule, check_quantization
from minimoe.precision.blockwise import quantize_chunks
from minimoe.precision.codec import decode, encode
from minimoe.precision.formats import Format, as_format
from minimoe.precision.rounding import round_to
from minimoe.precision.scales import block_amax, scale_of, spread


@dataclass(frozen=True)
class Quantized:
    """A tensor in 8 bits.

    Attributes:
        data: (..., M, K) codes, in torch's dtype of the format or uint8.
        scale_codes: one per block, (..., ceil(M / rows), ceil(K / columns)): float32, or E8M0 (one byte) if
            scales are powers of two.
        fmt, block: as given to ``quantize``.
    """

    data: Tensor
    scale_codes: Tensor
    fmt: Format
    block: Block | None

    @property
    def scale(self) -> Tensor:
        """The scale per block, float32."""
        return self.scale_codes.float()

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the data and the scales."""
        return self.data.nbytes + self.scale_codes.nbytes

    @property
    def mT(self) -> "Quantized":
        """A view with the last two axes exchanged."""
        block = self.block and (self.block[1], self.block[0])
        return Quantized(self.data.mT, self.scale_codes.mT, self.fmt, block)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """data * scale, computed in float32."""
        if self.data.ndim > 1 and self.data.stride(-2) == 1 != self.data.stride(-1):
            return self.mT.dequantize(dtype).mT  # a transpose: work in memory order
        return (decode(self.data, self.fmt) * self.spread_scale()).to(dtype)

    def spread_scale(self) -> Tensor:
        """The scale per number, float32; broadcasts to the data's shape."""
        return spread(self.scale, self.block, self.shape)


def quantize(
    x: Tensor, fmt: Format | str, block: Block | None = None, scale: ScaleRule = "fp32"
) -> Quantized:
    """Scale x block by block and round it to ``fmt``, to nearest, saturating.

    Args:
        x: (..., M, K) floats, or (K,), a single row. Each leading index has its own blocks; without a
            ``block`` the whole tensor has one scale.
        fmt: a format of at most 8 bits. Where torch has no dtype for it, one byte holds one code.
        block: (rows, columns) that share a scale, each at least 1, None for the whole axis. Blocks at the
            edge may be smaller.
        scale: the rule: ``fp32``, ``pow2`` (rounded up to a power of two), or another of ``scales``.

    A block of zeros has scale 1. Scales are at least 2^-126, so a block with amax below about 1e-35 uses
    fewer of the format's codes instead of overflowing. Within a rounding error of float32's largest number,
    a code may stand for more than float32 holds; it dequantizes to infinity.

    Raises:
        ValueError: an unknown format or scale, a format of more than 8 bits, or an invalid block.
        TypeError: x is not a tensor of real floating-point numbers.
    """
    fmt = as_format(fmt)
    check_quantization(x, fmt, block, scale)
    fast = quantize_chunks(x, fmt, block, scale, fmt.dtype or torch.uint8)
    if fast:
        codes, scales = fast
    else:
        numbers, scales = _round_blocks(x, fmt, block, scale)
        codes = encode(numbers, fmt)
    return Quantized(codes, scales if scale == "fp32" else scales.to(torch.float8_e8m0fnu), fmt, block)


def fake_quantize(
    x: Tensor, fmt: Format | str, block: Block | None = None, scale: ScaleRule = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """``quantize(x, ...).dequantize(dtype)`` without making the codes, which is faster: the same numbers to
    the bit, except for the sign of zeros."""
    fmt = as_format(fmt)
    check_quantization(x, fmt, block, scale)
    fast = quantize_chunks(x, fmt, block, scale, dtype)
    if fast:
        return fast[0]
    numbers, scales = _round_blocks(x, fmt, block, scale)
    return (numbers.float() * spread(scales, block, x.shape)).to(dtype)


def _round_blocks(x: Tensor, fmt: Format, block: Block | None, rule: ScaleRule) -> tuple[Tensor, Tensor]:
    """The definition: numbers of ``fmt`` in x's shape, and the scales, float32."""
    x = x.detach()
    scales = scale_of(block_amax(x, fmt, block), fmt, rule)
    return round_to(x / spread(scales, block, x.shape), fmt), scales
