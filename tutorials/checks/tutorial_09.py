"""The exercises of tutorial 9."""

import math
from collections.abc import Callable
from typing import Any

from checks import Verdict, compare


def check_mixture(mixture: Callable[..., Any]) -> Verdict:
    """(all, at work): the parameters of one layer's experts and router."""

    def expected(dim: int, width: int, routed: int, chosen: int, shared: int) -> tuple[int, int]:
        expert, router = 3 * dim * width, dim * routed
        return (routed + shared) * expert + router, (chosen + shared) * expert + router

    def both(
        matrices: int = 3, shared_too: bool = True, router_too: bool = True, chosen_scored: bool = False
    ) -> Callable[..., tuple[int, int]]:
        def wrong(dim: int, width: int, routed: int, chosen: int, shared: int) -> tuple[int, int]:
            expert, extra = matrices * dim * width, shared if shared_too else 0
            router = dim * routed if router_too else 0
            working = dim * chosen if chosen_scored else router
            return (routed + extra) * expert + router, (chosen + extra) * expert + working

        return wrong

    hints = [
        (both(matrices=2), "An expert has three matrices: gate, up and down (SwiGLU)."),
        (both(matrices=1), "An expert has three matrices, not one."),
        (both(shared_too=False), "The shared expert is missing: it is there, and works on every token."),
        (
            lambda d, w, r, c, s: (expected(d, w, r, c, s)[0], c * 3 * d * w + d * r),
            "The shared expert is among all of them, but it works on every token too.",
        ),
        (
            both(shared_too=False, router_too=False),
            "The shared expert and the router are missing: both are there, and work on every token.",
        ),
        (
            lambda d, w, r, c, s: (expected(d, w, r, c, s)[0], (c + s) * 3 * d * w),
            "The router scores every token, so that it is among those at work.",
        ),
        (both(router_too=False), "The router is missing: a column of dim numbers for each routed expert."),
        (
            both(chosen_scored=True),
            "The router scores all experts before it chooses, so that all of it is at work.",
        ),
        (
            lambda *sizes: expected(*sizes)[::-1],
            "The two are the wrong way round: first all, then those at work.",
        ),
        (lambda *sizes: expected(*sizes)[0], "Return two numbers: all, and those at work on one token."),
    ]
    sizes = [(7168, 2048, 256, 8, 1), (4096, 14_336, 8, 2, 0), (2048, 1408, 64, 6, 2)]
    cases = [(each, expected(*each)) for each in sizes]
    praise = "V3, Mixtral 8x7B and DeepSeekMoE 16B come out right."
    return compare(mixture, cases, praise=praise, hints=hints)


def check_operations(operations: Callable[..., Any]) -> Verdict:
    """Of training, a token: three times forward; two for each weight and for each pair's product."""

    def expected(weights: int, layers: int, products: int, context: int) -> float:
        return 6 * (weights + layers * products * (context + 1) / 2)

    hints = [
        (
            lambda w, n, p, c: expected(w, n, p, c) / 3,
            "This is the forward pass alone; training does two further passes of the same size.",
        ),
        (
            lambda w, n, p, c: expected(w, n, p, c) * 2 / 3,
            "The backward pass has two products for each of the forward: three in all, not two.",
        ),
        (lambda w, n, p, c: expected(w, n, p, c) / 2, "A multiply and an add are two operations."),
        (lambda w, n, p, c: 6.0 * w, "The attention's own products are missing."),
        (
            lambda w, n, p, c: 6.0 * (w + n * p * c),
            "A token sees only those before it and itself: on average half the context.",
        ),
        (
            lambda w, n, p, c: 6.0 * (w + n * p * c / 2),
            "Nearly: a token sees itself too, so it is (context + 1) / 2 on average.",
        ),
        (
            lambda w, n, p, c: 6.0 * w + 2 * n * p * (c + 1) / 2,
            "Attention's products have a backward pass too: they count six times, as the weights do.",
        ),
        (
            lambda w, n, p, c: 6.0 * w + n * p * (c + 1) / 2,
            "Attention's products are a multiply and an add, forward and backward: six, as the weights.",
        ),
        (
            lambda w, n, p, c: 6.0 * (w + p * (c + 1) / 2),
            "Every layer has an attention; the products are given for one.",
        ),
    ]
    sizes = [(1000, 2, 10, 7), (36_620_000_000, 61, 40_960, 4096), (5000, 1, 64, 1)]
    cases = [(each, expected(*each)) for each in sizes]
    return compare(operations, cases, praise="Forward and backward, weights and attention.", hints=hints)


def check_dollars(dollars: Callable[..., Any]) -> Verdict:
    """operations / (peak · share) / 3600 · price."""

    def expected(operations: float, peak: float, share: float, price: float) -> float:
        return operations / (peak * share) / 3600 * price

    hints = [
        (
            lambda o, p, s, d: expected(o, p, s, d) * 3600,
            "Operations over operations a second are seconds; an hour has 3600.",
        ),
        (
            lambda o, p, s, d: expected(o, p, s, d) * 60,
            "The division is by 60: these are minutes; the price is of an hour.",
        ),
        (
            lambda o, p, s, d: o / p / 3600 * d,
            "The share is not used: no card works at its peak all the time.",
        ),
        (
            lambda o, p, s, d: o / p * s / 3600 * d,
            "The share makes it cheaper here; a card that idles more takes longer. Divide by it.",
        ),
        (
            lambda o, p, s, d: o / p * s * d,
            "An hour has 3600 seconds; and a card that idles more takes longer: divide by the share.",
        ),
        (lambda o, p, s, d: o / (p * s) / 3600, "These are the hours; multiply them by the price."),
    ]
    cases = [((each), expected(*each)) for each in ((7.2e18, 1e12, 0.5, 3.0), (3.7e24, 989.4e12, 0.4, 2.0))]
    return compare(dollars, cases, praise="Half the share is twice the bill.", hints=hints)


def check_cards(cards: Callable[..., Any]) -> Verdict:
    """The least whole number of cards whose memory holds so many bytes."""
    hints = [
        (lambda b, m: round(b / m), "This rounds to the nearest; whatever is left over needs a card too."),
        (lambda b, m: b // m, "This rounds down, and the last card's share has no place; round up."),
        (lambda b, m: b / m, "Cards come whole: round up (math.ceil)."),
        (lambda b, m: b // m + 1, "One too many where it fits exactly."),
        (lambda b, m: int(b / m) + 1, "One too many where it fits exactly."),
    ]
    sizes = [(210e9, 80e9), (100e9, 80e9), (160e9, 80e9), (673e9, 141e9)]
    cases = [((b, m), math.ceil(b / m)) for b, m in sizes]
    return compare(cards, cases, praise="Bytes alone, with no room yet for anything else.", hints=hints)
