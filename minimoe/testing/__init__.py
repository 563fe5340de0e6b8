"""Checks for other people's code: quantizers and low-precision products."""

from minimoe.testing.bounds import assert_within_bound
from minimoe.testing.quantizers import check_quantizer

__all__ = ["assert_within_bound", "check_quantizer"]
