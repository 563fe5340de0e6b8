"""Tensors in 8 bits: blocks of numbers that share a scale.

    data = round(x / scale)        x ≈ data * scale        scale = amax / max of the format

amax is the largest finite magnitude of a block. A block is rows × columns of the last two axes, ``None`` for
the whole axis: (1, 128) is V3's tile of activations, (128, 128) its block of weights, (1, None) a row,
(1, 32) MX's block; no block at all is one scale for the whole tensor (V3, section 3.3.2; OCP MX 1.0).

What is not finite stays so: an infinity or NaN becomes one in the data and leaves its block's other numbers
alone. Only formats without NaN (FP6, FP4, INT8) have no place for it but the scale, and lose the block.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minimoe.precision.decode import decode, decode_finite, encode
from minimoe.precision.formats import E4M3, E5M2, Format, as_format
from minimoe.precision.rounding import round_to
from minimoe.precision.scales import Scale, check_scale, is_power_of_two, scale_of

Block = tuple[int | None, int | None]

CHUNK = 1 << 17  # numbers worked on at a time: half a megabyte, which a core's cache holds with its results


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
    format's codes instead of overflowing.

    Raises:
        ValueError: an unknown format or scale, a format of more than 8 bits, a block that is not positive.
        TypeError: x is not a tensor of real floating-point numbers.
    """
    fmt = _check(x, fmt, block, scale)
    data = torch.empty(x.shape, dtype=fmt.dtype or torch.uint8, device=x.device)
    scales = _fill(data, x, fmt, block, scale)
    return Quantized(data, scales.to(torch.float8_e8m0fnu) if is_power_of_two(scale) else scales, fmt, block)


def fake_quantize(
    x: Tensor,
    fmt: Format | str,
    block: Block | None = None,
    scale: Scale = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``quantize(x, ...).dequantize(dtype)`` to the bit, without the codes ever being stored."""
    fmt = _check(x, fmt, block, scale)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    _fill(out, x, fmt, block, scale)
    return out


def _fill(out: Tensor, x: Tensor, fmt: Format, block: Block | None, scale: Scale) -> Tensor:
    """Writes codes or, where ``out`` is a wide float, what they mean. Returns the scales, float32."""
    x = x.detach()
    width = x.shape[-1] if x.ndim else 1
    if block is None or x.ndim < 2:  # all of it is one matrix
        x_BMK = x.reshape(1, x.numel() // max(width, 1), width)
    else:
        x_BMK = x.reshape(math.prod(x.shape[:-2]), x.shape[-2], width)
    batch, height = x_BMK.shape[:2]
    sides = block or (None, None)
    # A side of 0 means an axis of 0; a block larger than the matrix is the matrix.
    rows, columns = (min(side or size, size) for side, size in zip(sides, x_BMK.shape[1:], strict=True))
    counts = (*x.shape[:-2], -(-height // max(rows, 1)), -(-width // max(columns, 1)))
    shape = counts[-x.ndim :] if block and x.ndim else (1,) * x.ndim
    if not x.numel():
        return torch.ones(shape, device=x.device)
    if height % rows == 0 and rows * width <= CHUNK:
        x_BMK = x_BMK.reshape(1, batch * height, width)  # no block lies across two: treat them as one
    matrices = zip(x_BMK, out.view(x_BMK.shape), strict=True)
    return torch.cat(
        [_fill_matrix(out_MK, x_MK, fmt, rows, columns, scale) for x_MK, out_MK in matrices]
    ).view(shape)


def _fill_matrix(out_MK: Tensor, x_MK: Tensor, fmt: Format, rows: int, columns: int, scale: Scale) -> Tensor:
    """The same for one matrix, in pieces that stay in a core's cache while they are worked on."""
    height, width = x_MK.shape
    for axis, (size, side) in enumerate(((height, rows), (width, columns))):
        if over := size % side:  # the smaller blocks at the edge by themselves
            sides = ((rows, columns), (over, columns) if axis == 0 else (rows, over))
            parts = [t.split((size - over, over), axis) for t in (out_MK, x_MK)]
            return torch.cat(
                [_fill_matrix(out, x, fmt, *side, scale) for out, x, side in zip(*parts, sides, strict=True)],
                axis,
            )
    at_once = CHUNK if _eager_on_cpu(x_MK) else height * width
    if rows == height and rows * width > at_once:  # blocks higher than a piece: their scales first
        step = max(1, at_once // width)
        measured = [_amax(_tiles(x, len(x), columns), fmt) for x in x_MK.split(step)]
        amax_1k = torch.stack([amax for amax, _ in measured]).amax(0)
        scale_1k, plain = scale_of(amax_1k, fmt, scale), all(plain for _, plain in measured)
        for x, out in zip(x_MK.split(step), out_MK.split(step), strict=True):
            _write(_tiles(out, len(x), columns), _tiles(x, len(x), columns), scale_1k, plain, fmt, scale)
        return scale_1k
    step = rows * max(1, at_once // (rows * width))
    scales = []
    for x, out in zip(x_MK.split(step), out_MK.split(step), strict=True):
        tiles = _tiles(x, rows, columns)
        amax_mk, plain = _amax(tiles, fmt)
        scales.append(scale_of(amax_mk, fmt, scale))
        _write(_tiles(out, rows, columns), tiles, scales[-1], plain, fmt, scale)
    return torch.cat(scales)


def _tiles(x_MK: Tensor, rows: int, columns: int) -> Tensor:
    """(M / rows, rows, K / columns, columns), a view."""
    return x_MK.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))


def _amax(tiles: Tensor, fmt: Format) -> tuple[Tensor, bool]:
    """Each block's largest finite magnitude, float32; NaN where the format could not say that not all is
    finite. And whether all was float32, finite and not huge: then torch's own cast and a shifted scale do
    exactly what ``round_to`` and the scale would. (Asking makes the host wait; only a CPU is asked.)"""
    magnitude = tiles.abs()
    amax = magnitude.amax((1, 3)).float()
    if _eager_on_cpu(tiles) and tiles.dtype != torch.float64 and bool((amax < 2.0**120).all()):
        return amax, True
    amax = torch.where(magnitude < torch.inf, magnitude, 0.0 if fmt.has_nan else torch.nan).amax((1, 3))
    return amax.clamp_max(torch.finfo(torch.float32).max).float(), False


def _write(out: Tensor, tiles: Tensor, scale_mk: Tensor, plain: bool, fmt: Format, rule: Scale) -> None:
    """Round the tiles under their scales, and write what ``out`` is for."""
    scale = scale_mk[:, None, :, None]
    scaled = tiles / scale  # float32 at least
    as_codes = out.dtype in (fmt.dtype, torch.uint8)
    if plain and fmt in (E4M3, E5M2):
        if rule not in ("fp32", "pow2"):  # these two never exceed the largest number by more than rounds off
            scaled.clamp_(-fmt.max, fmt.max)
        if as_codes:
            out.copy_(scaled)
        else:
            shifted, power = decode_finite(scaled.to(fmt.dtype), fmt)
            torch.mul(shifted, scale * power, out=out)
    else:
        numbers = round_to(scaled, fmt)
        out.copy_(encode(numbers, fmt) if as_codes else numbers.float() * scale)


def _eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


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


def check_block(block: Block | None) -> None:
    """Raises ValueError for a block that is not two positive sides."""
    if block is None:
        return
    good = isinstance(block, tuple) and len(block) == 2
    if not good or any(side is not None and (type(side) is not int or side < 1) for side in block):
        raise ValueError(
            f"block must be (rows, columns), each at least 1, or None for the whole axis; not {block!r}"
        )
