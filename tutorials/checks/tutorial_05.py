"""What the exercises of *Moving data* are checked with."""

from collections.abc import Callable

import torch
from torch import Tensor

from checks import Verdict, compare
from minimoe.cost import processes_visited
from minimoe.models.config import ModelConfig

IDS = (
    torch.tensor([[2, 0], [1, 2], [2, 1]]),
    torch.tensor([[3], [0], [3], [1]]),
    torch.tensor([[0, 2, 1], [1, 0, 3], [2, 3, 0], [3, 1, 2]]),
)


def _order(ids_TK: Tensor) -> Tensor:
    return ids_TK.flatten().argsort(stable=True)


def check_sort(sort: Callable[[Tensor], Tensor]) -> Verdict:
    """``sort(ids_TK)`` -> (R,) the places of the rows in the flattened ids, by expert."""
    return compare(
        sort,
        [((ids_TK,), _order(ids_TK)) for ids_TK in IDS],
        praise="Expert by expert, and within an expert in the order of the tokens.",
        hints=[
            (
                lambda ids_TK: ids_TK.flatten().sort().values,
                "Those are the addresses, sorted. Wanted is where each row stood before: argsort, not sort.",
            ),
            (
                lambda ids_TK: _order(ids_TK) // ids_TK.shape[1],
                "Those are the tokens of the sorted rows, which come next. Leave the division by K out here.",
            ),
            (
                lambda ids_TK: _order(ids_TK).argsort(),
                "That is the way back: where each row goes. Wanted is where each sorted row comes from.",
            ),
            (
                lambda ids_TK: _order(ids_TK.T),
                "You went through all first choices, then all second ones. Flatten token by token.",
            ),
            (
                lambda ids_TK: ids_TK.flatten().argsort(stable=True, descending=True),
                "The wrong way round: expert 0 comes first.",
            ),
            (
                lambda ids_TK: ids_TK.argsort(stable=True),
                "Flatten first: the pairs of all tokens in one row.",
            ),
        ],
    )


def _combine(y_RD: Tensor, order_R: Tensor, weights_TK: Tensor) -> Tensor:
    """Row by row, as plainly as can be."""
    T, K = weights_TK.shape
    y_TD = torch.zeros(T, y_RD.shape[1], dtype=y_RD.dtype)
    for row, place in enumerate(order_R.tolist()):
        y_TD[place // K] += weights_TK[place // K, place % K] * y_RD[row]
    return y_TD


def check_combine(combine: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """``combine(y_RD, order_R, weights_TK)`` -> (T, D) each token's rows, weighted and added up."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for ids_TK in (IDS[0], IDS[2], IDS[1]):
        weights_TK = torch.randint(1, 9, ids_TK.shape, generator=generator) / 8
        y_RD = torch.randn(ids_TK.numel(), 5, generator=generator)
        arguments = (y_RD, _order(ids_TK), weights_TK)
        cases.append((arguments, _combine(*arguments)))

    def added(y_RD: Tensor, tokens_R: Tensor, T: int) -> Tensor:
        return torch.zeros(T, y_RD.shape[1]).index_add(0, tokens_R, y_RD)

    def unweighted(y_RD: Tensor, order_R: Tensor, weights_TK: Tensor) -> Tensor:
        return _combine(y_RD, order_R, torch.ones_like(weights_TK))

    def unsorted_weights(y_RD: Tensor, order_R: Tensor, weights_TK: Tensor) -> Tensor:
        T, K = weights_TK.shape
        return added(y_RD * weights_TK.flatten()[:, None], order_R // K, T)

    def remainder(y_RD: Tensor, order_R: Tensor, weights_TK: Tensor) -> Tensor:
        T = len(weights_TK)
        return added(y_RD * weights_TK.flatten()[order_R][:, None], order_R % T, T)

    def not_sent_back(y_RD: Tensor, order_R: Tensor, weights_TK: Tensor) -> Tensor:
        T, K = weights_TK.shape
        return (y_RD.view(T, K, -1) * weights_TK[..., None]).sum(1)

    def last_one_wins(y_RD: Tensor, order_R: Tensor, weights_TK: Tensor) -> Tensor:
        T, K = weights_TK.shape
        y_TD = torch.zeros(T, y_RD.shape[1])
        for row, place in enumerate(order_R.tolist()):
            y_TD[place // K] = weights_TK[place // K, place % K] * y_RD[row]
        return y_TD

    return compare(
        combine,
        cases,
        praise="Every token has its experts' answers back, weighted and added up.",
        hints=[
            (unweighted, "The answers arrive at the right tokens, but without their weights."),
            (
                unsorted_weights,
                "The weights stand in the order of the tokens, the rows in that of the experts: take "
                "weights_TK.flatten()[order_R].",
            ),
            (remainder, "A row's token is order_R // K; the remainder would be the slot, by K and not by T."),
            (
                not_sent_back,
                "The rows are still in the experts' order; nobody has brought them back to their tokens.",
            ),
            (
                last_one_wins,
                "A token has K rows. Assigning keeps the last of them; add them up (index_add_).",
            ),
        ],
        tolerance=1e-5,
    )


def _visited(E: int, K: int, P: int) -> float:
    return processes_visited(ModelConfig(n_experts=E, top_k=K), P)


def check_visited(visited: Callable[[int, int, int], float]) -> Verdict:
    """``visited(E, K, P)`` -> machines that hold any of a token's experts, on average."""
    return compare(
        visited,
        [(sizes, _visited(*sizes)) for sizes in ((16, 4, 4), (64, 8, 8), (8, 2, 2), (256, 8, 8), (8, 8, 4))],
        praise="Between 1 and the smaller of K and P, and never more than that.",
        hints=[
            (lambda E, K, P: min(K, P), "That is the most there can be. Some experts share a machine."),
            (
                lambda E, K, P: P * (1 - (1 - 1 / P) ** K),
                "Close, but a token's K experts are all different: as cards that are dealt, not as dice "
                "that are thrown. Count choices with math.comb.",
            ),
            (
                lambda E, K, P: _visited(E, K, P) / P,
                "That is the chance that one machine is visited. There are P of them.",
            ),
            (
                lambda E, K, P: P - _visited(E, K, P),
                "Those are the machines that are *not* visited.",
            ),
            (
                lambda E, K, P: 1 - _visited(E, K, P) / P,
                "That is the chance that one machine is missed. One minus it is visited, and there are P.",
            ),
            (lambda E, K, P: K / P, "That is how many of its experts sit on one machine, on average."),
        ],
    )
