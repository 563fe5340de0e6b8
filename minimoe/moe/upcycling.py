"""[speed] Sparse upcycling: a mixture of experts initialized from a trained dense layer (arXiv 2212.05055).

    dense hidden width  | shared, n_shared * H | slice 0, H | slice 1, H | ... |
    expert c * split + s = copy c of slice s      all copies of a slice are equal at first

A SwiGLU is a sum over its hidden width, so the slices' outputs add up to the dense layer's. All slices of a
copy have the same router row: their scores tie, and the K = top_copies * split best experts are all slices of
top_copies whole copies. A token's normalized weights sum to 1 over the picked copies' slices, and so to 1 /
split over the copies of one slice, which ``scale`` = split compensates:

    y = shared(x) + sum over s of slice_s(x) * (sum over the picked copies c of  w_c) = dense(x)

The same holds for the gradient of x. In training the copies and their router rows diverge, because each sees
different tokens. With split > 1 these are the "virtual groups" of He et al. (arXiv 2410.07524), who apply the
softmax before the choice and scale the experts' weights instead of their output, which equals the dense layer
only approximately.
"""

import torch
from einops import rearrange
from torch import Tensor

from minimoe.moe.arguments import Dispatch
from minimoe.moe.feed_forward import SwiGLU
from minimoe.moe.layer import MoE


@torch.no_grad()
def upcycle(
    dense: SwiGLU,
    copies: int,
    *,
    top_copies: int = 2,
    split: int = 1,
    n_shared: int = 0,
    dispatch: Dispatch = "auto",
) -> MoE:
    """A layer of E = copies * split experts, K = top_copies * split per token, that computes the same as
    ``dense`` (width D, hidden width W) until it is trained.

    Equal up to rounding. Ties are as exact as the matmul behind them, so where the scores of two copies agree
    to the last bits a token may get slices of both; this happens to about one in a million float32 tokens.

    Args:
        copies: of every slice. ``dense`` is not changed and shares no memory with them.
        top_copies: copies per token.
        split: routed experts per copy, each of width H = W / (n_shared + split). Where this and top_copies
            are 1, a token's only weight is constant, and the gate learns only from balancing losses.
        n_shared: the shared expert gets n_shared * H of the hidden width.
        dispatch: see ``MoE``. With ``capacity``, dropped tokens make a difference.

    Returns:
        The layer, in dense's dtype and on its device; its router is drawn from torch's global generator.

    Raises:
        ValueError: a count is too small, top_copies exceeds copies, or W is not divisible.
    """
    dim, hidden = dense.gate_proj.in_features, dense.gate_proj.out_features
    _check(hidden, copies, top_copies, split, n_shared)
    expert_dim = hidden // (n_shared + split)
    gate_WD, up_WD, down_DW = (p.weight for p in (dense.gate_proj, dense.up_proj, dense.down_proj))
    shared = n_shared * expert_dim
    # Rows that differ between copies but not within one.
    rows_cD = 0.02 * torch.randn(copies, dim, dtype=gate_WD.dtype, device=gate_WD.device)
    n_experts = copies * split
    tensors: dict[str, Tensor] = {
        "gate.weight": rows_cD.repeat_interleave(split, 0),
        "gate.e_score_correction_bias": torch.zeros(n_experts, device=gate_WD.device),
        "experts.gate_up_proj": torch.cat(
            [rearrange(w_WD[shared:], "(s h) d -> s h d", s=split) for w_WD in (gate_WD, up_WD)], 1
        ).repeat(copies, 1, 1),
        "experts.down_proj": rearrange(down_DW[:, shared:], "d (s h) -> s d h", s=split).repeat(copies, 1, 1),
    }
    if n_shared:
        tensors |= {
            "shared_experts.gate_proj.weight": gate_WD[:shared].clone(),
            "shared_experts.up_proj.weight": up_WD[:shared].clone(),
            "shared_experts.down_proj.weight": down_DW[:, :shared].clone(),
        }
    with torch.device("meta"):  # parameters are assigned below
        moe = MoE(
            dim,
            expert_dim,
            n_experts,
            top_copies * split,
            n_shared=n_shared,
            score="softmax",
            normalize=True,
            scale=float(split),
            dispatch=dispatch,
        )
    moe.load_state_dict(tensors, assign=True)
    return moe


def _check(hidden: int, copies: int, top_copies: int, split: int, n_shared: int) -> None:
    for name, value in (("copies", copies), ("top_copies", top_copies), ("split", split)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    if n_shared < 0:
        raise ValueError(f"n_shared ({n_shared}) must be 0 (none) or more")
    if top_copies > copies:
        raise ValueError(f"top_copies ({top_copies}) must not exceed copies ({copies})")
    if hidden % (n_shared + split):
        raise ValueError(
            f"the dense hidden width ({hidden}) must be divisible by n_shared + split "
            f"({n_shared} + {split} = {n_shared + split}), the slices it is cut into"
        )
