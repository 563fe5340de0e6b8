"""What the exercises of *A newsroom of specialists* are checked with."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from checks import Verdict, compare
from minimoe.experiments.specialization import mutual_information
from minimoe.moe import MoE, route


def _spread(weights_K: Tensor, ids_K: Tensor, n_experts: int) -> Tensor:
    return torch.zeros(n_experts).scatter(0, ids_K, weights_K)


def _weights(logits_E: Tensor, k: int) -> Tensor:
    """The K weights alone, in the order of the experts' scores."""
    return route(logits_E[None], k, score="sigmoid").weights_TK[0]


def _editor(logits_E: Tensor, k: int) -> Tensor:
    routing = route(logits_E[None], k, score="sigmoid")
    return _spread(routing.weights_TK[0], routing.ids_TK[0], len(logits_E))


def _not_renormalised(logits_E: Tensor, k: int) -> Tensor:
    return _spread(*torch.sigmoid(logits_E).topk(k), len(logits_E))


def _over_all(logits_E: Tensor, k: int) -> Tensor:
    scores_E = torch.sigmoid(logits_E)
    return _spread(*(scores_E / scores_E.sum()).topk(k), len(logits_E))


def _nobody_left_out(logits_E: Tensor, k: int) -> Tensor:
    scores_E = torch.sigmoid(logits_E)
    return scores_E / scores_E.sum()


def _without_sigmoid(logits_E: Tensor, k: int) -> Tensor:
    picked = logits_E.topk(k)
    return _spread(picked.values / picked.values.sum(), picked.indices, len(logits_E))


def _softmax(logits_E: Tensor, k: int) -> Tensor:
    picked = logits_E.topk(k)
    return _spread(picked.values.softmax(0), picked.indices, len(logits_E))


def check_editor(editor: Callable[[Tensor, int], Tensor]) -> Verdict:
    """``editor(logits_E, k)`` -> (E,) the weight of every expert, 0 for those not asked."""
    examples = [
        (torch.tensor([0.25, -1.25, 2.0, 0.75]), 2),
        (torch.tensor([-3.0, -1.0, -2.0]), 1),
        (torch.randn(6, generator=torch.Generator().manual_seed(0)), 3),
    ]
    return compare(
        editor,
        [(example, _editor(*example)) for example in examples],
        praise="K experts have a weight, the weights sum to 1, and all others have exactly 0.",
        hints=[
            (_not_renormalised, "The right experts, but their weights do not sum to 1: divide by their sum."),
            (
                _over_all,
                "You divide by the sum of all scores; divide by the sum of the K picked ones, so that the "
                "weights sum to 1.",
            ),
            (_nobody_left_out, "Every expert has a weight. Those that are not among the K best get 0."),
            (
                _without_sigmoid,
                "These are logits, any number at all; make scores between 0 and 1 of them with torch.sigmoid "
                "before you divide.",
            ),
            (
                _softmax,
                "That is Mixtral's way, a softmax over the picked logits. Here the scores are sigmoids, and "
                "each is divided by the sum of those picked.",
            ),
            (
                _weights,
                "The K weights are right. Put each at its expert's place in a vector of E zeros.",
            ),
        ],
    )


def _count(D: int, H: int, E: int, K: int, shared: int) -> tuple[int, int]:
    """From the package's layer itself."""
    moe = MoE(D, H, E, K, n_shared=shared)
    total = sum(p.numel() for p in moe.parameters())
    routed = sum(p.numel() for p in moe.experts.parameters())
    return total, total - routed + routed * K // E


def check_weights(count_weights: Callable[..., tuple[int, int]]) -> Verdict:
    """``count_weights(D, H, E, K, shared)`` -> the layer's weights, and those that work on one token."""

    def made(matrices: int, gate: int, shared_active: int) -> Callable[..., tuple[int, int]]:
        def wrong(D: int, H: int, E: int, K: int, shared: int) -> tuple[int, int]:
            one = matrices * D * H
            return gate * E * D + (E + shared) * one, gate * E * D + (K + shared_active * shared) * one

        return wrong

    def swapped(D: int, H: int, E: int, K: int, shared: int) -> tuple[int, int]:
        total, active = _count(D, H, E, K, shared)
        return active, total

    def no_editor_at_work(D: int, H: int, E: int, K: int, shared: int) -> tuple[int, int]:
        total, active = _count(D, H, E, K, shared)
        return total, active - E * D

    def no_generalist(D: int, H: int, E: int, K: int, shared: int) -> tuple[int, int]:
        return _count(D, H, E, K, 0)

    def picked_rows(D: int, H: int, E: int, K: int, shared: int) -> tuple[int, int]:
        total, active = _count(D, H, E, K, shared)
        return total, active - (E - K) * D

    examples = [(64, 32, 16, 2, 1), (128, 64, 32, 4, 1), (64, 48, 8, 2, 0)]
    return compare(
        count_weights,
        [(example, _count(*example)) for example in examples],
        praise="It agrees with the package's layer to the last weight.",
        hints=[
            (made(2, 1, 1), "An expert has three D by H matrices' worth of weights: two in, one out."),
            (made(3, 0, 1), "The editor's own matrix is missing: E rows of D numbers."),
            (no_editor_at_work, "The editor works on every token too: its matrix is among the active."),
            (no_generalist, "The generalist is missing: as many shared experts as `shared` says."),
            (made(3, 1, 0), "The generalist works on every token, so it belongs to the active weights too."),
            (swapped, "The right numbers in the wrong order: all weights first, then the active ones."),
            (
                picked_rows,
                "The editor scores all E experts before it picks K: its whole matrix works on every token.",
            ),
        ],
    )


def _apart(counts_FE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    joint = np.asarray(counts_FE, dtype=float) / np.sum(counts_FE)
    return joint, joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)


def _with_nan(counts_FE: np.ndarray) -> float:
    joint, apart = _apart(counts_FE)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((joint * np.log2(joint / apart)).sum())


def _nats(counts_FE: np.ndarray) -> float:
    return mutual_information(counts_FE) * float(np.log(2))


def _unweighted(counts_FE: np.ndarray) -> float:
    joint, apart = _apart(counts_FE)
    there = joint > 0
    return float(np.log2(joint[there] / apart[there]).sum())


def _sum_of_counts(counts_FE: np.ndarray) -> float:
    return mutual_information(counts_FE) * float(np.sum(counts_FE))


def _joint_entropy(counts_FE: np.ndarray) -> float:
    joint, _ = _apart(counts_FE)
    there = joint > 0
    return float(-(joint[there] * np.log2(joint[there])).sum())


def check_information(information: Callable[[np.ndarray], float]) -> Verdict:
    """``information(counts_FE)`` -> the bits that an expert's number tells of the field."""
    examples = [
        np.array([[30.0, 10.0], [10.0, 30.0]]),
        np.array([[5.0, 5.0, 2.0], [10.0, 10.0, 4.0]]),
        np.array([[8.0, 0.0], [0.0, 8.0]]),
        np.array([[12.0, 3.0, 0.0], [1.0, 6.0, 9.0]]),
    ]
    return compare(
        information,
        [((counts_FE,), mutual_information(counts_FE)) for counts_FE in examples],
        praise="Even tables tell nothing, a table with one field an expert tells all there is.",
        hints=[
            (_nats, "Right but for the unit: these are nats. Take np.log2 for bits."),
            (
                _with_nan,
                "Right until a cell is empty: 0 · log 0 counts as 0, but numpy makes nan of it. Leave the "
                "empty cells out of the sum.",
            ),
            (
                _unweighted,
                "Each cell's logarithm counts with the cell's share of all tokens; multiply by it before "
                "you add up.",
            ),
            (_sum_of_counts, "Shares, not counts: divide the table by its sum first."),
            (_joint_entropy, "That is the entropy of the table. Divide each share by row's times column's."),
        ],
    )
