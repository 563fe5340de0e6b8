"""[speed] The machine's own 8-bit matmul, torch.nn.functional.scaled_mm.

It supports one scale per tensor or per row (CPU; GPUs from compute capability 8.9), and V3's tiles and blocks
(Hopper, CUDA 12.9 or later). Everything else is emulated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minimoe.precision.formats import E4M3, E5M2
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Cast

# a cast's block: torch's name for such scales
_SCALING = {
    (None, None): F.ScalingType.TensorWise,
    (1, None): F.ScalingType.RowWise,
    (1, 128): F.ScalingType.BlockWise1x128,
    (128, 128): F.ScalingType.BlockWise128x128,
}
_PER_TENSOR, _PER_ROW, _PER_TILE, _PER_BLOCK = _SCALING
_BLOCKWISE = ((_PER_TILE, _PER_BLOCK), (_PER_TILE, _PER_TILE), (_PER_BLOCK, _PER_TILE))


def unsupported_reason(
    a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None
) -> str | None:
    """Why the machine's matmul does not support this product; None if it does."""
    if cast_a is None or cast_b is None or isinstance(b_KN, Quantized):
        return "both operands must be plain tensors that the recipe casts"
    if cast_a.fmt not in (E4M3, E5M2) or cast_b.fmt not in (E4M3, E5M2):
        return f"it multiplies E4M3 and E5M2, not {cast_a.fmt} and {cast_b.fmt}"
    blocks = cast_a.block or _PER_TENSOR, cast_b.block or _PER_TENSOR
    if blocks not in ((_PER_TENSOR, _PER_TENSOR), (_PER_ROW, _PER_ROW), *_BLOCKWISE):
        return f"it does not support scales for blocks {blocks[0]} with {blocks[1]}"
    if a_MK.numel() * b_KN.numel() == 0:
        return "a size is zero"
    if a_MK.device.type == "cpu":
        return "a CPU supports one scale per tensor or per row only" if blocks in _BLOCKWISE else None
    if a_MK.device.type != "cuda" or torch.version.hip:
        return f"it is untested on {'ROCm' if torch.version.hip else a_MK.device.type}"
    return _unsupported_reason_on_cuda(a_MK, b_KN.shape[1], blocks, cast_a.fmt == cast_b.fmt == E5M2)


def _unsupported_reason_on_cuda(a_MK: Tensor, n: int, blocks: tuple, both_e5m2: bool) -> str | None:
    (m, k), capability = a_MK.shape, torch.cuda.get_device_capability(a_MK.device)
    if capability < (8, 9):
        return f"8-bit matmuls need compute capability (8, 9), this GPU has {capability}"
    if both_e5m2:
        return "GPUs do not multiply E5M2 by E5M2"
    if k % 16 or n % 16:
        return f"K ({k}) and N ({n}) must be multiples of 16"
    if blocks in _BLOCKWISE:
        version = tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
        if capability != (9, 0) or version < (12, 9):
            return f"block scales need Hopper and CUDA 12.9, this is {capability} with {torch.version.cuda}"
        if k % 128 or n % 128 or m % (4 if blocks[0] == _PER_TILE else 128):
            return f"sizes {m}x{k}x{n} are not multiples of its blocks"
    return None


def scaled_mm(a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None) -> Tensor:
    """One product (M, N), float32. With row or block scales a GPU rounds it to bf16.

    Raises:
        ValueError: the machine does not support this product; the message has the reason.
    """
    reason = unsupported_reason(a_MK, b_KN, cast_a, cast_b)
    if reason or cast_a is None or cast_b is None or isinstance(b_KN, Quantized):
        raise ValueError(
            f"backend 'hardware' does not support this product: {reason}; use 'auto' or 'dequantize'"
        )
    blocks = cast_a.block or _PER_TENSOR, cast_b.block or _PER_TENSOR
    a, b_NK = cast_a.quantize(a_MK.contiguous(), -1), cast_b.quantize(b_KN.mT.contiguous(), -1)
    scale_b = _scale_layout(b_NK.scale, blocks[1])
    wide = a_MK.device.type == "cpu" or blocks == (_PER_TENSOR, _PER_TENSOR)
    return F.scaled_mm(
        a.data,
        b_NK.data.t(),
        _scale_layout(a.scale, blocks[0]),
        _SCALING[blocks[0]],
        scale_b.t() if blocks[1] in (_PER_ROW, _PER_BLOCK) else scale_b,
        _SCALING[blocks[1]],
        output_dtype=torch.float32 if wide else torch.bfloat16,
    ).float()


def _scale_layout(scale: Tensor, block: tuple) -> Tensor:
    """The scales in cuBLAS's order: tiles by rows of the operand, blocks padded to multiples of 4 along K."""
    if block == _PER_TENSOR:
        return scale.reshape(())
    if block == _PER_TILE:
        return scale.t().contiguous().t()
    if block == _PER_BLOCK:
        return F.pad(scale, (0, -scale.shape[1] % 4))
    return scale
