"""Load balancing: auxiliary losses and the auxiliary-loss-free bias, which keep all experts in use.

A term in the loss pulls the gate towards even loads: ``switch_loss`` over a batch, ``sequence_loss`` within
each sequence. The auxiliary-loss-free bias (arXiv 2408.15664; DeepSeek-V3, section 2.1.2) adds nothing to the
loss: ``update_bias_`` raises or lowers each expert's chance of being picked. ``router_z_loss`` keeps the
logits small.

The losses are for one layer and never wait for the device; average them over layers. (Counts pooled over
layers would hide two layers that are unbalanced in opposite ways.) ``load_statistics`` measures the result.

Dimensions: T tokens, E routed experts, K experts per token, B sequences, L sequence length.
"""

import torch
from torch import Tensor

from minimoe.moe.arguments import check_mask
from minimoe.moe.router import Routing

UNDERFLOW = 1e-30  # no scores are divided by a smaller sum: the gradient, 1 / sum, would overflow float32


def switch_loss(routing: Routing) -> Tensor:
    """E * sum over experts of f_i P_i, a scalar (Switch, arXiv 2101.03961, equations 4 to 6; GShard,
    2006.16668). The caller multiplies it by alpha, 0.01 in Switch.

    f_i is expert i's share of all picks, before any are dropped; it carries no gradient. P_i is the mean over
    real tokens of their score for i divided by the sum of their scores; the gate's gradient comes from P
    alone.

    1 at perfect balance, E / K if the same K experts get all picks and scores, 0 without real tokens. 1 is
    not a strict bound: an expert picked often, but each time by a small margin, has a large f and a small P.
    """
    share_TE, real_T = _shares(routing.scores_TE)
    load_E = routing.counts_E.to(share_TE.dtype) / routing.counts_E.sum().clamp(min=1)
    mean_E = share_TE.sum(0) / real_T.sum().clamp(min=1)
    return len(load_E) * (load_E * mean_E).sum()


def sequence_loss(routing: Routing, length: int) -> Tensor:
    """The mean over sequences of sum over experts of f_i P_i, a scalar (DeepSeek-V3, arXiv 2412.19437,
    equations 17 to 20). The caller multiplies it by alpha, 0.0001 in V3.

    P_i is as in ``switch_loss``. f_i is E / (K L) times the number of tokens whose K largest *unbiased*
    scores include i; it carries no gradient. This follows equation 18 literally and does not use ``ids_TK``,
    which depend on bias and group limit: f and P then both describe the gate's own preference, and the bias
    cannot hide an unbalanced gate. L counts real tokens; sequences without any are left out. Values are as in
    ``switch_loss``; with expert choice, where K is E, always 1.

    The T tokens are T / length consecutive sequences, padding included. ValueError if T is not divisible.
    """
    (n_tokens, n_experts), top_k = routing.scores_TE.shape, routing.ids_TK.shape[1]
    if length < 1 or n_tokens % length:
        raise ValueError(
            f"the {n_tokens} tokens cannot be divided into sequences of length {length}; give the length "
            "that the batch was padded to, padding included"
        )
    share_TE, real_T = _shares(routing.scores_TE)
    n_sequences = n_tokens // length
    picks = routing.scores_TE.detach().topk(top_k, dim=-1).indices.reshape(n_sequences, length * top_k)
    ones = real_T.to(share_TE.dtype).repeat_interleave(top_k).view(picks.shape)  # padding counts 0
    counts_BE = share_TE.new_zeros(n_sequences, n_experts).scatter_add(1, picks, ones)
    real_B1 = real_T.view(n_sequences, length, 1).sum(1)
    f_BE = counts_BE * (n_experts / top_k) / real_B1.clamp(min=1)
    mean_BE = share_TE.view(n_sequences, length, n_experts).sum(1) / real_B1.clamp(min=1)
    return (f_BE * mean_BE).sum() / (real_B1 > 0).sum().clamp(min=1)


def router_z_loss(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """The mean over real tokens of logsumexp(logits)^2, a scalar, in at least float32 (ST-MoE, arXiv
    2202.08906, equation 5). It keeps logits, and with them rounding errors, small. ST-MoE multiplies it by
    0.001.

    logits_TE (T, E) is ``Router.logits(x)``; mask_T (T,) is False for padding, whose logits may have any
    value. ValueError for an invalid mask. 0 without real tokens.
    """
    logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
    check_mask(mask_T, logits_TE.shape[:1])
    if mask_T is None:
        mask_T = torch.ones_like(logits_TE[:, 0], dtype=torch.bool)
    # Masked before as well as after: infinite logits of padding would make its zero gradient NaN.
    z_T = logits_TE.masked_fill(~mask_T.unsqueeze(-1), 0).logsumexp(-1).masked_fill(~mask_T, 0)
    return z_T.square().sum() / mask_T.sum().clamp(min=1)


def _shares(scores_TE: Tensor) -> tuple[Tensor, Tensor]:
    """(T, E) each token's scores divided by their sum, zero for padding, and (T,) bool, True for real tokens.

    A token is real if its scores have a sum. (Counting ``counts_E.sum() / K`` tokens would be wrong for
    expert choice, where K is E.) A real token whose sigmoids all underflow is treated as padding: counted, it
    would add nothing to P's sum but one to its divisor, and so reward underflow.
    """
    sum_T1 = scores_TE.sum(-1, keepdim=True)
    real_T1 = sum_T1 > UNDERFLOW
    # Divided by 1 rather than masked afterwards: 0 / 0 would make the gradient NaN.
    return scores_TE / sum_T1.where(real_T1, 1), real_T1.squeeze(-1)


@torch.no_grad()
def update_bias_(bias_E: Tensor, counts_E: Tensor, speed: float = 1e-3, *, all_ranks: bool = False) -> None:
    """Update the balancing bias in place: lower it for an overloaded expert, raise it for an underloaded one.

        b_e += speed * sign(mean load - load_e)

    Only the sign counts, so that a single very busy expert does not lose all its tokens at once. Call it once
    per optimizer step with the counts of the whole batch (sum of all micro-batches), never in evaluation.
    With several processes the counts must be those of all processes, or their biases diverge.

    Args:
        bias_E: (E,) float32, ``gate.e_score_correction_bias``; changed in place.
        counts_E: (E,) tokens that picked each expert.
        speed: gamma; 0.001 in DeepSeek-V3. 1e-4 is slow, 1e-2 oscillates (2408.15664, section 4.3).
        all_ranks: first sum a copy of the counts over torch.distributed's default group, all of whose
            processes must then make this call for the layers in the same order.

    ValueError if the two shapes differ, or for ``all_ranks`` without a process group.
    """
    if bias_E.shape != counts_E.shape:
        raise ValueError(
            f"bias {tuple(bias_E.shape)} and counts {tuple(counts_E.shape)} must have one entry per expert"
        )
    if all_ranks:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise ValueError("all_ranks needs init_process_group first; leave it False in a single process")
        counts_E = counts_E.clone()
        torch.distributed.all_reduce(counts_E)
    load_E = counts_E.to(torch.float32)
    bias_E += speed * torch.sign(load_E.mean() - load_E)
