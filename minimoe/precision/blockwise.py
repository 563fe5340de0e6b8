"""[speed] Quantization on a CPU in pieces that stay in a core's cache, in as few passes as possible.

The results are those of the definition in ``quantize``, bit for bit except for the sign of zeros.

Dimensions: B matrices of a stack, M rows, K columns.
"""

import math

import torch
from torch import Tensor

from minimoe.precision.arguments import Block, ScaleRule
from minimoe.precision.codec import encode
from minimoe.precision.formats import E4M3, E5M2, Format
from minimoe.precision.rounding import round_to
from minimoe.precision.scales import scale_of

CHUNK = 1 << 17  # numbers per piece: half a megabyte, which a core's cache holds together with the result


class _NotPlain(Exception):
    """Some number is infinite, NaN or huge."""


def quantize_chunks(
    x: Tensor, fmt: Format, block: Block | None, rule: ScaleRule, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """The codes (or, for a wide ``dtype``, the numbers they stand for) and the scales, float32. None where
    the definition must do it: not eager on a CPU, float64, or numbers that are infinite, NaN or above 2^120.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.dtype == torch.float64 or not x.numel():
        return None
    x, out = x.detach(), torch.empty(x.shape, dtype=dtype)
    # Without a block the whole tensor is one matrix. A block larger than the matrix is the matrix.
    x_BMK = x.reshape(math.prod(x.shape[:-2]) if block else 1, -1, x.shape[-1] if x.ndim else 1)
    sides = zip(block or (None, None), x_BMK.shape[1:], strict=True)
    rows, columns = (min(side or size, size) for side, size in sides)
    try:
        scales = _fill(out.view(x_BMK.shape), x_BMK, fmt, rows, columns, rule)
    except _NotPlain:
        return None
    shape = (*x.shape[:-2], *scales.shape[1:])[-x.ndim :] if block and x.ndim else (1,) * x.ndim
    return out, scales.view(shape)


def _fill(out_BMK: Tensor, x_BMK: Tensor, fmt: Format, rows: int, columns: int, rule: ScaleRule) -> Tensor:
    """Write ``out_BMK``; return the scales (B, ceil(M / rows), ceil(K / columns))."""
    batch, height, width = x_BMK.shape
    for axis, size, side in ((1, height, rows), (2, width, columns)):
        if ragged := size % side:  # the smaller blocks at the edge separately
            parts = (t.split((size - ragged, ragged), axis) for t in (out_BMK, x_BMK))
            sides = ((rows, columns), (ragged, columns) if axis == 1 else (rows, ragged))
            pieces = zip(*parts, sides, strict=True)
            return torch.cat([_fill(out, x, fmt, r, c, rule) for out, x, (r, c) in pieces], axis)
    if batch > 1 and height * width > CHUNK:
        pairs = zip(out_BMK.split(1), x_BMK.split(1), strict=True)
        return torch.cat([_fill(out, x, fmt, rows, columns, rule) for out, x in pairs])
    if height * width <= CHUNK:
        axis, step = 0, CHUNK // (height * width)
    else:
        axis, step = 1, rows * max(1, CHUNK // (rows * width))
    scale = None
    if axis == 1 and rows == height:  # blocks higher than a piece: their scales first
        step = max(1, CHUNK // width)
        amax = [_amax(_tiles(x, x.shape[1], columns)) for x in x_BMK.split(step, 1)]
        scale = scale_of(torch.stack(amax).amax(0), fmt, rule)
    scales = []
    for out, x in zip(out_BMK.split(step, axis), x_BMK.split(step, axis), strict=True):
        high = min(rows, x.shape[1])
        tiles = _tiles(x, high, columns)
        scales.append(scale_of(_amax(tiles), fmt, rule) if scale is None else scale)
        _write(_tiles(out, high, columns), tiles, scales[-1], fmt, rule)
    return (torch.cat(scales, axis) if scale is None else scale).view(batch, -1, width // columns)


def _tiles(x_BMK: Tensor, rows: int, columns: int) -> Tensor:
    """A view (B, M / rows, rows, K / columns, columns)."""
    batch, height, width = x_BMK.shape
    return x_BMK.view(batch, height // rows, rows, width // columns, columns)


def _amax(tiles: Tensor) -> Tensor:
    high, low = tiles, tiles
    for axis in (2, 4):  # one after the other: both at once is several times slower
        if tiles.shape[axis] > 1:
            high, low = high.amax(axis, keepdim=True), low.amin(axis, keepdim=True)
    amax = torch.maximum(high, -low).float()
    if not amax.max().item() < 2.0**120:
        raise _NotPlain
    return amax


def _write(out: Tensor, tiles: Tensor, scale: Tensor, fmt: Format, rule: ScaleRule) -> None:
    scaled = tiles / scale  # float32 at least
    if rule not in ("fp32", "pow2"):  # the others can exceed the format's range by more than a rounding
        scaled.clamp_(-fmt.max, fmt.max)
    if out.dtype not in (fmt.dtype, torch.uint8):
        torch.mul(_round_(scaled, fmt), scale, out=out)
    elif fmt in (E4M3, E5M2):
        out.copy_(scaled)  # torch's cast rounds to nearest even; its versions differ on overflow only
    else:
        out.copy_(encode(round_to(scaled, fmt), fmt))


def _round_(x: Tensor, fmt: Format) -> Tensor:
    """``round_to`` in place and in fewer passes, for finite float32 numbers in the format's range; the sign
    of zeros is lost. Adding 1.5 * 2^(e + 23 - m) to a number with exponent e leaves no room for bits below
    its m-th: the addition rounds them to nearest even, and the subtraction restores the rest."""
    exponent = torch.bitwise_and(x.view(torch.int32), 0x7F800000).clamp_min_((127 + fmt.min_exponent) << 23)
    large = exponent.add_(((23 - fmt.mantissa_bits) << 23) | 0x400000).view(torch.float32)
    return x.add_(large).sub_(large)
