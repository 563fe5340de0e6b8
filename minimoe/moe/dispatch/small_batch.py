"""[speed] Matmuls of a few rows, as in decoding, where reading the weights takes most of the time.

Measured with MKL on an AMD EPYC (torch 2.13, one thread, float32): weights on the left of the product are
read about twice as fast as on the right; and for a single column, where MKL uses its matrix-vector routine, a
batch of two half matrices is twice as fast as that routine. With other libraries neither costs anything.

Dimensions: D model width, H expert width, E experts, K experts per token, n rows, I and O input and output
width of a product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def small_matmul(x_nI: Tensor, weights: list[Tensor], sizes: list[int]) -> Tensor:
    """Each block of rows times its weight (O, I) transposed -> (n, O), with the strides of its transpose."""
    products = []
    for weight_OI, x_In in zip(weights, x_nI.t().split(sizes, 1), strict=True):
        out, inner = weight_OI.shape
        if x_In.shape[1] == 1 and out % 2 == 0:
            halves = weight_OI.view(2, out // 2, inner)
            products.append(torch.bmm(halves, x_In.expand(2, inner, 1)).view(out, 1))
        else:
            products.append(torch.mm(weight_OI, x_In))
    return torch.cat(products, 1).t()


def single_token_experts(
    x_1D: Tensor, gate_up: Tensor, down: Tensor, weights_1K: Tensor, ids_1K: Tensor
) -> Tensor:
    """y (1, D) of a single token, for an even D: nothing is sorted, and the picked weights are read in
    place."""
    n_experts, _, dim = gate_up.shape
    ids = ids_1K[0].tolist()
    gate_ups, downs = gate_up.view(n_experts, 2, -1, dim), down.view(n_experts, 2, dim // 2, -1)
    x_2D1 = x_1D.t().expand(2, dim, 1)
    gate_HK, up_HK = torch.cat([torch.bmm(gate_ups[e], x_2D1) for e in ids], 2).unbind(0)
    h_KH = (F.silu(gate_HK) * up_HK).mul_(weights_1K).t().contiguous()
    # Each h as two equal columns with the strides of a transposed row: MKL is fast with no other layout.
    columns = h_KH[:, None, None].expand(-1, 2, 1, -1).mT.unbind(0)
    y = torch.cat([torch.bmm(downs[e], h) for e, h in zip(ids, columns, strict=True)], 2)
    return y.sum(2).view(1, dim)
