"""[evidence] All claims by id, in the order of the ledger."""

from minimoe.claims import bounds_cost, bounds_distillation, bounds_experts, bounds_precision
from minimoe.claims.claim import Claim

NOT_BUILT = (
    Claim(
        "reinforcement",
        "Reinforcement learning turns a plain language model into a reasoning one, more easily than thought.",
        "DeepSeek-R1, arXiv 2501.12948v1; New York Times, 2025-01-28",
        not_built="reinforcement learning (GRPO on a task with a verifiable answer) is not in this project",
    ),
    Claim(
        "distil-beats-rl",
        "For small models distilling beats reinforcement learning.",
        "DeepSeek-R1, arXiv 2501.12948v1, table 6",
        not_built="reinforcement learning is not in this project, so there is nothing to compare with",
    ),
    Claim(
        "failed-roads",
        "Some approaches failed, such as Monte Carlo tree search.",
        "DeepSeek-R1, arXiv 2501.12948v1, section 4.2",
        not_built="the authors' own negative result, cited; tree search is not in this project",
    ),
)

PARTS = (bounds_precision, bounds_experts, bounds_distillation, bounds_cost)
_precision, _experts, _distillation, _cost = (part.CLAIMS for part in PARTS)
_ALL = (*_precision, *_experts, *_distillation, *NOT_BUILT[:2], *_cost, *NOT_BUILT[2:])

CLAIMS: dict[str, Claim] = {claim.id: claim for claim in _ALL}


def choose(ids: list[str]) -> list[Claim]:
    """The claims with these ids, or all if there are none, in the ledger's order. Raises ValueError for an
    unknown id."""
    if unknown := [id for id in ids if id not in CLAIMS]:
        raise ValueError(f"there is no claim {unknown[0]!r}; choose among {', '.join(CLAIMS)}")
    return [claim for id, claim in CLAIMS.items() if not ids or id in ids]
