"""Block by block: find the largest number, make a scale of it, round under it, and write the result.

Everything goes in pieces that stay in a core's cache while they are worked on, and in as few passes as
possible; a compiler or a GPU is given all at once.

Dimensions: B matrices of a stack, M rows, K columns.
"""

import math

import torch
from torch import Tensor

from minimoe.precision.codec import encode
from minimoe.precision.formats import E4M3, E5M2, Format
from minimoe.precision.rounding import round_to
from minimoe.precision.scales import Scale, scale_of

Block = tuple[int | None, int | None]

CHUNK = 1 << 17  # numbers worked on at a time: half a megabyte, which a core's cache holds with its results


def check_block(block: Block | None) -> None:
    """Raises ValueError for a block that is not two positive sides."""
    if block is None:
        return
    good = isinstance(block, tuple) and len(block) == 2
    if not good or any(side is not None and (type(side) is not int or side < 1) for side in block):
        raise ValueError(
            f"block must be (rows, columns), each at least 1, or None for the whole axis; not {block!r}"
        )


def fill(out: Tensor, x: Tensor, fmt: Format, block: Block | None, scale: Scale) -> Tensor:
    """Writes codes or, where ``out`` is a wide float, what they mean. Returns the scales, float32."""
    x = x.detach()
    width = x.shape[-1] if x.ndim else 1
    if block is None or x.ndim < 2:  # all of it is one matrix
        x_BMK = x.reshape(1, x.numel() // max(width, 1), width)
    else:
        x_BMK = x.reshape(math.prod(x.shape[:-2]), x.shape[-2], width)
    # A block larger than the matrix is the matrix; a side of 0 belongs to an empty one.
    sides = zip(block or (None, None), x_BMK.shape[1:], strict=True)
    rows, columns = (min(side or size, size) for side, size in sides)
    counts = (*x.shape[:-2], -(-x_BMK.shape[1] // max(rows, 1)), -(-width // max(columns, 1)))
    shape = counts[-x.ndim :] if block and x.ndim else (1,) * x.ndim
    if not x.numel():
        return torch.ones(shape, device=x.device)
    return _fill_stack(out.view(x_BMK.shape), x_BMK, fmt, rows, columns, scale).view(shape)


def _fill_stack(out_BMK: Tensor, x_BMK: Tensor, fmt: Format, rows: int, columns: int, scale: Scale) -> Tensor:
    """The same for a stack of matrices, in pieces that stay in a core's cache while they are worked on."""
    batch, height, width = x_BMK.shape
    for axis, size, side in ((1, height, rows), (2, width, columns)):
        if over := size % side:  # the smaller blocks at the edge by themselves
            parts = (t.split((size - over, over), axis) for t in (out_BMK, x_BMK))
            sides = ((rows, columns), (over, columns) if axis == 1 else (rows, over))
            scales = [
                _fill_stack(o, x, fmt, s[0], s[1], scale) for o, x, s in zip(*parts, sides, strict=True)
            ]
            return torch.cat(scales, axis)
    at_once = CHUNK if _eager_on_cpu(x_BMK) else x_BMK.numel()
    axis = 0 if height * width <= at_once else 1
    if axis == 1 and batch > 1:
        pairs = zip(out_BMK.split(1), x_BMK.split(1), strict=True)
        return torch.cat([_fill_stack(out, x, fmt, rows, columns, scale) for out, x in pairs])
    known = None
    step = max(1, at_once // (height * width)) if axis == 0 else rows * max(1, at_once // (rows * width))
    if axis == 1 and rows == height:  # blocks higher than a piece: their scales first
        step = rows = max(1, at_once // width)
        measured = [_amax(_tiles(x, x.shape[1], columns), fmt) for x in x_BMK.split(step, 1)]
        amax = torch.stack([amax for amax, _ in measured]).amax(0)
        known = scale_of(amax, fmt, scale), all(plain for _, plain in measured)
    scales = []
    for out, x in zip(out_BMK.split(step, axis), x_BMK.split(step, axis), strict=True):
        high = min(rows, x.shape[1])
        tiles = _tiles(x, high, columns)
        if known:
            of_block, plain = known
        else:
            amax, plain = _amax(tiles, fmt)
            of_block = scale_of(amax, fmt, scale)
            scales.append(of_block)
        _write(_tiles(out, high, columns), tiles, of_block, plain, fmt, scale)
    result = known[0] if known else scales[0] if len(scales) == 1 else torch.cat(scales, axis)
    return result.view(batch, -1, width // columns)


def _tiles(x_BMK: Tensor, rows: int, columns: int) -> Tensor:
    """(B, M / rows, rows, K / columns, columns), a view."""
    batch, height, width = x_BMK.shape
    return x_BMK.view(batch, height // rows, rows, width // columns, columns)


def _amax(tiles: Tensor, fmt: Format) -> tuple[Tensor, bool]:
    """Each block's largest finite magnitude, float32; NaN where the format could not say that not all is
    finite. And whether all was float32, finite and not huge: then rounding needs no special cases. (Asking
    makes the host wait; only a CPU is asked.)"""
    if _eager_on_cpu(tiles) and tiles.dtype != torch.float64:
        high, low = tiles, tiles
        for axis in (2, 4):  # one after the other: both at once is several times slower
            if tiles.shape[axis] > 1:
                high, low = high.amax(axis, keepdim=True), low.amin(axis, keepdim=True)
        amax = torch.maximum(high, -low).float()
        if amax.max().item() < 2.0**120:
            return amax, True
    magnitude = tiles.abs()
    magnitude = torch.where(magnitude < torch.inf, magnitude, 0.0 if fmt.has_nan else torch.nan)
    amax = magnitude.amax((2, 4), keepdim=True)
    if amax.dtype == torch.float64:
        amax = amax.clamp_max(torch.finfo(torch.float32).max)
    return amax.float(), False


def _write(out: Tensor, tiles: Tensor, scale: Tensor, plain: bool, fmt: Format, rule: Scale) -> None:
    """Round the tiles under their scales, and write what ``out`` is for."""
    scaled = tiles / scale  # float32 at least
    as_codes = out.dtype in (fmt.dtype, torch.uint8)
    if plain and rule not in ("fp32", "pow2"):  # whose largest number exceeds the format's by a rounding
        scaled.clamp_(-fmt.max, fmt.max)
    if plain and not as_codes:
        torch.mul(_round_(scaled, fmt), scale, out=out)
    elif plain and fmt in (E4M3, E5M2):
        out.copy_(scaled)  # torch's cast rounds to nearest even; only on overflow its versions differ
    else:
        numbers = round_to(scaled, fmt)
        out.copy_(encode(numbers, fmt) if as_codes else numbers.float() * scale)


def _round_(x: Tensor, fmt: Format) -> Tensor:
    """``round_to`` in place, in fewer passes, of finite float32 numbers in the format's range; the sign of
    zeros is lost. Adding 1.5 * 2^(e + 23 - m) to a number with exponent e leaves no place for bits below its
    m-th: the addition rounds them, to nearest even, and the subtraction brings the rest back."""
    exponent = torch.bitwise_and(x.view(torch.int32), 0x7F800000).clamp_min_((127 + fmt.min_exponent) << 23)
    large = exponent.add_(((23 - fmt.mantissa_bits) << 23) | 0x400000).view(torch.float32)
    return x.add_(large).sub_(large)


def _eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
