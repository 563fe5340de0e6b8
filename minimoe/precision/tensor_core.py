"""[evidence] The sums of Hopper's FP8 tensor core, emulated bit by bit.

In steps of 32 products p_k = a_k b_k, with s the running sum:

    E = the largest exponent of the p_k and s        a product's exponent is the sum of its factors' exponents
    s = sum of p_k and s, each truncated below 2^(E - fraction_bits), added exactly
    s truncated ``fraction_bits`` below its own leading bit

(Khattak and Mikaitis, arXiv 2512.07004.) A factor's exponent is at least its format's smallest: subnormal
numbers have leading zeros. A product of 0 has no exponent. Truncation is toward zero; an empty sum is +0.
(The hardware's E is at least -132, which products of these formats never reach.)

The largest exponent is a maximum of sums, max_k (e_a + e_b), computed as a matmul in which 256^e stands for
e: 32 terms of at most 256^E sum to less than 256^(E + 1). So it costs as much as a matmul.

Dimensions: M, N of a product, K contracted, S steps, k the products of one step.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minimoe.precision.formats import Format
from minimoe.precision.rounding import FLOAT_LAYOUT

PRODUCTS_PER_STEP = 32
MAX_FRACTION_BITS = 40
OUTPUT_TILE = 256  # rows and columns of the result that are computed together
MIN_OUTPUTS_TO_COMPILE = OUTPUT_TILE**2 // 4  # a smaller result is faster eager than padded to a tile
EAGER_TERMS = 1 << 17  # products per pass in eager mode: three passes over 512 KB stay in the cache


def tensor_core_sum(
    a_MK: Tensor, b_KN: Tensor, fraction_bits: int, formats: tuple[Format, Format],
    promote_every: int | None = None, compiled: bool = False,
) -> Tensor:  # fmt: skip
    """The sums along K, starting from +0 -> (M, N) float32; see ``accumulator.Accumulator``."""
    for fmt in formats:
        if not 1 <= fmt.exponent_bits <= 5 or fmt.mantissa_bits > 10:
            raise ValueError(f"the tensor core's sums are emulated for formats up to FP16, not {fmt}")
    n_rows, n_columns = len(a_MK), b_KN.shape[1]
    if not n_rows or not n_columns:
        return a_MK.new_zeros(n_rows, n_columns, dtype=torch.float32)
    # 33 terms below 2^(fraction_bits + 2) have a sum that float32 holds up to 16 bits, beyond that float64.
    dtype = torch.float32 if fraction_bits <= 16 else torch.float64
    a, b = (x.to(dtype).contiguous() for x in (a_MK, b_KN))  # once: slicing a few columns per step is slow
    finite = bool((a.abs().sum() + b.abs().sum()).isfinite())
    if not finite:
        a, b = (x.nan_to_num(0.0, 0.0, 0.0) for x in (a, b))
    compiled = compiled and n_rows * n_columns >= MIN_OUTPUTS_TO_COMPILE
    step = partial(_compiled_step() if compiled else _step, fraction_bits=fraction_bits, formats=formats)
    # The compiler generates code for one shape, so its tiles are padded to full size.
    rows, columns = (-n_rows % OUTPUT_TILE, -n_columns % OUTPUT_TILE) if compiled else (0, 0)
    ragged = -a.shape[1] % PRODUCTS_PER_STEP
    a_SMk = F.pad(a, (0, ragged, 0, rows)).unflatten(1, (-1, PRODUCTS_PER_STEP)).transpose(0, 1).contiguous()
    b_SkN = F.pad(b, (0, columns, 0, ragged)).unflatten(0, (-1, PRODUCTS_PER_STEP))
    steps = promote_every // PRODUCTS_PER_STEP if promote_every else max(1, len(a_SMk))
    tiles = [
        [_sum_steps(step, steps, x, y) for y in b_SkN.split(OUTPUT_TILE, 2)]
        for x in a_SMk.split(OUTPUT_TILE, 1)
    ]
    sum_MN = torch.cat([torch.cat(row, 1) for row in tiles])[:n_rows, :n_columns]
    if finite:
        return sum_MN
    exact_MN = a_MK.double() @ b_KN.double()  # not finite wherever a product is not
    return torch.where(exact_MN.isfinite(), sum_MN, exact_MN.float())


def _sum_steps(step: Callable[..., Tensor], steps: int, a_SMk: Tensor, b_SkN: Tensor) -> Tensor:
    """Step after step, restarting after every ``steps``: each sum is added to a float32 total."""
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
    integer, mask, mantissa_bits, bias = FLOAT_LAYOUT[sum_MN.dtype]
    one = bias << mantissa_bits  # the bits of 1.0
    exponent = _largest_exponents(a_Mk, b_kN, formats).to(integer) << mantissa_bits
    exponent = torch.maximum(exponent, (sum_MN.view(integer) & mask) - one) - (fraction_bits << mantissa_bits)
    unit_MN = (one + exponent).view(sum_MN.dtype)  # 2^(E - fraction_bits)
    per_unit_MN = (one - exponent).view(sum_MN.dtype)
    units_MN = _sum_in_units(a_Mk, b_kN, per_unit_MN) + (sum_MN * per_unit_MN).to(integer)
    keep = -1 << (mantissa_bits - min(fraction_bits, 23))  # the core's output is a float32
    return ((units_MN.to(sum_MN.dtype) * unit_MN).view(integer) & keep).view(sum_MN.dtype)


def _sum_in_units(a_Mk: Tensor, b_kN: Tensor, per_unit_MN: Tensor) -> Tensor:
    """The sum of the products, each as an integer number of units: conversion truncates toward zero."""
    integer = FLOAT_LAYOUT[a_Mk.dtype][0]
    # Compiled, four rows alternate in one loop, so that each waits less for its own previous addition.
    rows = OUTPUT_TILE // 4 if torch.compiler.is_compiling() else max(1, EAGER_TERMS // b_kN.numel())
    sums = []
    for a, per_unit in zip(a_Mk.split(rows), per_unit_MN.split(rows), strict=True):
        terms = (a.unsqueeze(2) * b_kN).mul_(per_unit.unsqueeze(1))
        sums.append(terms.to(integer).sum(1, dtype=integer))
    return torch.cat(sums)


def _largest_exponents(a_Mk: Tensor, b_kN: Tensor, formats: tuple[Format, Format]) -> Tensor:
    """The largest exponent of the products; where all are 0, the smallest one, which truncates nothing."""
    low = sum(fmt.min_exponent for fmt in formats)
    high = sum(fmt.max_exponent for fmt in formats)
    middle, half = (low + high) // 2, (high - low + 1) // 2
    dtype = torch.float32 if 8 * half + 5 <= 126 else torch.float64
    a, b = _powers_of_256(a_Mk, formats[0], dtype, middle), _powers_of_256(b_kN, formats[1], dtype, 0)
    integer, _, mantissa_bits, bias = FLOAT_LAYOUT[dtype]
    exponent = (((a @ b).view(integer) >> mantissa_bits) - bias) >> 3
    return (exponent + middle).clamp_min(low)


def _powers_of_256(x: Tensor, fmt: Format, dtype: torch.dtype, middle: int) -> Tensor:
    """256^(e - middle) for each number's exponent e, 0 for 0."""
    integer, mask, _, _ = FLOAT_LAYOUT[x.dtype]
    power = (x.view(integer) & mask).view(x.dtype).clamp_min(fmt.min_normal)
    power = torch.where(x == 0, 0.0, power * 2.0**-middle).to(dtype)
    return power.square().square().square()


@lru_cache
def _compiled_step() -> Callable[..., Tensor]:
    """The step in one pass over the outputs; uncompiled without a C++ compiler."""
    compilers = [os.environ.get("CXX"), "c++", "g++", "clang++", "cl"]
    if any(name and shutil.which(name) for name in compilers):
        return torch.compile(_step, dynamic=False)
    warnings.warn("no C++ compiler found: the same bits, uncompiled and slower", stacklevel=4)
    return _step
