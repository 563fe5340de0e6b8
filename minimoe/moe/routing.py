"""Routing: scores, choice, weights. Which experts a token goes to, and how much each counts.

    logits_TE -> scores_TE = sigmoid or softmax        how well each expert suits each token
              -> ids_TK    = the K best of score + bias (the bias steers the choice only)
              -> weights_TK = the picked scores, renormalised, times the scaling factor

DeepSeek-V3 (arXiv 2412.19437), equations 13 to 16; the balance bias is that of arXiv 2408.15664;
the group-limited choice is V3's section 2.1.2 ("node-limited routing").

Dimensions: T tokens, D model width, E routed experts, K experts a token, G groups of experts.
"""

from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Score = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """Where each token goes. Everything a balance loss or a statistic needs is in here."""

    weights_TK: Tensor  # float32; how much each picked expert counts; carries gradient to the gate
    ids_TK: Tensor  # int64; the picked experts, best first
    scores_TE: Tensor  # float32; the unbiased scores of all experts
    counts_E: Tensor  # int64; tokens that picked each expert


def route(
    logits_TE: Tensor,
    top_k: int,
    *,
    score: Score = "softmax",
    normalize: bool = True,
    scale: float = 1.0,
    bias_E: Tensor | None = None,
    n_groups: int = 1,
    top_groups: int | None = None,
) -> Routing:
    """Choose ``top_k`` experts for each token.

    Args:
        logits_TE: (T, E) the gate's output, computed in float32.
        top_k: experts a token, K.
        score: ``softmax`` over all experts (Switch, Mixtral) or ``sigmoid`` of each (DeepSeek-V3).
        normalize: make a token's K weights sum to ``scale``. With K = 1 the weight is then constant
            and the gate gets no gradient from the task; leave it off there, as Switch does.
        scale: the routed scaling factor (2.5 in DeepSeek-V3).
        bias_E: (E,) added to the scores for the *choice* only, never in a weight.
        n_groups, top_groups: a token's experts come from the ``top_groups`` best of ``n_groups``
            groups, a group's worth being the sum of its K / top_groups best biased scores.

    Raises:
        ValueError: a count is out of range, or the experts do not divide into the groups.
    """
    n_experts = logits_TE.shape[-1]
    check_routing(n_experts, top_k, score, n_groups, top_groups)
    scores_TE = logits_TE.softmax(-1) if score == "softmax" else logits_TE.sigmoid()

    choice_TE = scores_TE.detach()
    if bias_E is not None:
        choice_TE = choice_TE + bias_E
    if top_groups is not None and top_groups < n_groups:
        choice_TE = _keep_best_groups(choice_TE, top_k, n_groups, top_groups)
    ids_TK = choice_TE.topk(top_k, dim=-1).indices

    if normalize:
        # Dividing the picked scores by their sum is a softmax over their logarithms. This form needs
        # no epsilon and stays exact where every score underflows (all logits very negative).
        log_scores_TE = logits_TE if score == "softmax" else F.logsigmoid(logits_TE)
        weights_TK = log_scores_TE.gather(-1, ids_TK).softmax(-1)
    else:
        weights_TK = scores_TE.gather(-1, ids_TK)
    return Routing(weights_TK * scale, ids_TK, scores_TE, count_tokens(ids_TK, n_experts))


def _keep_best_groups(choice_TE: Tensor, top_k: int, n_groups: int, top_groups: int) -> Tensor:
    """Put the experts outside each token's best groups out of reach."""
    choice_TGe = rearrange(choice_TE, "t (g e) -> t g e", g=n_groups)
    worth_TG = choice_TGe.topk(top_k // top_groups, dim=-1).values.sum(-1)
    kept = worth_TG.topk(top_groups, dim=-1).indices
    excluded_TG = torch.ones_like(worth_TG, dtype=torch.bool).scatter(-1, kept, False)
    # -inf and not 0: where the bias makes every kept score negative, 0 would win.
    choice_TGe = choice_TGe.masked_fill(excluded_TG.unsqueeze(-1), float("-inf"))
    return rearrange(choice_TGe, "t g e -> t (g e)")


def count_tokens(ids_TK: Tensor, n_experts: int) -> Tensor:
    """(E,) int64: how many tokens picked each expert. Unlike bincount, never waits for the device."""
    flat_R = ids_TK.flatten()
    counts_E = torch.zeros(n_experts, dtype=torch.int64, device=flat_R.device)
    return counts_E.scatter_add(0, flat_R, torch.ones_like(flat_R))


def check_routing(n_experts: int, top_k: int, score: str, n_groups: int, top_groups: int | None) -> None:
    """Raise ValueError, with the numbers and the remedy, for routing that cannot be."""
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"score must be 'softmax' or 'sigmoid', not {score!r}")
    if not 1 <= top_k <= n_experts:
        raise ValueError(f"top_k ({top_k}) must be between 1 and n_experts ({n_experts})")
    if n_groups < 1 or n_experts % n_groups:
        raise ValueError(f"n_experts ({n_experts}) must be divisible by n_groups ({n_groups})")
    if top_groups is None:
        return
    if not 1 <= top_groups <= n_groups:
        raise ValueError(f"top_groups ({top_groups}) must be between 1 and n_groups ({n_groups})")
    if top_k % top_groups:
        raise ValueError(
            f"top_k ({top_k}) must be divisible by top_groups ({top_groups}): each kept group is "
            "ranked by its top_k / top_groups best experts"
        )
    if top_k // top_groups > n_experts // n_groups:
        raise ValueError(
            f"top_k / top_groups ({top_k // top_groups}) must not exceed the experts of one group "
            f"({n_experts // n_groups}); raise top_groups"
        )


class Router(nn.Module):
    """The gate: a linear map to one logit an expert, then ``route``.

    ``weight`` (E, D) is learned; ``e_score_correction_bias`` (E,) is a float32 buffer that no gradient
    reaches: the training loop moves it (``balance.update_bias_``), and the choice alone sees it.
    """

    def __init__(
        self,
        dim: int,
        n_experts: int,
        top_k: int,
        *,
        score: Score = "sigmoid",
        normalize: bool = True,
        scale: float = 1.0,
        n_groups: int = 1,
        top_groups: int | None = None,
    ) -> None:
        super().__init__()
        check_routing(n_experts, top_k, score, n_groups, top_groups)
        self.route = partial(
            route,
            top_k=top_k,
            score=score,
            normalize=normalize,
            scale=scale,
            n_groups=n_groups,
            top_groups=top_groups,
        )
        self.weight = nn.Parameter(torch.empty(n_experts, dim))
        nn.init.normal_(self.weight, std=0.02)
        self.e_score_correction_bias: Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(n_experts))

    def forward(self, x_TD: Tensor) -> Routing:
        # In float32 whatever surrounds it: two experts' scores often differ by less than bf16 keeps.
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.weight.float())
            return self.route(logits_TE, bias_E=self.e_score_correction_bias)
