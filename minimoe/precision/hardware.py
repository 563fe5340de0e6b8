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

_TILE, _BLOCK = (1, 128), (128, 128)


def obstacle(a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None) -> str | None:
    """Why the machine's matmul cannot do this product; None if it can."""
    if cast_a is None or cast_b is None or isinstance(b_KN, Quantized):
        return "both operands must be plain tensors that the recipe casts"
    if cast_a.fmt not in (E4M3, E5M2) or cast_b.fmt not in (E4M3, E5M2):
        return f"it multiplies E4M3 and E5M2, not {cast_a.fmt} and {cast_b.fmt}"
    kinds = _kind(cast_a), _kind(cast_b)
    if kinds not in (("tensor", "tensor"), ("row", "row"), *_BLOCKWISE):
        return f"it has no scales for blocks {cast_a.block} with {cast_b.block}"
    (m, k), n = a_MK.shape, b_KN.shape[1]
    if m * k * n == 0:
        return "a size is zero"
    device = a_MK.device
    if device.type == "cpu":
        return "a CPU has it for one scale a tensor or a row only" if kinds in _BLOCKWISE else None
    if device.type != "cuda" or torch.version.hip:
        return f"it is not known to run on {device.type}{' under ROCm' if torch.version.hip else ''}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        return f"the GPU's compute capability is {capability}, 8-bit matmuls begin at (8, 9)"
    if cast_a.fmt == cast_b.fmt == E5M2:
        return "GPUs do not multiply E5M2 by E5M2"
    if k % 16 or n % 16:
        return f"K ({k}) and N ({n}) must be multiples of 16"
    if kinds in _BLOCKWISE:
        version = tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
        if capability != (9, 0) or version < (12, 9):
            return f"block scales need Hopper and CUDA 12.9, this is {capability} with {torch.version.cuda}"
        if k % 128 or n % 128 or m % (4 if kinds[0] == "tile" else 128):
            return f"sizes {m}x{k}x{n} do not fill its blocks"
    return None


_BLOCKWISE = (("tile", "block"), ("tile", "tile"), ("block", "tile"))


def hardware_multiply(
    a_MK: Tensor, b_KN: Tensor | Quantized, cast_a: Cast | None, cast_b: Cast | None
) -> Tensor:
    """(M, N) float32. On a GPU block and row scales come with a result in bf16, widened here.

    Raises:
        ValueError: the machine's matmul cannot do this product.
    """
    problem = obstacle(a_MK, b_KN, cast_a, cast_b)
    if problem or cast_a is None or cast_b is None or isinstance(b_KN, Quantized):
        raise ValueError(f"backend 'hardware' cannot run here: {problem}; use 'auto' or 'fold'")
    a, b_NK = cast_a.quantize(a_MK.contiguous(), -1), cast_b.quantize(b_KN.mT.contiguous(), -1)
    kinds = _kind(cast_a), _kind(cast_b)
    wide = a_MK.device.type == "cpu" or kinds == ("tensor", "tensor")
    y_MN = F.scaled_mm(
        a.data,
        b_NK.data.t(),
        _laid_out(a.scale, kinds[0]),
        _SCALING[kinds[0]],
        _laid_out(b_NK.scale, kinds[1]).t()
        if kinds[1] in ("row", "block")
        else _laid_out(b_NK.scale, kinds[1]),
        _SCALING[kinds[1]],
        output_dtype=torch.float32 if wide else torch.bfloat16,
    )
    return y_MN.float()


def _kind(cast: Cast) -> str | None:
    return {(None, None): "tensor", (1, None): "row", _TILE: "tile", _BLOCK: "block"}.get(
        cast.block or (None, None)
    )


def _laid_out(scale: Tensor, kind: str) -> Tensor:
    """The scales in the order that cuBLAS reads: tiles by rows of the operand, blocks padded to 4 along K."""
    if kind == "tensor":
        return scale.reshape(())
    if kind == "tile":
        return scale.t().contiguous().t()
    if kind == "block":
        return F.pad(scale, (0, -scale.shape[1] % 4))
    return scale


_SCALING = {
    "tensor": F.ScalingType.TensorWise,
    "row": F.ScalingType.RowWise,
    "tile": F.ScalingType.BlockWise1x128,
    "block": F.ScalingType.BlockWise128x128,
}
