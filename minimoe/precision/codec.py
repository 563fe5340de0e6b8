"""[speed] Conversion between numbers and their 8-bit codes, faster than torch's cast: ``fmt.values[code]``.

torch's own cast of E4M3 on a CPU reads code by code; here the codes' bits are moved to where a wider float
has them, and one multiplication by a power of two corrects the bias (exact, subnormals included).
"""

from functools import lru_cache

import torch
from torch import Tensor

from minimoe.precision.formats import E4M3, E5M2, Format


def decode(codes: Tensor, fmt: Format) -> Tensor:
    """The number that each code of ``fmt`` stands for, float32 of the same shape.

    Args:
        codes: torch's dtype of the format, or uint8.

    Raises:
        ValueError: the format has more than 8 bits.
        TypeError: the codes have another dtype.
    """
    if fmt.bits > 8:
        raise ValueError(f"{fmt} has {fmt.bits} bits; decode takes formats of at most 8")
    if codes.dtype not in (fmt.dtype, torch.uint8):
        raise TypeError(f"codes of {fmt} are {fmt.dtype or torch.uint8} or uint8, not {codes.dtype}")
    codes = codes.view(torch.uint8)
    if fmt == E5M2:
        return (codes.to(torch.int16) << 8).view(torch.float16).float()  # the upper half of an fp16
    if fmt == E4M3 and torch.compiler.is_compiling():
        wide = codes.to(torch.int32)
        value = ((wide & 0x80) << 24 | (wide & 0x7F) << 20).view(torch.float32) * 2.0**120
        return torch.where((wide & 0x7F) == 0x7F, torch.nan, value)
    if fmt.dtype is not None and codes.device.type != "cpu":
        return codes.view(fmt.dtype).float()  # one instruction on a GPU
    # In eager mode each step above is a pass over memory; a table that stays in the cache needs only two.
    return _table(fmt, codes.device).index_select(0, codes.reshape(-1).int()).view(codes.shape)


def encode(x: Tensor, fmt: Format) -> Tensor:
    """The codes of numbers that ``fmt`` has (the result of ``round_to``), as torch's dtype or uint8.

    Raises:
        ValueError: the format has more than 8 bits.
    """
    if fmt.bits > 8:
        raise ValueError(f"{fmt} has {fmt.bits} bits; encode takes formats of at most 8")
    if fmt.dtype is not None:
        return x.float().to(fmt.dtype)  # nothing is left to round, so all versions of torch agree
    if fmt.exponent_bits == 0:
        return (x.long() % 2**fmt.bits).to(torch.uint8)
    n_positive = 2 ** (fmt.bits - fmt.signed)
    magnitudes = _table(fmt, x.device)[:n_positive]
    codes = torch.searchsorted(magnitudes, x.abs().float().contiguous()).clamp_max(n_positive - 1)
    return (codes + n_positive * x.signbit()).to(torch.uint8)


@lru_cache
def _table(fmt: Format, device: torch.device) -> Tensor:
    return fmt.values.float().to(device)
