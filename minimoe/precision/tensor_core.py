"""The sums of Hopper's FP8 tensor core, bit by bit.

In steps of 32 products p_k = a_k b_k, with s the sum so far:

    E = the largest exponent of the p_k and s        a product's exponent is the sum of its factors'
    s = sum of p_k and s, each cut off below 2^(E - fraction_bits), added exactly
    s, cut off ``fraction_bits`` below its own leading bit

(Khattak and Mikaitis, arXiv 2512.07004.) A factor's exponent is at least its format's smallest: subnormals
come with leading zeros. A product of 0 has no exponent. Everything is cut towards zero; a sum of nothing is
+0. (The hardware's E is at least -132, which products of these formats never reach.)

The largest exponent is a maximum of sums, max_k (e_a + e_b): a matmul in which 256^e stands for e, because 32
terms of at most 256^E sum to less than 256^(E + 1). So it costs what a matmul costs.

Dimensions: M, N of a product, K contracted, k the products of one step.
"""

import math
import os
import shutil
import warnings
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minimoe.precision.formats import Format

AT_ONCE = 32  # products in one step

MOST_FRACTION_BITS = 40

TILE = 256  # rows and columns of the result that are worked on together

COMPILE_FROM = TILE * TILE // 4  # outputs; a smaller result is quicker eager than filled up to a tile

_TERMS = 1 << 17  # products that eager spells out at a time: three passes over 512 KB stay in the cache

# integer of the same width, mask of the exponent, mantissa bits, bias
_FLOATS = {
    torch.float32: (torch.int32, 0x7F800000, 23, 127),
    torch.float64: (torch.int64, 0x7FF0000000000000, 52, 1023),
}


def tensor_core_sum(
    a_MK: Tensor,
    b_KN: Tensor,
    fraction_bits: int,
    formats: tuple[Format, Format],
    promote_every: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """(M, N) float32: the sum along K, begun at +0. See ``accumulate.Accumulator``."""
    for fmt in formats:
        if not 1 <= fmt.exponent_bits <= 5 or fmt.mantissa_bits > 10:
            raise ValueError(f"the tensor core's sums are emulated for formats up to FP16, not {fmt}")
    n_rows, n_columns = len(a_MK), b_KN.shape[1]
    if not n_rows or not n_columns:
        return a_MK.new_zeros(n_rows, n_columns, dtype=torch.float32)
    # 33 terms below 2^(fraction_bits + 2) make a sum that float32 holds up to 16 bits, beyond that float64.
    dtype = torch.float32 if fraction_bits <= 16 else torch.float64
    a, b = (x.to(dtype).contiguous() for x in (a_MK, b_KN))  # once: a step's copy of a few columns is slow
    finite = bool((a.abs().sum() + b.abs().sum()).isfinite())
    if not finite:
        a, b = (x.nan_to_num(0.0, 0.0, 0.0) for x in (a, b))
    compiled = compiled and n_rows * n_columns >= COMPILE_FROM
    step = partial(_compiled_step() if compiled else _step, fraction_bits=fraction_bits, formats=formats)
    # Whole tiles only for the compiler, which makes code for one shape.
    rows, columns = (-n_rows % TILE, -n_columns % TILE) if compiled else (0, 0)
    ragged = -a.shape[1] % AT_ONCE
    a_SMk = F.pad(a, (0, ragged, 0, rows)).unflatten(1, (-1, AT_ONCE)).transpose(0, 1).contiguous()
    b_SkN = F.pad(b, (0, columns, 0, ragged)).unflatten(0, (-1, AT_ONCE))
    steps = promote_every // AT_ONCE if promote_every else max(1, len(a_SMk))
    tiled = [[_walk(step, steps, x, y) for y in b_SkN.split(TILE, 2)] for x in a_SMk.split(TILE, 1)]
    sum_MN = torch.cat([torch.cat(row, 1) for row in tiled])[:n_rows, :n_columns]
    if finite:
        return sum_MN
    exact_MN = a_MK.double() @ b_KN.double()  # not finite wherever a product is not
    return torch.where(exact_MN.isfinite(), sum_MN, exact_MN.float())


def _walk(step: Callable[..., Tensor], steps: int, a_SMk: Tensor, b_SkN: Tensor) -> Tensor:
    """Step after step, beginning anew after so many: every sum is added in float32."""
    total_MN = a_SMk.new_zeros(a_SMk.shape[1], b_SkN.shape[2], dtype=torch.float32)
    for a_part, b_part in zip(a_SMk.split(steps), b_SkN.split(steps), strict=True):
        sum_MN = torch.zeros_like(total_MN, dtype=a_SMk.dtype)
        for a_Mk, b_kN in zip(a_part, b_part, strict=True):
            sum_MN = step(sum_MN, a_Mk, b_kN.contiguous())
        total_MN += sum_MN
    return total_MN


def _step(
    sum_MN: Tensor, a_Mk: Tensor, b_kN: Tensor, fraction_bits: int, formats: tuple[Format, Format]
) -> Tensor:
    integer, mask, mantissa_bits, bias = _FLOATS[sum_MN.dtype]
    one = bias << mantissa_bits  # the bits of 1.0
    exponent = _largest_exponents(a_Mk, b_kN, formats).to(integer) << mantissa_bits
    exponent = torch.maximum(exponent, (sum_MN.view(integer) & mask) - one) - (fraction_bits << mantissa_bits)
    unit_MN = (one + exponent).view(sum_MN.dtype)  # 2^(E - fraction_bits)
    per_unit_MN = (one - exponent).view(sum_MN.dtype)
    units_MN = _units(a_Mk, b_kN, per_unit_MN) + (sum_MN * per_unit_MN).to(integer)
    keep = -1 << (mantissa_bits - min(fraction_bits, 23))  # what leaves the core is a float32
    return ((units_MN.to(sum_MN.dtype) * unit_MN).view(integer) & keep).view(sum_MN.dtype)


def _units(a_Mk: Tensor, b_kN: Tensor, per_unit_MN: Tensor) -> Tensor:
    """The sum of the products, each as a whole number of units: conversion to integers cuts towards zero."""
    integer = _FLOATS[a_Mk.dtype][0]
    # Compiled, four rows take turns in one loop, and each waits less for its own last addition.
    rows = TILE // 4 if torch.compiler.is_compiling() else max(1, _TERMS // b_kN.numel())
    sums = []
    for a, per_unit in zip(a_Mk.split(rows), per_unit_MN.split(rows), strict=True):
        terms = (a.unsqueeze(2) * b_kN).mul_(per_unit.unsqueeze(1))
        sums.append(terms.to(integer).sum(1, dtype=integer))
    return torch.cat(sums)


def _largest_exponents(a_Mk: Tensor, b_kN: Tensor, formats: tuple[Format, Format]) -> Tensor:
    """The largest of the products' exponents; where all are 0 the smallest there is, which cuts nothing."""
    least = sum(fmt.min_exponent for fmt in formats)
    most = sum(_exponent_of_max(fmt) for fmt in formats)
    middle, half = (least + most) // 2, (most - least + 1) // 2
    dtype = torch.float32 if 8 * half + 5 <= 126 else torch.float64
    a, b = _powers(a_Mk, formats[0], dtype, middle), _powers(b_kN, formats[1], dtype, 0)
    integer, _, mantissa_bits, bias = _FLOATS[dtype]
    exponent = (((a @ b).view(integer) >> mantissa_bits) - bias) >> 3
    return (exponent + middle).clamp_min(least)


def _powers(x: Tensor, fmt: Format, dtype: torch.dtype, middle: int) -> Tensor:
    """256^(e - middle) for each number's exponent e, 0 for 0."""
    integer, mask, _, _ = _FLOATS[x.dtype]
    power = (x.view(integer) & mask).view(x.dtype).clamp_min(fmt.min_normal)
    power = torch.where(x == 0, 0.0, power * 2.0**-middle).to(dtype)
    return power.square().square().square()


def _exponent_of_max(fmt: Format) -> int:
    return math.frexp(fmt.max)[1] - 1


@lru_cache
def _compiled_step() -> Callable[..., Tensor]:
    """The step in one pass over the outputs; as it is where there is no compiler to make it so."""
    compilers = [os.environ.get("CXX"), "c++", "g++", "clang++", "cl"]
    if any(name and shutil.which(name) for name in compilers):
        return torch.compile(_step, dynamic=False)
    warnings.warn("no C++ compiler found: the same bits, uncompiled and slower", stacklevel=4)
    return _step
