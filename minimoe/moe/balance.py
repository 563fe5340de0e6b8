"""Balance: keeping every expert at work, and saying how well that succeeds.

Only the auxiliary-loss-free bias (arXiv 2408.15664; DeepSeek-V3, section 2.1.2) so far: no term in
the loss, but a nudge to each expert's chance of being picked, once per optimizer step.

Dimensions: E routed experts.
"""

import torch
from torch import Tensor


@torch.no_grad()
def update_bias_(bias_E: Tensor, counts_E: Tensor, speed: float = 1e-3) -> None:
    """Move the balance bias in place: down for an overloaded expert, up for an underloaded one.

        b_e += speed * sign(mean load - load_e)

    The sign alone counts, so one very busy expert is not thrown out at once. Call it once per
    optimizer step with the counts of the whole batch (all micro-batches added), never in evaluation.

    Args:
        bias_E: (E,) float32, ``gate.e_score_correction_bias``; changed in place.
        counts_E: (E,) tokens that picked each expert.
        speed: gamma; 0.001 in DeepSeek-V3. 1e-4 is slow, 1e-2 oscillates (2408.15664, section 4.3).

    Raises:
        ValueError: the two shapes differ.
    """
    if bias_E.shape != counts_E.shape:
        raise ValueError(
            f"bias {tuple(bias_E.shape)} and counts {tuple(counts_E.shape)} must have one entry an expert"
        )
    load_E = counts_E.to(torch.float32)
    bias_E += speed * torch.sign(load_E.mean() - load_E)


def max_violation(counts_E: Tensor) -> float:
    """MaxVio (2408.15664, section 4.1): the busiest expert's load above the mean, over the mean.

    0 is perfect balance, E/K - 1 is all tokens at the same K experts, 0 also where there are no tokens.
    """
    load_E = counts_E.to(torch.float64)
    mean = load_E.mean()
    return float((load_E.max() - mean) / mean) if mean > 0 else 0.0
