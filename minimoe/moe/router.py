"""The router: scores all experts for each token, picks K of them, and weights their outputs.

    logits_TE -> scores_TE     sigmoid or softmax: how well each expert suits each token
              -> ids_TK        the K highest of score + bias (the bias affects the choice only)
              -> weights_TK    the picked scores, normalized, times the scaling factor

DeepSeek-V3 (arXiv 2412.19437), equations 13 to 16; the bias is that of arXiv 2408.15664, the group-limited
choice that of V3's section 2.1.2 ("node-limited routing").

Dimensions: T tokens, D model width, E routed experts, K experts per token, G groups of experts.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimoe.moe.arguments import Score, check_jitter, check_mask, check_not_nan, check_routing


class Routing(NamedTuple):
    """Where each token goes: all that the experts, a balancing loss or a statistic need. Floats are float32,
    or float64 in a float64 layer."""

    weights_TK: Tensor  # the weight of each picked expert; carries the gradient to the gate
    ids_TK: Tensor  # int64; the picked experts, best first
    scores_TE: Tensor  # the scores of all experts, without bias
    counts_E: Tensor  # int64; the number of tokens that picked each expert, without padding


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
    mask_T: Tensor | None = None,
) -> Routing:
    """Choose ``top_k`` experts for each token.

    Args:
        logits_TE: (T, E) the gate's output, computed in float32.
        top_k: K, experts per token.
        score: ``softmax`` over all experts (Switch, Mixtral) or ``sigmoid`` of each (DeepSeek-V3).
        normalize: make a token's K weights sum to ``scale``. With ``softmax`` this equals Mixtral's softmax
            *after* the choice, over the picked logits alone; without it the softmax stays *before* the
            choice, as in Switch and OLMoE. With K = 1 a normalized weight is constant and the gate gets no
            gradient from the task, so leave it off, as Switch does.
        scale: the routed scaling factor (2.5 in DeepSeek-V3).
        bias_E: (E,) added to the scores for the *choice* only, never to a weight.
        n_groups, top_groups: a token's experts come from the ``top_groups`` best of ``n_groups`` groups,
            where a group is ranked by the sum of its K / top_groups highest biased scores.
        mask_T: (T,) bool, False for padding, whose weights and scores are set to zero and which is not
            counted. Its ids stay valid, so that shapes are fixed.

    Raises:
        ValueError: a count is out of range, E is not divisible by ``n_groups``, the mask is invalid, or (on a
            CPU) scores are NaN.
    """
    n_experts = logits_TE.shape[-1]
    check_routing(n_experts, top_k, score, n_groups, top_groups)
    scores_TE = expert_scores(logits_TE, score, mask_T)

    choice_TE = scores_TE.detach()
    if bias_E is not None:
        choice_TE = choice_TE + bias_E
    if top_groups is not None and top_groups < n_groups:
        choice_TE = _keep_best_groups(choice_TE, top_k, n_groups, top_groups)
    ids_TK = choice_TE.topk(top_k, dim=-1).indices

    if normalize:
        # Dividing the picked scores by their sum is a softmax over their logarithms. This form needs no
        # epsilon and stays exact where every score underflows (all logits very negative).
        picked_TK = logits_TE.gather(-1, ids_TK)
        weights_TK = (picked_TK if score == "softmax" else F.logsigmoid(picked_TK)).softmax(-1)
    else:
        weights_TK = scores_TE.gather(-1, ids_TK)
    if scale != 1:
        weights_TK = weights_TK * scale
    if mask_T is not None:
        weights_TK = weights_TK.masked_fill(~mask_T.unsqueeze(-1), 0)
    return Routing(weights_TK, ids_TK, scores_TE, count_tokens(ids_TK, n_experts, mask_T))


def expert_scores(logits_TE: Tensor, score: Score, mask_T: Tensor | None = None) -> Tensor:
    """(T, E) the scores, zero for padding."""
    check_mask(mask_T, logits_TE.shape[:1])
    scores_TE = logits_TE.softmax(-1) if score == "softmax" else logits_TE.sigmoid()
    if mask_T is not None:
        scores_TE = scores_TE.masked_fill(~mask_T.unsqueeze(-1), 0)
    check_not_nan(scores_TE)
    return scores_TE


def _keep_best_groups(choice_TE: Tensor, top_k: int, n_groups: int, top_groups: int) -> Tensor:
    """Set the scores of experts outside each token's best groups to -inf."""
    choice_TGe = rearrange(choice_TE, "t (g e) -> t g e", g=n_groups)
    group_scores_TG = choice_TGe.topk(top_k // top_groups, dim=-1).values.sum(-1)
    best_groups = group_scores_TG.topk(top_groups, dim=-1).indices
    excluded_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter(-1, best_groups, False)
    # -inf and not 0: where the bias makes every score in the best groups negative, 0 would win.
    choice_TGe = choice_TGe.masked_fill(excluded_TG.unsqueeze(-1), float("-inf"))
    return rearrange(choice_TGe, "t g e -> t (g e)")


def count_tokens(ids_TK: Tensor, n_experts: int, mask_T: Tensor | None = None) -> Tensor:
    """(E,) int64: how many (real) tokens picked each expert. Unlike bincount, it never waits for the
    device."""
    ones_TK = torch.ones_like(ids_TK)
    if mask_T is not None:
        ones_TK = ones_TK * mask_T.unsqueeze(-1)
    counts_E = torch.zeros(n_experts, dtype=torch.int64, device=ids_TK.device)
    return counts_E.scatter_add(0, ids_TK.flatten(), ones_TK.flatten())


class Router(nn.Module):
    """The gate: a linear map to one logit per expert, then ``route``.

    ``weight`` (E, D) is learned; ``e_score_correction_bias`` (E,) is a float32 buffer without gradient: the
    training loop updates it (``load_balancing.update_bias_``), and it affects the choice only.

    Args:
        score, normalize, scale, n_groups, top_groups: see ``route``.
        jitter: in training, multiply the gate's input by noise between 1 - jitter and 1 + jitter (Switch,
            arXiv 2101.03961, appendix C), drawn from torch's global generator.
    """

    choice = "token"  # tokens choose their experts; the other way round in ``expert_choice``

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
        jitter: float = 0.0,
    ) -> None:
        super().__init__()
        check_routing(n_experts, top_k, score, n_groups, top_groups)
        check_jitter(jitter)
        self.top_k = top_k
        self.score: Score = score
        self.normalize, self.scale = normalize, scale
        self.n_groups, self.top_groups = n_groups, top_groups
        self.jitter = jitter
        self.weight = nn.Parameter(torch.empty(n_experts, dim))
        nn.init.normal_(self.weight, std=0.02)
        self.e_score_correction_bias: Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(n_experts))

    def _apply(self, fn, recurse=True):
        """Keep the bias in float32 under ``.to(torch.bfloat16)`` and the like: BF16 would lose its steps of
        0.001."""
        bias_E = self.e_score_correction_bias
        super()._apply(fn, recurse)
        if self.e_score_correction_bias.dtype != bias_E.dtype:
            self.e_score_correction_bias = bias_E.to(self.e_score_correction_bias.device)
        return self

    def logits(self, x_TD: Tensor) -> Tensor:
        """(T, E) in at least float32, also under autocast: two experts' scores often differ by less than BF16
        resolves. Without jitter; also the input of ``load_balancing.router_z_loss``."""
        device, dtype = x_TD.device.type, torch.promote_types(x_TD.dtype, torch.float32)
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return F.linear(x_TD.to(dtype), self.weight.to(dtype))
        return F.linear(x_TD.to(dtype), self.weight.to(dtype))

    def noisy_logits(self, x_TD: Tensor) -> Tensor:
        """As ``logits``, with jitter in training."""
        if self.training and self.jitter:
            noise_TD = torch.empty_like(x_TD, dtype=torch.float32)
            x_TD = x_TD * noise_TD.uniform_(1 - self.jitter, 1 + self.jitter)
        return self.logits(x_TD)

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        """x_TD (T, D), and which tokens are real -> where each goes. Raises as ``route`` does."""
        return route(
            self.noisy_logits(x_TD),
            self.top_k,
            score=self.score,
            normalize=self.normalize,
            scale=self.scale,
            bias_E=self.e_score_correction_bias,
            n_groups=self.n_groups,
            top_groups=self.top_groups,
            mask_T=mask_T,
        )
