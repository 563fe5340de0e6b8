"""The grouped matmul as an operator: its shapes, its gradients, and what it cannot take."""

import re

import pytest
import torch

from minimoe.moe.grouped import grouped_matmul, grouped_weight_gradient, obstacle


def operands(rows=(3, 0, 5, 1), width_in=8, width_out=12):
    x = torch.randn(sum(rows), width_in, requires_grad=True)
    weight = torch.randn(len(rows), width_out, width_in, requires_grad=True)
    return x, weight, torch.tensor(rows).cumsum(0).to(torch.int32)


def test_operators_are_stated_truly():
    """torch's own check: schema, shapes under tracing, autograd registration, compiled against eager."""
    x, weight, ends = operands()
    torch.library.opcheck(grouped_matmul, (x, weight, ends))
    grad = torch.randn(9, 12)
    torch.library.opcheck(grouped_weight_gradient, (grad, x.detach(), ends))


def test_values_and_gradients_equal_float64_block_by_block():
    x, weight, ends = operands()
    upstream = torch.randn(9, 12)
    grouped_matmul(x, weight, ends).backward(upstream)
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    blocks = torch.tensor_split(exact_x, ends[:-1].tolist())
    exact = torch.cat([b @ w.T for b, w in zip(blocks, exact_weight, strict=True)])
    exact.backward(upstream.double())
    torch.testing.assert_close(grouped_matmul(x, weight, ends).double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, rtol=1e-5, atol=1e-5)
    assert weight.grad[1].abs().max() == 0  # the expert without rows


def test_an_expanded_gradient_is_taken():
    x, weight, ends = operands()
    grouped_matmul(x, weight, ends).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "rows", "widths", "expected"),
    [
        (torch.float32, 5, {"dim": 8}, None),
        (torch.bfloat16, 5, {"dim": 8}, None),
        (torch.bfloat16, 5, {"dim": 12}, r"dim \(12\) torch.bfloat16"),
        (torch.float32, 5, {"dim": 8, "expert_dim": 6}, r"expert_dim \(6\)"),
        (torch.float64, 5, {"dim": 8}, "no torch.float64"),
        (torch.float32, 0, {"dim": 8}, "no tokens"),
    ],
)
def test_obstacles_are_named(dtype, rows, widths, expected):
    found = obstacle(torch.zeros(rows, 1, dtype=dtype), **widths)
    assert (found is None) if expected is None else re.search(expected, found)
