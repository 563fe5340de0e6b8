"""[speed] The choice of a backend: the fastest way to compute one product that is exact under its recipe."""

from functools import lru_cache

import torch
from torch import Tensor

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.formats import BF16
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Backend, Cast, Recipe
from minimoe.precision.scaled_mm import unsupported_reason


def choose_backend(
    a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None, recipe: Recipe
) -> Backend:
    """The recipe's backend; for ``auto`` the fastest that computes what the recipe says.

    Raises:
        ValueError: ``bf16`` for operands that are not exact in bf16.
    """
    exact = _exact_in_bf16(a_MK, cast_a) and _exact_in_bf16(b_KN, cast_b)
    if recipe.backend == "bf16" and not exact:
        raise ValueError(
            "backend 'bf16' would round these operands, which are not exact in bf16; use 'dequantize'"
        )
    if recipe.backend != "auto":
        return recipe.backend
    if recipe.accumulator != Accumulator.fp32():
        return "blocks"
    # A GPU's own sums are not in float32 throughout, but they are what the recipe is meant to run on.
    if a_MK.device.type == "cuda" and unsupported_reason(a_MK, b_KN, cast_a, cast_b) is None:
        return "hardware"
    return "bf16" if recipe.output == BF16 and exact and multiplies_bf16_fast(a_MK.device) else "dequantize"


def _exact_in_bf16(x: Tensor | Quantized, cast: Cast | None) -> bool:
    if isinstance(x, Quantized):
        return x.scale_codes.dtype == torch.float8_e8m0fnu
    return x.dtype == torch.bfloat16 if cast is None else cast.exact_in_bf16


@lru_cache
def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether the processor has instructions for products of bf16 with sums in float32."""
    if device.type != "cpu":
        return device.type == "cuda"
    if not hasattr(torch.cpu, "get_capabilities"):  # missing in the oldest supported torch
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
