"""Low-precision arithmetic: FP8 and other number formats, scaled quantization, matmul with FP32 accumulation.

    M, N, K of a matmul, K contracted.

In reading order: ``formats`` describes number formats and ``rounding`` rounds to them; ``scales`` and
``quantize`` scale blocks of numbers to fit; a ``recipe`` says how the operands of a ``matmul`` are quantized,
and ``linear`` is a layer that trains with it. ``accumulator`` emulates other ways to keep sums, ``analysis``
measures errors and bounds them. Nothing here depends on data, training loops or files.
"""

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.analysis import bound, decompose, measure_error
from minimoe.precision.codec import decode, encode
from minimoe.precision.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0,
    FORMATS,
    FP16,
    FP32,
    INT8,
    TF32,
    Format,
    as_format,
)
from minimoe.precision.grouped_matmul import grouped_matmul
from minimoe.precision.linear import Linear, quantize_weights_
from minimoe.precision.matmul import matmul
from minimoe.precision.quantize import Quantized, fake_quantize, quantize
from minimoe.precision.recipe import (
    DEEPSEEK_V3,
    DEEPSEEK_V3_POW2,
    FULL,
    MXFP8,
    NAIVE,
    RECIPES,
    ROWWISE,
    TENSORWISE,
    Cast,
    Recipe,
    as_recipe,
)
from minimoe.precision.rounding import round_to

__all__ = [
    "BF16",
    "DEEPSEEK_V3",
    "DEEPSEEK_V3_POW2",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E4M3FNUZ",
    "E5M2",
    "E5M2FNUZ",
    "E8M0",
    "FORMATS",
    "FP16",
    "FP32",
    "FULL",
    "INT8",
    "MXFP8",
    "NAIVE",
    "RECIPES",
    "ROWWISE",
    "TENSORWISE",
    "TF32",
    "Accumulator",
    "Cast",
    "Format",
    "Linear",
    "Quantized",
    "Recipe",
    "as_format",
    "as_recipe",
    "bound",
    "decode",
    "decompose",
    "encode",
    "fake_quantize",
    "grouped_matmul",
    "matmul",
    "measure_error",
    "quantize",
    "quantize_weights_",
    "round_to",
]
