"""Tensors in 8 bits: blocks of numbers that share a scale.

    data = round(x / scale)        x ≈ data * scale        scale = amax / max of the format

amax is the largest finite magnitude of a block. A block is rows × columns of the last two axes, ``None`` for
the whole axis: (1, 128) is V3's tile of activations, (128, 128) its block of weights, (1, None) a row,
(1, 32) MX's block; no block at all is one scale for the whole tensor (V3, section 3.3.2; OCP MX 1.0).

What is not finite stays so: an infinity or NaN becomes one in the data and leaves its block's other numbers
alone. Only formats without NaN (FP6, FP4, INT8) have no place for it but the scale, and lose the block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minimoe.precision.blockwise import Block, check_block, fill
from minimoe.precision.codec import decode
from minimoe.precision.formats import Format, as_format
from minimoe.precision.scales import Scale, check_scale, is_power_of_two


@dataclass(frozen=True)
class Quantized:
    """A tensor in 8 bits.

    Attributes:
        data: (..., M, K) codes, in torch's dtype of the format or uint8.
        scale_codes: one a block, (..., ceil(M / rows), ceil(K / columns)): float32, or E8M0 (one byte) where
            scales are powers of two.
        fmt, block: as given to ``quantize``.
    """

    data: Tensor
    scale_codes: Tensor
    fmt: Format
    block: Block | None

    @property
    def scale(self) -> Tensor:
        """float32: what a block's codes are multiplied with."""
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
        """The same with its last two axes exchanged; a view."""
        block = self.block and (self.block[1], self.block[0])
        return Quantized(self.data.mT, self.scale_codes.mT, self.fmt, block)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """data * scale, computed in float32."""
        if self.data.ndim > 1 and self.data.stride(-2) == 1 != self.data.stride(-1):
            return self.mT.dequantize(dtype).mT  # in the order of memory
        return (decode(self.data, self.fmt) * self.spread_scale()).to(dtype)

    def spread_scale(self) -> Tensor:
        """The scale of each number, float32; broadcasts to the data's shape."""
        return spread(self.scale, self.block, self.shape)


def spread(scale: Tensor, block: Block | None, shape: torch.Size) -> Tensor:
    """One scale a block -> one a number of a tensor of this shape (or what broadcasts to that)."""
    if block is None or not shape:
        return scale
    for axis, side in zip((-2, -1)[-len(shape) :], block[-len(shape) :], strict=True):
        if side is not None and side > 1:
            scale = scale.repeat_interleave(side, axis).narrow(axis, 0, shape[axis])
    return scale


def quantize(x: Tensor, fmt: Format | str, block: Block | None = None, scale: Scale = "fp32") -> Quantized:
    """Scale x block by block and round it to ``fmt``, to nearest, saturating.

    Args:
        x: (..., M, K) floats, or (K,), a single row. Each leading index has its own blocks; with no
            ``block`` the whole tensor has one scale.
        fmt: a format of at most 8 bits. Where torch has no dtype for it, a byte holds one code.
        block: (rows, columns) that share a scale, each at least 1, None for the whole axis. Blocks at the
            edge may be smaller.
        scale: ``fp32``, ``pow2`` (rounded up to a power of two), or see ``scales``.

    A block of zeros has scale 1. Scales are at least 2^-126, so an amax below about 1e-35 uses fewer of the
    format's codes instead of overflowing. Within a rounding of float32's largest number, a code can mean
    more than float32 holds, and comes back infinite.

    Raises:
        ValueError: an unknown format or scale, a format of more than 8 bits, a block that is not positive.
        TypeError: x is not a tensor of real floating-point numbers.
    """
    fmt = _check(x, fmt, block, scale)
    data = torch.empty(x.shape, dtype=fmt.dtype or torch.uint8, device=x.device)
    scales = fill(data, x, fmt, block, scale)
    return Quantized(data, scales.to(torch.float8_e8m0fnu) if is_power_of_two(scale) else scales, fmt, block)


def fake_quantize(
    x: Tensor,
    fmt: Format | str,
    block: Block | None = None,
    scale: Scale = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``quantize(x, ...).dequantize(dtype)`` without the codes ever being there, and faster. The same numbers
    to the bit, but for the sign of zeros."""
    fmt = _check(x, fmt, block, scale)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    fill(out, x, fmt, block, scale)
    return out


def _check(x: Tensor, fmt: Format | str, block: Block | None, scale: str) -> Format:
    fmt = as_format(fmt)
    if fmt.bits > 8 or fmt.specials == "scale":
        raise ValueError(f"quantize takes signed formats of at most 8 bits, not {fmt} ({fmt.bits} bits)")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.itemsize == 1:
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"quantize takes floats of 16 bits or more, not {kind}; convert it first")
    check_scale(scale)
    check_block(block)
    return fmt
