"""The grouped matmul as an operator: its shapes, its values, and what it does not support."""

import re

import pytest
import torch

from minimoe.moe.dispatch.grouped import grouped_matmul, grouped_weight_gradient, unsupported_reason

ROWS = (3, 0, 5, 1)


def operands(width_in=8, width_out=12):
    x = torch.randn(sum(ROWS), width_in)
    weight = torch.randn(len(ROWS), width_out, width_in)
    return x, weight, torch.tensor(ROWS).cumsum(0).to(torch.int32)


@pytest.mark.compile
def test_operators_pass_torchs_check():
    """Schema, shapes under tracing, compiled against eager."""
    x, weight, ends = operands()
    torch.library.opcheck(grouped_matmul, (x, weight, ends))
    torch.library.opcheck(grouped_weight_gradient, (torch.randn(9, 12), x, ends))


def test_values_equal_float64_block_by_block():
    x, weight, ends = operands()
    grad = torch.randn(9, 12)
    xs, grads = (torch.split(tensor.double(), ROWS) for tensor in (x, grad))
    exact = torch.cat([block @ w.T for block, w in zip(xs, weight.double(), strict=True)])
    torch.testing.assert_close(grouped_matmul(x, weight, ends).double(), exact, rtol=1e-5, atol=1e-5)
    exact = torch.stack([g.T @ block for g, block in zip(grads, xs, strict=True)])
    actual = grouped_weight_gradient(grad, x, ends)
    torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-5)
    assert actual[1].abs().max() == 0  # the expert without rows


@pytest.mark.parametrize(
    ("dtype", "rows", "widths", "expected"),
    [
        (torch.float32, 5, {"dim": 8}, None),
        (torch.bfloat16, 5, {"dim": 8}, None),
        (torch.bfloat16, 5, {"dim": 12}, r"dim \(12\) torch.bfloat16"),
        (torch.float32, 5, {"dim": 8, "expert_dim": 6}, r"expert_dim \(6\)"),
        (torch.float64, 5, {"dim": 8}, "does not support torch.float64"),
        (torch.float32, 0, {"dim": 8}, "no tokens"),
    ],
)
def test_unsupported_reasons_are_named(dtype, rows, widths, expected):
    reason = unsupported_reason(torch.zeros(rows, 1, dtype=dtype), **widths)
    assert (reason is None) if expected is None else re.search(expected, reason)
