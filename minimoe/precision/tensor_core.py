"""The sums of Hopper's FP8 tensor core, bit by bit.

In steps of 32 products p_k = a_k b_k, with s the sum so far:

    E = the largest exponent of the p_k and s        a product's exponent is the sum of its factors'
    s = sum of p_k and s, each cut off below 2^(E - fraction_bits), added exactly
    s, cut off ``fraction_bits`` below its own leading bit

(Khattak and Mikaitis, arXiv 2512.07004.) A factor's exponent is at least its format's smallest: subnormals
come with leading zeros. Everything is cut towards zero; a sum of nothing is +0.

The largest exponent is a maximum of sums, max_k (e_a + e_b): a matmul in which 256^e stands for e, because 32
terms of at most 256^E sum to less than 256^(E + 1). So it costs what a matmul costs.
"""

import os
import shutil
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minimoe.precision.formats import Format

AT_ONCE = 32  # products in one step
MOST_FRACTION_BITS = 40
_TILE = 1 << 13  # outputs worked on at a time, so that their 32 products each stay in the cache

# integer of the same width, mantissa bits, bias
_FLOATS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}


def tensor_core_sum(
    a_MK: Tensor, b_KN: Tensor, fraction_bits: int, formats: tuple[Format, Format], compiled: bool = False
) -> Tensor:
    """(M, N) float32: the sum along K, begun at +0. See ``accumulate.Accumulator.matmul``."""
    for fmt in formats:
        if fmt.exponent_bits > 5 or fmt.mantissa_bits > 10:
            raise ValueError(f"the tensor core's sums are emulated for formats up to FP16, not {fmt}")
    # 33 terms below 2^(fraction_bits + 2) are added exactly in float32 up to 16 bits, beyond that in float64
    dtype = torch.float32 if fraction_bits <= 16 else torch.float64
    ragged = -a_MK.shape[1] % AT_ONCE
    a = F.pad(a_MK, (0, ragged)).to(dtype).contiguous()
    b = F.pad(b_KN, (0, 0, 0, ragged)).to(dtype).contiguous()  # the steps run along N
    small = all(fmt.min_exponent >= -8 and fmt.exponent_bits <= 4 for fmt in formats)  # 256^e fits float32
    wide = torch.float32 if small else torch.float64
    powers_a, powers_b = (_powers(x, fmt, wide) for x, fmt in zip((a, b), formats, strict=True))
    sum_MN = a.new_zeros(len(a), b.shape[1])
    step = _compiled_step() if compiled else _step
    for k in range(0, a.shape[1], AT_ONCE):
        within = slice(k, k + AT_ONCE)
        largest_MN = powers_a[:, within] @ powers_b[within]
        sum_MN = step(sum_MN, a[:, within], b[within], largest_MN, fraction_bits)
    finite = a_MK.isfinite().all(1)[:, None] & b_KN.isfinite().all(0)
    return torch.where(finite, sum_MN, a @ b).float()


def _step(sum_MN: Tensor, a_Mk: Tensor, b_kN: Tensor, largest_MN: Tensor, fraction_bits: int) -> Tensor:
    integer, mantissa_bits, bias = _FLOATS[sum_MN.dtype]
    exponent = ((sum_MN.view(integer) >> mantissa_bits) & (2 * bias + 1)) - bias
    exponent = torch.maximum(exponent, (_exponent(largest_MN).to(integer) >> 3) + 2)
    # Below 2^-64 there is only a sum of nothing: products are at least 2^-48, sums multiples of cut ones.
    unit_MN = ((exponent.clamp_min(-64) - fraction_bits + bias) << mantissa_bits).view(sum_MN.dtype)
    units_MN = _units(a_Mk, b_kN, unit_MN) + torch.div(sum_MN, unit_MN, rounding_mode="trunc")
    keep = -1 << (mantissa_bits - min(fraction_bits, 23))  # what leaves the core is a float32
    return ((units_MN * unit_MN).view(integer) & keep).view(sum_MN.dtype)  # -0 + 0 is 0: never -0


def _units(a_Mk: Tensor, b_kN: Tensor, unit_MN: Tensor) -> Tensor:
    """The sum of the products, each as a whole number of units."""
    if torch.compiler.is_compiling() or unit_MN.device.type != "cpu":
        return torch.div(a_Mk.T[:, :, None] * b_kN[:, None, :], unit_MN, rounding_mode="trunc").sum(0)
    out_MN = torch.empty_like(unit_MN)
    rows = max(1, _TILE // max(1, unit_MN.shape[1]))
    for a, unit, out in zip(a_Mk.split(rows), unit_MN.split(rows), out_MN.split(rows), strict=True):
        terms = a.T[:, :, None] * b_kN[:, None, :]
        torch.sum(torch.div(terms, unit, rounding_mode="trunc", out=terms), 0, out=out)
    return out_MN


@lru_cache
def _compiled_step() -> Callable[..., Tensor]:
    """The step in one pass over the outputs; as it is where there is no compiler to make it so."""
    compilers = [os.environ.get("CXX"), "c++", "g++", "clang++", "cl"]
    return torch.compile(_step) if any(name and shutil.which(name) for name in compilers) else _step


def _exponent(x: Tensor) -> Tensor:
    """floor(log2 x) of positive numbers; for 0, too small to matter (of a 256^e: e = -14, below all sums)."""
    integer, mantissa_bits, bias = _FLOATS[x.dtype]
    return (x.view(integer) >> mantissa_bits) - bias


def _powers(x: Tensor, fmt: Format, dtype: torch.dtype) -> Tensor:
    """256^(e - 1) for each number's exponent e, 0 for 0. The 1 keeps E4M3's range in float32's middle."""
    exponent = _exponent(x.abs()).clamp(fmt.min_exponent, 16)
    return torch.ldexp((x != 0).to(dtype), 8 * (exponent - 1))
