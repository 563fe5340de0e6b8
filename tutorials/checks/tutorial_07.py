"""The exercises of tutorial 7."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from checks import Verdict, compare
from minimoe.precision import E4M3, fake_quantize, matmul
from minimoe.precision.arguments import ScaleRule


def _layer(tokens: int, inputs: int, outputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, inputs), (inputs, outputs), (tokens, outputs))
    x_TI, w_IO, g_TO = (torch.randn(*shape, generator=generator) for shape in shapes)
    return x_TI, w_IO, g_TO


def check_gradients(answer: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Verdict:
    """The two gradients of y = x w."""
    # Square first: there a missing .mT is no error but a wrong answer, of which more can be said.
    layers = [_layer(4, 4, 4, 1), _layer(5, 3, 2, 0)]
    try:
        first = answer(*layers[0])
    except Exception as error:  # told, not raised, as compare does
        sizes = "4 tokens, 4 inputs, 4 outputs"
        return Verdict(False, f"With {sizes} it stops with {type(error).__name__}: {error}")
    if first is None:
        return Verdict(False, "It returns nothing yet; it should return two tensors, dx_TI and dw_IO.")
    if not isinstance(first, tuple | list) or len(first) != 2:
        kind = type(first).__name__
        return Verdict(False, f"It should return two tensors, dx_TI and dw_IO; it returns one {kind}.")
    for layer in layers:
        for i, name in enumerate(("dx_TI", "dw_IO")):
            verdict = compare(
                lambda x, w, g, i=i: answer(x, w, g)[i],
                [(layer, _gradients(*layer)[i])],
                praise="Both gradients are those that torch's own differentiation finds.",
                hints=_GRADIENT_HINTS[i] if layer is layers[0] else (),
                tolerance=1e-5,
            )
            if not verdict:
                return Verdict(False, verdict.said.replace("With a", f"{name}: with a", 1))
    return verdict


def _gradients(x_TI: Tensor, w_IO: Tensor, g_TO: Tensor) -> tuple[Tensor, Tensor]:
    """As torch finds them."""
    x_TI, w_IO = (tensor.clone().requires_grad_() for tensor in (x_TI, w_IO))
    return torch.autograd.grad(x_TI @ w_IO, (x_TI, w_IO), g_TO)


_GRADIENT_HINTS = (  # of a square layer, where all of these can be multiplied
    (
        (lambda x, w, g: x.mT @ g, "The two are in the wrong order: first dx_TI, then dw_IO."),
        (lambda x, w, g: g @ w, "dx: g has outputs where w has inputs; turn w round."),
        (lambda x, w, g: w @ g.mT, "dx is turned round: it should have a row a token."),
    ),
    (
        (lambda x, w, g: x @ g, "dw: it is the tokens that are summed over; turn x round."),
        (lambda x, w, g: g.mT @ x, "dw is turned round: it should have a row an input, as w has."),
        (lambda x, w, g: x.mT @ g / len(x), "dw is a sum over tokens, not a mean."),
    ),
)


def _cast(x: Tensor, block: tuple[int, int] | None, rule: ScaleRule = "fp32") -> Tensor:
    return fake_quantize(x, E4M3, block, rule)


def _package(x_TI: Tensor, g_TO: Tensor) -> Tensor:
    w_IO = torch.ones(x_TI.shape[1], g_TO.shape[1], requires_grad=True)
    matmul(x_TI, w_IO, "deepseek-v3").backward(g_TO)
    assert w_IO.grad is not None
    return w_IO.grad


def check_weight_gradient(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """The weight gradient of V3's recipe."""
    cases = []
    for tokens, seed in ((256, 0), (300, 1)):
        x_TI, _, g_TO = _layer(tokens, 160, 130, seed)
        # Channels of different sizes, and gradients that E4M3 loses; products of about 1 and more.
        x_TI, g_TO = 1e3 * x_TI * (1 + torch.arange(160)), 1e-5 * g_TO
        cases.append(((x_TI, g_TO), _package(x_TI, g_TO)))
    along, across = (128, 1), (1, 128)
    return compare(
        answer,
        cases,
        praise="That is V3's weight gradient: both operands in tiles of 128 tokens.",
        hints=(
            (
                lambda x, g: _cast(x.mT @ g, along),
                "You round the product. Round what goes into it, x and g, each in tiles of 128 tokens.",
            ),
            (lambda x, g: x.mT @ g, "That is float32: nothing has been rounded to 8 bits."),
            (
                lambda x, g: _cast(x, across).mT @ _cast(g, across),
                "Those are the tiles of the forward product, along inputs and outputs. This product sums "
                "over tokens: take (128, 1).",
            ),
            (
                lambda x, g: _cast(x, across).mT @ _cast(g, along),
                "x is still in its tiles of the forward product, along the inputs.",
            ),
            (
                lambda x, g: _cast(x, along).mT @ _cast(g, across),
                "g is in tiles along the outputs; this product sums over tokens.",
            ),
            (
                lambda x, g: _cast(x, None, "none").mT @ _cast(g, None, "none"),
                "That is without any scale, and g has become zero.",
            ),
            (lambda x, g: _cast(x, along).mT @ g, "g has not been rounded."),
            (lambda x, g: x.mT @ _cast(g, along), "x has not been rounded."),
            (
                lambda x, g: _cast(x, (128, 128)).mT @ _cast(g, (128, 128)),
                "Squares are for weights; activations and gradients have tiles of 128 tokens by 1.",
            ),
            (
                lambda x, g: _cast(x, None).mT @ _cast(g, None),
                "That is one scale for the whole of each; take tiles of (128, 1).",
            ),
            (
                lambda x, g: _cast(_cast(x, across), along).mT @ _cast(_cast(g, across), along),
                "You round twice: first in tiles one way, then the other. Round the original.",
            ),
        ),
        tolerance=1e-4,
    )


def _factor(g: Tensor, most: float = 448.0) -> float:
    return 2.0 ** (torch.frexp(most / g.abs().max()).exponent.item() - 1)


def check_loss_factor(answer: Callable[[Tensor], float]) -> Verdict:
    """The largest power of two under which nothing overflows."""
    asked = ((3 / 8192, -1 / 512), (1e-6, 4e-6), (-0.5, 0.125), (7.0, 900.0), (3.5, -1.75))
    cases = [((torch.tensor(g),), _factor(torch.tensor(g))) for g in asked]
    return compare(
        answer,
        cases,
        praise="The largest gradient stays below the largest number, and no power of two is wasted.",
        hints=(
            (lambda g: (448 / g.abs().max()).item(), "Take a power of two: it changes no digits."),
            (lambda g: 2 * _factor(g), "With that the largest gradient exceeds 448: round the power down."),
            (lambda g: _factor(g, 1.0), "That brings the largest gradient to 1; there is room up to 448."),
            (lambda g: _factor(g, 240.0), "The largest number of E4M3 is 448."),
            (lambda g: _factor(g.clamp_min(0)), "Gradients may be negative: take magnitudes."),
            (lambda g: math.log2(_factor(g)), "That is the exponent; raise 2 to it."),
            (lambda g: 1 / _factor(g), "That is upside down: small gradients need a large factor."),
        ),
    )
