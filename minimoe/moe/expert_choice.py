"""[evidence] Expert choice routing: each expert picks its tokens (Zhou et al., arXiv 2202.09368).

Loads are equal by construction. In exchange a token may get no expert or all of them, and **the choice leaks
the future**: whether an expert takes a token depends on the scores of the tokens after it, so a language
model trained this way sees what it is to predict (the paper's section 6 names the problem). Use it where all
tokens are known at once, as in an encoder; here it serves for comparison.

Dimensions: T tokens, E routed experts, K experts per token on average, C tokens per expert.
"""

import math
from typing import Any

import torch
from torch import Tensor

from minimoe.moe.arguments import Score, check_routing
from minimoe.moe.router import Router, Routing, expert_scores


def expert_choice(
    logits_TE: Tensor, top_k: int, *, score: Score = "softmax", mask_T: Tensor | None = None
) -> Routing:
    """Let each expert choose the C = T * K / E (rounded up) tokens that score highest for it.

    The result has a slot for every expert (K is E): ids are 0 … E - 1, and the weight is the score where the
    expert chose the token, 0 elsewhere. The ``capacity`` dispatcher skips zero weights.

    Raises:
        ValueError: as in ``route``.
    """
    n_tokens, n_experts = logits_TE.shape
    check_routing(n_experts, top_k, score, 1, None)
    scores_TE = expert_scores(logits_TE, score, mask_T)
    n_chosen = math.ceil(n_tokens * top_k / n_experts)
    tokens_CE = scores_TE.detach().topk(n_chosen, dim=0).indices
    chosen_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter(0, tokens_CE, True)
    if mask_T is not None:  # where there are fewer real tokens than C
        chosen_TE = chosen_TE & mask_T.unsqueeze(-1)
    ids_TE = torch.arange(n_experts, device=logits_TE.device).expand(n_tokens, n_experts)
    return Routing(scores_TE.where(chosen_TE, 0), ids_TE, scores_TE, chosen_TE.sum(0))


class ExpertChoiceRouter(Router):
    """A ``Router`` whose experts choose their tokens. It supports neither groups nor a scale, and ignores
    ``normalize`` and the bias."""

    choice = "expert"

    def __init__(self, dim: int, n_experts: int, top_k: int, **options: Any) -> None:
        super().__init__(dim, n_experts, top_k, **options)
        if self.n_groups > 1 or self.scale != 1:
            raise ValueError(
                f"expert choice supports neither groups (n_groups {self.n_groups}) nor a scale "
                f"({self.scale}); leave both at 1, or use choice='token'"
            )

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        """x_TD (T, D), and which tokens are real -> which experts took each."""
        return expert_choice(self.noisy_logits(x_TD), self.top_k, score=self.score, mask_T=mask_T)
