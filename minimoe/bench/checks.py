"""Whether two ways compute the same: values, and every gradient."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minimoe.bench.case import WrongResult

# Sums in another order show near 1e-5 where a gradient is what is left of larger ones (the gate's); a wrong
# term shows at 1e-2.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}

ROWS = 8  # tokens that are held to the oracle, which is slow

Layer = Callable[[Tensor, Tensor], Tensor]

"""x_TD and which of the tokens (indices) -> their y."""


def require_close(what: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise WrongResult where ‖actual - expected‖ exceeds ``tolerance`` times ‖expected‖, or is NaN."""
    expected = expected.detach().double()
    error = (actual.detach().double() - expected).norm().item()
    size = expected.norm().item()
    if not error <= tolerance * size:
        raise WrongResult(
            f"{what} is off by {error:.3g} of {size:.3g}, more than {tolerance:g} of it; nothing was timed"
        )


def require_same_layer(
    what: str, fast: Layer, oracle: Layer, x_TD: Tensor, inputs: Sequence[Tensor], dtype: str
) -> None:
    """``fast`` on all tokens against ``oracle`` on a few of them.

    Only those few are in the loss, so that the gradients of x and of all ``inputs`` must be the oracle's,
    and yet the very path that will be timed has run.
    """
    few_n = torch.randperm(len(x_TD), device=x_TD.device)[:ROWS].sort().values
    x_TD = x_TD.detach().requires_grad_()
    upstream_nD = torch.randn_like(x_TD[few_n])
    found = []
    for layer in (fast, oracle):
        y_nD = layer(x_TD, few_n)
        gradients = torch.autograd.grad(y_nD, [x_TD, *inputs], upstream_nD)
        found.append([y_nD, *gradients])
    names = ["y", "the gradient of x", *(f"the gradient of input {i}" for i in range(len(inputs)))]
    for name, ours, theirs in zip(names, *found, strict=True):
        require_close(f"{what}: {name}", ours, theirs, TOLERANCE[dtype])
