"""Error analysis of low-precision matmuls: measured errors, their causes, and bounds before computing."""

from minimoe.precision.analysis.bounds import bound, tightness
from minimoe.precision.analysis.error import (
    ErrorBreakdown,
    ErrorMetrics,
    decibels,
    decompose,
    measure_error,
)
from minimoe.precision.analysis.operand import exact_product
from minimoe.precision.analysis.sum_bounds import BoundKind, gamma, gamma_probabilistic

__all__ = [
    "BoundKind",
    "ErrorBreakdown",
    "ErrorMetrics",
    "bound",
    "decibels",
    "decompose",
    "exact_product",
    "gamma",
    "gamma_probabilistic",
    "measure_error",
    "tightness",
]
