"""[evidence] Checks that two implementations compute the same: values, and every gradient."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minimoe.bench.case import WrongResult

# Another order of summation gives errors near 1e-5 in gradients that are small differences of large terms
# (the gate's); a wrong term gives 1e-2.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}

CHECKED_TOKENS = 8  # the reference is slow

Layer = Callable[[Tensor, Tensor], Tensor]  # x_TD and indices of some tokens -> y of these tokens


def require_close(what: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise WrongResult if ‖actual - expected‖ exceeds ``tolerance`` times ‖expected‖, or is NaN."""
    expected = expected.detach().double()
    error = (actual.detach().double() - expected).norm().item()
    size = expected.norm().item()
    if not error <= tolerance * size:
        raise WrongResult(
            f"{what}: error {error:.3g} exceeds {tolerance:g} of the norm {size:.3g}; nothing was timed"
        )


def require_dense_size(name: str, actual: int, expected: int, columns: int) -> None:
    """Compare a dense network's parameters with the MoE's, which they may exceed by the rounding of its width
    (``cost.dense_width``): by less than 16 of its layers' columns, with three numbers each."""
    if not 0 <= actual - expected < 3 * 16 * columns:
        raise WrongResult(f"{name} has {actual:,} parameters, the MoE {expected:,}")


def require_same_layer(
    what: str, fast: Layer, reference: Layer, x_TD: Tensor, inputs: Sequence[Tensor], dtype: str
) -> None:
    """Compare ``fast`` on all tokens with ``reference`` on a few of them.

    Only these few enter the loss, so the gradients of x and of all ``inputs`` must be the reference's,
    although the very path that will be timed has run on all tokens.
    """
    few_n = torch.randperm(len(x_TD), device=x_TD.device)[:CHECKED_TOKENS].sort().values
    x_TD = x_TD.detach().requires_grad_()
    upstream_nD = torch.randn_like(x_TD[few_n])
    results = []
    for layer in (fast, reference):
        y_nD = layer(x_TD, few_n)
        results.append([y_nD, *torch.autograd.grad(y_nD, [x_TD, *inputs], upstream_nD)])
    names = ["y", "gradient of x", *(f"gradient of input {i}" for i in range(len(inputs)))]
    for name, actual, expected in zip(names, *results, strict=True):
        require_close(f"{what}, {name}", actual, expected, TOLERANCE[dtype])
