"""The same product on the machine's own 8-bit matmul, torch.nn.functional.scaled_mm.

What it knows: one scale a tensor or a row (CPU; GPUs from compute capability 8.9), V3's tiles and blocks
(Hopper, CUDA 12.9 or later). Everything else is emulated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minimoe.precision.formats import E4M3, E5M2
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Cast

# a cast's block: what torch calls such scales
_SCALING = {
    (None, None): F.ScalingType.TensorWise,
    (1, None): F.ScalingType.RowWise,
    (1, 128): F.ScalingType.BlockWise1x128,
    (128, 128): F.ScalingType.BlockWise128x128,
}

_TENSOR, _ROW, _TILE, _BLOCK = _SCALING

_BLOCKWISE = ((_TILE, _BLOCK), (_TILE, _TILE), (_BLOCK, _TILE))


def unsupported_reason(
    a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None
) -> str | None:
    """Why the machine's matmul cannot do this product; None if it can."""
    if cast_a is None or cast_b is None or isinstance(b_KN, Quantized):
        return "both operands must be plain tensors that the recipe casts"
    if cast_a.fmt not in (E4M3, E5M2) or cast_b.fmt not in (E4M3, E5M2):
        return f"it multiplies E4M3 and E5M2, not {cast_a.fmt} and {cast_b.fmt}"
    blocks = cast_a.block or _TENSOR, cast_b.block or _TENSOR
    if blocks not in ((_TENSOR, _TENSOR), (_ROW, _ROW), *_BLOCKWISE):
        return f"it has no scales for blocks {blocks[0]} with {blocks[1]}"
    if a_MK.numel() * b_KN.numel() == 0:
        return "a size is zero"
    if a_MK.device.type == "cpu":
        return "a CPU has it for one scale a tensor or a row only" if blocks in _BLOCKWISE else None
    if a_MK.device.type != "cuda" or torch.version.hip:
        return f"it is not known to run on {'ROCm' if torch.version.hip else a_MK.device.type}"
    return _unsupported_reason_on_cuda(a_MK, b_KN.shape[1], blocks, cast_a.fmt == cast_b.fmt == E5M2)


def _unsupported_reason_on_cuda(a_MK: Tensor, n: int, blocks: tuple, both_e5m2: bool) -> str | None:
    (m, k), capability = a_MK.shape, torch.cuda.get_device_capability(a_MK.device)
    if capability < (8, 9):
        return f"the GPU's compute capability is {capability}, 8-bit matmuls begin at (8, 9)"
    if both_e5m2:
        return "GPUs do not multiply E5M2 by E5M2"
    if k % 16 or n % 16:
        return f"K ({k}) and N ({n}) must be multiples of 16"
    if blocks in _BLOCKWISE:
        version = tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
        if capability != (9, 0) or version < (12, 9):
            return f"block scales need Hopper and CUDA 12.9, this is {capability} with {torch.version.cuda}"
        if k % 128 or n % 128 or m % (4 if blocks[0] == _TILE else 128):
            return f"sizes {m}x{k}x{n} do not fill its blocks"
    return None


def hardware_multiply(a_MK: Tensor, b_KN: Tensor, cast_a: Cast, cast_b: Cast) -> Tensor:
    """(M, N) float32 of operands without an ``unsupported_reason``. A GPU's result under row or block scales is rounded
    to bf16, and widened here."""
    blocks = cast_a.block or _TENSOR, cast_b.block or _TENSOR
    a, b_NK = cast_a.quantize(a_MK.contiguous(), -1), cast_b.quantize(b_KN.mT.contiguous(), -1)
    scale_b = _laid_out(b_NK.scale, blocks[1])
    wide = a_MK.device.type == "cpu" or blocks == (_TENSOR, _TENSOR)
    return F.scaled_mm(
        a.data,
        b_NK.data.t(),
        _laid_out(a.scale, blocks[0]),
        _SCALING[blocks[0]],
        scale_b.t() if blocks[1] in (_ROW, _BLOCK) else scale_b,
        _SCALING[blocks[1]],
        output_dtype=torch.float32 if wide else torch.bfloat16,
    ).float()


def _laid_out(scale: Tensor, block: tuple) -> Tensor:
    """The scales in the order that cuBLAS reads: tiles by rows of the operand, blocks padded to 4 along K."""
    if block == _TENSOR:
        return scale.reshape(())
    if block == _TILE:
        return scale.t().contiguous().t()
    if block == _BLOCK:
        return F.pad(scale, (0, -scale.shape[1] % 4))
    return scale
