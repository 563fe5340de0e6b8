"""[speed] The experts' activation multiplied by the routing weight, and its gradient, for all dispatchers.

    h = w * silu(g) * u            y = down @ h

The weight multiplies the expert's output; because down is linear, it can be applied before it, where rows are
H instead of D wide. Its gradient is then a product of two H-wide rows (as in SonicMoE, arXiv 2512.14080).

Dimensions: n rows, H expert width, G = 2H (gate and up side by side).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_swiglu(gate_up_nG: Tensor, weights_n1: Tensor) -> Tensor:
    """(n, H): w * silu(gate) * up."""
    gate_nH, up_nH = gate_up_nG.chunk(2, 1)
    return (F.silu(gate_nH) * up_nH).mul_(weights_n1)


def weighted_swiglu_backward(
    dh_nH: Tensor, gate_up_nG: Tensor, weights_n1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From dL/dh: the gradients of gate_up_nG and of the weights (n,) in their dtype, and h recomputed for
    the weight gradient of down. Overwrites ``dh_nH``."""
    gate_nH, up_nH = gate_up_nG.chunk(2, 1)
    sigmoid_nH = gate_nH.sigmoid()
    silu_nH = gate_nH * sigmoid_nH
    h_nH = silu_nH * up_nH
    # d(silu(g) u)/dg = sigmoid(g) (u - silu(g) u) + silu(g) u, a linear interpolation between h and u
    slope_nH = torch.lerp(h_nH, up_nH, sigmoid_nH)
    dweights_n = (dh_nH * h_nH).sum(1, dtype=weights_n1.dtype)
    dh_nH.mul_(weights_n1)
    dgate_up_nG = torch.cat((dh_nH, dh_nH), 1)
    dgate_nH, dup_nH = dgate_up_nG.chunk(2, 1)
    dgate_nH.mul_(slope_nH)
    dup_nH.mul_(silu_nH)
    return dgate_up_nG, dweights_n, h_nH.mul_(weights_n1)
