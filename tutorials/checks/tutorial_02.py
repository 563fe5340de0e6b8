"""The exercises of tutorial 2."""

from collections.abc import Callable

import torch
from torch import Tensor

from checks import Verdict, compare
from minimoe.precision import E4M3, FORMATS, Accumulator, Format, round_to

GROUP = 32  # products that a tensor core takes at once


def _numbers(n: int, seed: int, normal: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator) if normal else torch.rand(n, generator=generator)
    return round_to(x, E4M3)


def _one_by_one(terms: Tensor, fmt: Format) -> float:
    total = torch.zeros((), dtype=torch.float64)
    for term in terms.double():
        total = round_to(total + term, fmt)
    return total.item()


def _at_the_end(terms: Tensor, fmt: Format) -> float:
    return round_to(terms.double().sum(), fmt).item()


def _never(terms: Tensor, fmt: Format) -> float:
    return terms.double().sum().item()


def _terms_only(terms: Tensor, fmt: Format) -> float:
    return round_to(terms.double(), fmt).sum().item()


def _cut_each(terms: Tensor, fmt: Format) -> float:
    total = torch.zeros((), dtype=torch.float64)
    for term in terms.double():
        total = round_to(total + term, fmt, rounding="zero")
    return total.item()


def _last_only(terms: Tensor, fmt: Format) -> float:
    return round_to(terms[-1].double(), fmt).item()


def _named(sum_: Callable[[Tensor, Format], float]) -> Callable[[Tensor, str], float]:
    """The format by its name, which reads better in a verdict."""
    return lambda terms, name: sum_(terms, FORMATS[name])


def check_running_sum(answer: Callable[[Tensor, Format], float]) -> Verdict:
    """A sum kept in few bits."""
    asked = (
        (torch.tensor([256.0, 1023 / 1024, 1.0, 1.0]), "BF16"),
        (torch.tensor([2048.0, 1.0, -2047.0]), "FP16"),
        (_numbers(300, 0), "BF16"),
        (_numbers(300, 1), "E4M3"),
    )
    return compare(
        _named(answer),
        [(arguments, _named(_one_by_one)(*arguments)) for arguments in asked],
        praise="Every addition is rounded, and later ones build on what is left.",
        hints=(
            (_named(_terms_only), "You round the terms; round the running total, after each addition."),
            (_named(_at_the_end), "You round once, at the end. Round the total after every addition."),
            (_named(_never), "Nothing is rounded: put round_to around the new total."),
            (_named(_last_only), "You keep the last term only: add it to the total so far."),
            (
                _named(_cut_each),
                "You cut the total instead of rounding it; round_to does it as it should be.",
            ),
        ),
    )


def _core(
    x: Tensor,
    group: int = GROUP,
    bits: int = 13,
    cut: Callable[[Tensor], Tensor] = torch.trunc,
    sees_total: bool = True,
    cuts_result: bool = True,
    up: int = 0,
    size: Callable[[Tensor], Tensor] = torch.abs,
) -> float:
    """As the tensor core sums, or wrong in one thing."""
    total = torch.zeros((), dtype=torch.float64)
    for products in x.double().split(group):
        terms = torch.cat((products, total[None]))
        seen = terms if sees_total else products
        if not seen.any():
            continue
        unit = 2.0 ** (torch.frexp(size(seen).max()).exponent.item() - 1 + up - bits)
        total = (cut(terms / unit) * unit).sum()
        if cuts_result and total != 0:
            unit = 2.0 ** (torch.frexp(total).exponent.item() - 1 + up - bits)
            total = cut(total / unit) * unit
    return total.item()


def _forgets(x: Tensor) -> float:
    return _core(x.split(GROUP)[-1])


def _package(x: Tensor, promote_every: int | None = None) -> float:
    return Accumulator.tensor_core(13, promote_every).matmul(x[None], torch.ones(len(x), 1)).item()


def _exact(x: Tensor) -> float:
    return x.double().sum().item()


def check_core_sum(answer: Callable[[Tensor], float]) -> Verdict:
    """The sum of a tensor core."""
    asked = (
        torch.tensor([256.0, 3 / 128]),
        torch.tensor([256.0, 11 / 64]),
        torch.tensor([-256.0, -9 / 64]),
        torch.tensor([-256.0, 240.0, 1 / 64]),  # the largest magnitude is not the largest number
        torch.tensor([1.125] * 31 + [2**-9]),  # the total is longer than the column
        _numbers(64, 0),
        _numbers(4096, 1),
        _numbers(2048, 2, normal=True),
    )
    hints = (
        (
            lambda x: _core(x, cuts_result=False),
            "The new total itself is cut, too: 13 digits behind its leading one.",
        ),
        (_exact, "That is the exact sum: what hangs over to the right of the unit must be cut off."),
        (lambda x: _core(x, cut=torch.round), "You round to whole units; the tensor core cuts: torch.trunc."),
        (
            lambda x: _core(x, cut=torch.floor),
            "floor cuts negative numbers away from zero; torch.trunc cuts towards it.",
        ),
        (
            lambda x: _core(x, up=1),
            "Twice too coarse: frexp's exponent is one too many; power() has it right.",
        ),
        (lambda x: _core(x, group=len(x)), "It takes 32 at a time: x.split(32)."),
        (
            lambda x: _core(x, sees_total=False),
            "The total so far is lined up with the rest, and may be the largest.",
        ),
        (lambda x: _core(x, bits=14), "Twice too fine: 14 digits are the leading one and 13 behind it."),
        (
            lambda x: _core(x, size=lambda terms: terms),
            "The largest number need not be the largest magnitude: take abs() before max().",
        ),
        (_forgets, "Every group begins with the total so far, not with zero."),
    )
    return compare(
        answer,
        [((x,), _package(x)) for x in asked],
        praise="Bit for bit what the package computes, and the package what the chip does.",
        hints=hints,
        tolerance=1e-12,
    )


def _restarted_too_late(x: Tensor, every: int) -> float:
    return _package(x)


def _exact_chunks(x: Tensor, every: int) -> float:
    return _exact(x)


def _last_chunk(x: Tensor, every: int) -> float:
    return _package(x.split(every)[-1])


def _parts_in_core(x: Tensor, every: int) -> float:
    return _core(torch.tensor([_package(chunk) for chunk in x.split(every)]))


def _every_parts(x: Tensor, every: int) -> float:
    return sum(_package(chunk) for chunk in x.chunk(every))


def check_promoted_sum(answer: Callable[[Tensor, int], float]) -> Verdict:
    """Promotion to float32."""
    asked = ((_numbers(8192, 0), 64), (_numbers(4096, 1), 128), (_numbers(1000, 2), 512))
    return compare(
        answer,
        [((x, every), _package(x, every)) for x, every in asked],
        praise="Short sums in the tensor core, their total in 32 bits.",
        hints=(
            (_restarted_too_late, "That is one long sum in the tensor core: split x first."),
            (_exact_chunks, "That is exact, which no chip does: each chunk is summed by tensor_core_sum()."),
            (_last_chunk, "Only the last chunk is left: add each to the total."),
            (_every_parts, "`every` is how long a chunk is, not how many there are: split, not chunk."),
            (_parts_in_core, "The chunks' sums are added in float32, not in the tensor core again."),
        ),
        tolerance=1e-6,
    )
