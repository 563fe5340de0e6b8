"""Balance: keeping every expert at work, and saying how well that succeeds.

Two ways to keep it. A term in the loss pulls the gate towards even loads: ``switch_loss`` over a batch,
``sequence_loss`` within each sequence. The auxiliary-loss-free bias (arXiv 2408.15664; DeepSeek-V3, section
2.1.2) adds nothing to the loss: ``update_bias_`` nudges each expert's chance of being picked.

The losses are one layer's and never wait for the device; average them over layers. (Counts pooled over
layers would hide two layers lopsided in opposite ways.) ``statistics`` and ``count_by`` look, and so wait.

Dimensions: T tokens, E routed experts, K experts a token, B sequences, L sequence length, V labels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minimoe.moe.router import Routing

UNDERFLOW = 1e-30  # scores are divided by no smaller sum: the gradient, 1 / sum, would leave float32


def switch_loss(routing: Routing) -> Tensor:
    """E * sum over experts of f_i P_i, a scalar (Switch, arXiv 2101.03961, equations 4 to 6; GShard,
    2006.16668). The caller multiplies it by alpha, 0.01 in Switch.

    f_i is expert i's share of all picks, before any is dropped; no gradient. P_i is the mean over real tokens
    of their score for i divided by their scores' sum over all experts; the gate's gradient is P's alone.

    1 at perfect balance, E / K if the same K experts have all picks and scores, 0 without real tokens. 1 is
    no strict bound: an expert picked often, but each time narrowly, has a large f and a small P.
    """
    share_TE, real_T = _shares(routing.scores_TE)
    load_E = routing.counts_E.to(share_TE.dtype) / routing.counts_E.sum().clamp(min=1)
    mean_E = share_TE.sum(0) / real_T.sum().clamp(min=1)
    return len(load_E) * (load_E * mean_E).sum()


def sequence_loss(routing: Routing, length: int) -> Tensor:
    """The mean over sequences of sum over experts of f_i P_i, a scalar (DeepSeek-V3, arXiv 2412.19437,
    equations 17 to 20). The caller multiplies it by alpha, 0.0001 in V3.

    P_i is as in ``switch_loss``. f_i is E / (K L) times the tokens whose K largest *unbiased* scores include
    i; no gradient. That is equation 18 to the letter, and not ``ids_TK``, which bias and group limit have
    changed: f and P then both say what the gate itself prefers, and the bias cannot hide a lopsided gate.
    L counts real tokens; sequences without any are left out. Values as ``switch_loss`` has them; with expert
    choice, where K is E, always 1.

    The T tokens are T / length sequences in a row, padding included; ValueError where that is not whole.
    """
    (n_tokens, n_experts), top_k = routing.scores_TE.shape, routing.ids_TK.shape[1]
    if length < 1 or n_tokens % length:
        raise ValueError(
            f"the {n_tokens} tokens are no whole number of sequences of length {length}; give the length "
            "that the batch was padded to, padding included"
        )
    share_TE, real_T = _shares(routing.scores_TE)
    n_rows = n_tokens // length
    # Each row of picks is counted into its sequence's row of E, padding as 0.
    picks = routing.scores_TE.detach().topk(top_k, dim=-1).indices.reshape(n_rows, length * top_k)
    ones = real_T.to(share_TE.dtype).repeat_interleave(top_k).view(picks.shape)
    counts_BE = share_TE.new_zeros(n_rows, n_experts).scatter_add(1, picks, ones)
    real_B1 = real_T.view(n_rows, length, 1).sum(1)
    f_BE = counts_BE * (n_experts / top_k) / real_B1.clamp(min=1)
    mean_BE = share_TE.view(n_rows, length, n_experts).sum(1) / real_B1.clamp(min=1)
    return (f_BE * mean_BE).sum() / (real_B1 > 0).sum().clamp(min=1)


def router_z_loss(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """The mean over real tokens of logsumexp(logits)^2, a scalar, in float32 at least (ST-MoE, arXiv
    2202.08906, equation 5). It keeps logits small, where rounding is too. ST-MoE multiplies it by 0.001.

    logits_TE (T, E) is ``Router.logits(x)``; mask_T (T,) is False for padding, whose logits may be anything.
    ValueError for a mask that does not fit. 0 without real tokens.
    """
    logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
    if mask_T is None:
        mask_T = torch.ones_like(logits_TE[:, 0], dtype=torch.bool)
    if mask_T.shape != logits_TE.shape[:1] or mask_T.dtype != torch.bool:
        raise ValueError(f"the mask is {mask_T.dtype} {tuple(mask_T.shape)}; give {len(logits_TE)} bools")
    # Masked before as well as after: infinite logits of padding would make its zero gradient NaN.
    z_T = logits_TE.masked_fill(~mask_T.unsqueeze(-1), 0).logsumexp(-1).masked_fill(~mask_T, 0)
    return z_T.square().sum() / mask_T.sum().clamp(min=1)


def _shares(scores_TE: Tensor) -> tuple[Tensor, Tensor]:
    """(T, E) each token's scores divided by their sum, zero for padding, and (T,) bool, which are real.

    Real is what has a sum. Not ``counts_E.sum() / K`` tokens: K is E in expert choice. A real token whose
    sigmoids all underflow passes for padding, and rightly: counted, it would add nothing to P's sum but one
    to its divisor, and so make underflow pay.
    """
    sum_T1 = scores_TE.sum(-1, keepdim=True)
    real_T1 = sum_T1 > UNDERFLOW
    # Divided by 1 and not left out after: 0 / 0 would make the gradient NaN.
    return scores_TE / sum_T1.where(real_T1, 1), real_T1.squeeze(-1)


@torch.no_grad()
def update_bias_(bias_E: Tensor, counts_E: Tensor, speed: float = 1e-3, *, all_ranks: bool = False) -> None:
    """Move the balance bias in place: down for an overloaded expert, up for an underloaded one.

        b_e += speed * sign(mean load - load_e)

    The sign alone counts, so one very busy expert is not thrown out at once. Call it once per
    optimizer step with the counts of the whole batch (all micro-batches added), never in evaluation.
    With several processes they must be the counts of all, or the processes' biases drift apart.

    Args:
        bias_E: (E,) float32, ``gate.e_score_correction_bias``; changed in place.
        counts_E: (E,) tokens that picked each expert.
        speed: gamma; 0.001 in DeepSeek-V3. 1e-4 is slow, 1e-2 oscillates (2408.15664, section 4.3).
        all_ranks: first add up a copy of the counts over torch.distributed's default group. All its
            processes must then make the call, for the layers in the same order.

    Raises:
        ValueError: the two shapes differ, or ``all_ranks`` without a process group.
    """
    if bias_E.shape != counts_E.shape:
        raise ValueError(
            f"bias {tuple(bias_E.shape)} and counts {tuple(counts_E.shape)} must have one entry an expert"
        )
    if all_ranks:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise ValueError("all_ranks needs init_process_group first; leave it False in a lone process")
        counts_E = counts_E.clone()
        torch.distributed.all_reduce(counts_E)
    load_E = counts_E.to(torch.float32)
    bias_E += speed * torch.sign(load_E.mean() - load_E)


def max_violation(counts_E: Tensor) -> float:
    """MaxVio (2408.15664, section 4.1): the busiest expert's load above the mean, over the mean.

    0 is perfect balance, E/K - 1 is all tokens at the same K experts, 0 also where there are no tokens.
    """
    load_E = counts_E.to(torch.float64)
    mean = load_E.mean()
    return float((load_E.max() - mean) / mean) if mean > 0 else 0.0


class Statistics(NamedTuple):
    """How evenly one layer's picks fall on its experts."""

    load_E: Tensor  # float64, on the CPU: each expert's share of the picks, sum 1; zeros without picks
    max_violation: float  # see the function
    entropy: float  # of load_E, over ln E: 1 is even (or a single expert), 0 all on one (or no picks)
    dead: int  # experts without a token
    dropped: float  # share of the picks beyond the experts' capacity


def statistics(routing: Routing | Tensor, *, capacity: int | None = None) -> Statistics:
    """One layer's balance, from its routing or straight from its counts_E (E,). ``capacity`` is the places an
    expert has (``capacity.places``) for the tokens counted. ValueError for other counts or no place."""
    counts_E = (routing.counts_E if isinstance(routing, Routing) else routing).detach().cpu()
    if counts_E.ndim != 1:
        raise ValueError(f"counts {tuple(counts_E.shape)} must be (E,): give one layer at a time")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity ({capacity}) must be at least 1 place an expert, or None for no limit")
    total, n_experts = max(int(counts_E.sum()), 1), len(counts_E)
    load_E = counts_E.to(torch.float64) / total
    entropy = float(torch.special.entr(load_E).sum()) / math.log(n_experts) if n_experts > 1 else 1.0
    dropped = 0.0 if capacity is None else int((counts_E - capacity).clamp(min=0).sum()) / total
    return Statistics(load_E, max_violation(counts_E), entropy, int((counts_E == 0).sum()), dropped)


def count_by(labels_T: Tensor, routing: Routing, n_labels: int) -> Tensor:
    """(n_labels, E) int64: how often the tokens of each label went to each expert.

    A label is an integer 0 … n_labels - 1, for padding too: a token's domain, or its own id. Picks of weight
    exactly 0 (padding, tokens that expert choice passed over) are not counted. ValueError for other labels.
    """
    n_tokens, n_experts = routing.scores_TE.shape
    if labels_T.shape != (n_tokens,) or labels_T.is_floating_point():
        raise ValueError(f"labels {labels_T.dtype} {tuple(labels_T.shape)} must be ({n_tokens},) integers")
    labels_T = labels_T.long()  # bytes times E would overflow
    outside = labels_T[(labels_T < 0) | (labels_T >= n_labels)]
    if len(outside):
        raise ValueError(
            f"{len(outside)} of {n_tokens} labels are outside 0 … {n_labels - 1}, {int(outside.min())} to "
            f"{int(outside.max())}; raise n_labels ({n_labels}), or give padding a label of its own"
        )
    cells_TK = labels_T.unsqueeze(1) * n_experts + routing.ids_TK
    counts = torch.zeros(n_labels * n_experts, dtype=torch.int64, device=cells_TK.device)
    picked_TK = (routing.weights_TK != 0).long()
    return counts.scatter_add(0, cells_TK.flatten(), picked_TK.flatten()).view(n_labels, n_experts)


def top_tokens(counts_VE: Tensor, n: int = 10) -> tuple[Tensor, Tensor]:
    """(E, n) int64, twice: the ids each expert got most often, and how often; of equals the smaller first.

    counts_VE (V, E) is ``count_by`` with the token ids as labels. Where an expert got fewer than n different
    ids, others fill up, with count 0. ValueError for n not between 1 and V.
    """
    if not 1 <= n <= len(counts_VE):
        raise ValueError(f"n ({n}) must be between 1 and the number of labels ({len(counts_VE)})")
    counts_EV, ids_EV = counts_VE.t().sort(dim=1, descending=True, stable=True)  # topk breaks ties anyhow
    return ids_EV[:, :n], counts_EV[:, :n]
