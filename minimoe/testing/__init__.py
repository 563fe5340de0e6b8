"""Assertions for the tests of other implementations: quantizers and low-precision matmuls."""

from minimoe.testing.bounds import assert_within_bound
from minimoe.testing.quantizers import check_quantizer

__all__ = ["assert_within_bound", "check_quantizer"]
