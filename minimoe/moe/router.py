"""Routing: scores, choice, weights. Which experts a token goes to, and how much each counts.

    logits_TE -> scores_TE = sigmoid or softmax        how well each expert suits each token
              -> ids_TK    = the K best of score + bias (the bias steers the choice only)
              -> weights_TK = the picked scores, renormalised, times the scaling factor

DeepSeek-V3 (arXiv 2412.19437), equations 13 to 16; the balance bias is that of arXiv 2408.15664;
the group-limited choice is V3's section 2.1.2 ("node-limited routing"). ``expert_choice`` turns the
question round: each expert picks its tokens (Zhou et al., arXiv 2202.09368).

Dimensions: T tokens, D model width, E routed experts, K experts a token, G groups of experts.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Score = Literal["softmax", "sigmoid"]

Choice = Literal["token", "expert"]


class Routing(NamedTuple):
    """Where each token goes. Everything a balance loss or a statistic needs is in here. What is float is
    float32, or float64 in a float64 layer."""

    weights_TK: Tensor  # how much each picked expert counts; carries gradient to the gate
    ids_TK: Tensor  # int64; the picked experts, best first
    scores_TE: Tensor  # the unbiased scores of all experts
    counts_E: Tensor  # int64; tokens that picked each expert, padding left out


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
        top_k: experts a token, K.
        score: ``softmax`` over all experts (Switch, Mixtral) or ``sigmoid`` of each (DeepSeek-V3).
        normalize: make a token's K weights sum to ``scale``. With ``softmax`` that is Mixtral's softmax
            *after* the choice, over the picked logits alone; without it the softmax stays *before* the
            choice, as in Switch and OLMoE. With K = 1 a normalised weight is constant and the gate gets
            no gradient from the task; leave it off there, as Switch does.
        scale: the routed scaling factor (2.5 in DeepSeek-V3).
        bias_E: (E,) added to the scores for the *choice* only, never in a weight.
        n_groups, top_groups: a token's experts come from the ``top_groups`` best of ``n_groups``
            groups, a group's worth being the sum of its K / top_groups best biased scores.
        mask_T: (T,) bool, False for padding: such a token's weights and scores are zero and it is not
            counted. Its ids stay valid, so that shapes stay fixed.

    Raises:
        ValueError: a count is out of range, the experts do not divide into the groups, the mask does
            not fit, or (on a CPU, where looking does not mean waiting) scores are NaN.
    """
    n_experts = logits_TE.shape[-1]
    check_routing(n_experts, top_k, score, n_groups, top_groups)
    scores_TE = _scores(logits_TE, score, mask_T)

    choice_TE = scores_TE.detach()
    if bias_E is not None:
        choice_TE = choice_TE + bias_E
    if top_groups is not None and top_groups < n_groups:
        choice_TE = _keep_best_groups(choice_TE, top_k, n_groups, top_groups)
    ids_TK = choice_TE.topk(top_k, dim=-1).indices

    if normalize:
        # Dividing the picked scores by their sum is a softmax over their logarithms. This form needs
        # no epsilon and stays exact where every score underflows (all logits very negative).
        picked_TK = logits_TE.gather(-1, ids_TK)
        weights_TK = (picked_TK if score == "softmax" else F.logsigmoid(picked_TK)).softmax(-1)
    else:
        weights_TK = scores_TE.gather(-1, ids_TK)
    if scale != 1:
        weights_TK = weights_TK * scale
    if mask_T is not None:
        weights_TK = weights_TK.masked_fill(~mask_T.unsqueeze(-1), 0)
    return Routing(weights_TK, ids_TK, scores_TE, count_tokens(ids_TK, n_experts, mask_T))


def expert_choice(
    logits_TE: Tensor, top_k: int, *, score: Score = "softmax", mask_T: Tensor | None = None
) -> Routing:
    """Let each expert choose its tokens: the T * K / E (rounded up) that score highest for it.

    Loads are equal by construction. In exchange a token may get no expert or all of them, and **it leaks
    the future**: whether an expert takes a token depends on how the tokens after it score, so a language
    model trained this way sees what it is to predict (arXiv 2202.09368, section 6, names the problem).
    Use it where all tokens are there at once, as in an encoder; here, to compare.

    A token has a slot for every expert in the result (K is E): ids are 0 … E - 1 and the weight is the
    score where the expert chose the token, 0 elsewhere. The ``capacity`` dispatcher passes over the zeros.

    Raises:
        ValueError: as in ``route``.
    """
    n_tokens, n_experts = logits_TE.shape
    check_routing(n_experts, top_k, score, 1, None)
    scores_TE = _scores(logits_TE, score, mask_T)
    chosen = math.ceil(n_tokens * top_k / n_experts)
    tokens_CE = scores_TE.detach().topk(chosen, dim=0).indices
    taken_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter(0, tokens_CE, True)
    if mask_T is not None:  # where fewer tokens are real than an expert wants
        taken_TE = taken_TE & mask_T.unsqueeze(-1)
    ids_TE = torch.arange(n_experts, device=logits_TE.device).expand(n_tokens, n_experts)
    return Routing(scores_TE.where(taken_TE, 0), ids_TE, scores_TE, taken_TE.sum(0))


def _scores(logits_TE: Tensor, score: Score, mask_T: Tensor | None) -> Tensor:
    """(T, E) the scores, zero for padding; looked at for NaN where that costs no waiting."""
    if mask_T is not None and (mask_T.shape != logits_TE.shape[:1] or mask_T.dtype != torch.bool):
        raise ValueError(
            f"the mask must be bool with one entry a token, ({logits_TE.shape[0]},), True for real tokens; "
            f"it is {mask_T.dtype} {tuple(mask_T.shape)}"
        )
    scores_TE = logits_TE.softmax(-1) if score == "softmax" else logits_TE.sigmoid()
    if mask_T is not None:
        scores_TE = scores_TE.masked_fill(~mask_T.unsqueeze(-1), 0)
    visible = scores_TE.device.type == "cpu" and not torch.compiler.is_compiling()
    # The sum is NaN if any score is: one cheap number to look at. A GPU would have to be waited for.
    if visible and math.isnan(scores_TE.detach().sum().item()):
        bad = int(scores_TE.isnan().any(-1).sum())
        raise ValueError(
            f"the scores of {bad} of {len(scores_TE)} tokens are NaN; look for NaN or infinite values in "
            "the layer's input and in gate.weight, or lower the learning rate"
        )
    return scores_TE


def _keep_best_groups(choice_TE: Tensor, top_k: int, n_groups: int, top_groups: int) -> Tensor:
    """Put the experts outside each token's best groups out of reach."""
    choice_TGe = rearrange(choice_TE, "t (g e) -> t g e", g=n_groups)
    worth_TG = choice_TGe.topk(top_k // top_groups, dim=-1).values.sum(-1)
    kept = worth_TG.topk(top_groups, dim=-1).indices
    excluded_TG = torch.ones_like(worth_TG, dtype=torch.bool).scatter(-1, kept, False)
    # -inf and not 0: where the bias makes every kept score negative, 0 would win.
    choice_TGe = choice_TGe.masked_fill(excluded_TG.unsqueeze(-1), float("-inf"))
    return rearrange(choice_TGe, "t g e -> t (g e)")


def count_tokens(ids_TK: Tensor, n_experts: int, mask_T: Tensor | None = None) -> Tensor:
    """(E,) int64: how many (real) tokens picked each expert. Unlike bincount, never waits for the device."""
    ones_TK = torch.ones_like(ids_TK)
    if mask_T is not None:
        ones_TK = ones_TK * mask_T.unsqueeze(-1)
    counts_E = torch.zeros(n_experts, dtype=torch.int64, device=ids_TK.device)
    return counts_E.scatter_add(0, ids_TK.flatten(), ones_TK.flatten())


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


def check_jitter(jitter: float) -> None:
    """Raise ValueError for noise that would turn a value's sign."""
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter ({jitter}) must be at least 0 and below 1; Switch has 0.01")


class Router(nn.Module):
    """The gate: a linear map to one logit an expert, then ``route`` (or ``expert_choice``).

    ``weight`` (E, D) is learned; ``e_score_correction_bias`` (E,) is a float32 buffer that no gradient
    reaches: the training loop moves it (``balance.update_bias_``), and the choice alone sees it.

    Args:
        score, normalize, scale, n_groups, top_groups: see ``route``.
        choice: ``token``, each token picks its experts; ``expert``, see ``expert_choice``.
        jitter: in training, multiply what the gate sees by noise between 1 - jitter and 1 + jitter
            (Switch, arXiv 2101.03961, section 2.4); drawn from torch's global generator.
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
        choice: Choice = "token",
        jitter: float = 0.0,
    ) -> None:
        super().__init__()
        check_routing(n_experts, top_k, score, n_groups, top_groups)
        if choice not in ("token", "expert"):
            raise ValueError(f"choice must be 'token' or 'expert', not {choice!r}")
        if choice == "expert" and (n_groups > 1 or scale != 1):
            raise ValueError(
                f"experts that choose know neither groups (n_groups {n_groups}) nor a scale ({scale}); "
                "leave both at 1, or take choice='token'"
            )
        check_jitter(jitter)
        self.top_k = top_k
        self.score: Score = score
        self.normalize = normalize
        self.scale = scale
        self.n_groups = n_groups
        self.top_groups = top_groups
        self.choice: Choice = choice
        self.jitter = jitter
        self.weight = nn.Parameter(torch.empty(n_experts, dim))
        nn.init.normal_(self.weight, std=0.02)
        self.e_score_correction_bias: Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(n_experts))

    def _apply(self, fn, recurse=True):
        """``.to(torch.bfloat16)`` and its like change the weight, never the bias: in bf16 the steps of 0.001
        by which it moves would be lost."""
        bias_E = self.e_score_correction_bias
        super()._apply(fn, recurse)
        if self.e_score_correction_bias.dtype != bias_E.dtype:
            self.e_score_correction_bias = bias_E.to(self.e_score_correction_bias.device)
        return self

    def logits(self, x_TD: Tensor) -> Tensor:
        """(T, E) in float32 at least, whatever surrounds it: two experts' scores often differ by less than
        bf16 keeps. Without noise; for ``balance.router_z_loss``, say."""
        device, dtype = x_TD.device.type, torch.promote_types(x_TD.dtype, torch.float32)
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return F.linear(x_TD.to(dtype), self.weight.to(dtype))
        return F.linear(x_TD.to(dtype), self.weight.to(dtype))

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        """x_TD (T, D), and which tokens are real -> where each goes. Raises as ``route`` does."""
        if self.training and self.jitter:
            noise_TD = torch.empty_like(x_TD, dtype=torch.float32)
            x_TD = x_TD * noise_TD.uniform_(1 - self.jitter, 1 + self.jitter)
        logits_TE = self.logits(x_TD)
        if self.choice == "expert":
            return expert_choice(logits_TE, self.top_k, score=self.score, mask_T=mask_T)
        return route(
            logits_TE,
            self.top_k,
            score=self.score,
            normalize=self.normalize,
            scale=self.scale,
            bias_E=self.e_score_correction_bias,
            n_groups=self.n_groups,
            top_groups=self.top_groups,
            mask_T=mask_T,
        )
