"""[portability] The row format of expert parallelism: how a token's numbers are packed into bytes to be sent.

A row is one token sent to one process, or its result sent back. ``full`` sends numbers as the layer has them,
``bf16`` in 16 bits, ``fp8`` in 8 bits (E4M3) with one power-of-two scale per 128 numbers, as DeepSeek-V3
dispatches activations and their gradients (arXiv 2412.19437, section 3.3.3). As in V3, results are then
combined in BF16.

Dimensions: N rows, D model width, K experts per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from minimoe.precision.formats import E4M3
from minimoe.precision.quantize import Quantized, quantize

DispatchDtype = Literal["full", "bf16", "fp8"]

TILE = 128  # numbers per scale


def check_dispatch_dtype(dispatch_dtype: str) -> None:
    """Raise ValueError for an unknown dispatch dtype."""
    if dispatch_dtype not in get_args(DispatchDtype):
        raise ValueError(
            f"dispatch_dtype must be one of {', '.join(get_args(DispatchDtype))}, not {dispatch_dtype!r}"
        )


@dataclass(frozen=True)
class Column:
    """``width`` numbers of each row, their dtype in the layer and the one they are sent in (None: FP8 with
    scales)."""

    width: int
    dtype: torch.dtype
    sent_dtype: torch.dtype | None

    @property
    def nbytes(self) -> int:
        """Bytes per row."""
        if self.sent_dtype is None:
            return self.width + -(-self.width // TILE)
        return self.width * self.sent_dtype.itemsize

    def encode(self, x: Tensor) -> list[Tensor]:
        """x (N, width) -> uint8 tensors (N, ...), ``nbytes`` columns in total."""
        if self.sent_dtype is not None:
            return [_packed(x.to(self.sent_dtype)).view(torch.uint8)]
        q = quantize(x, E4M3, (1, TILE), "pow2")
        return [q.data.view(torch.uint8), q.scale_codes.view(torch.uint8)]

    def decode(self, data: Tensor) -> Tensor:
        """uint8 (N, nbytes) -> (N, width) in the layer's dtype."""
        if self.sent_dtype is not None:
            return _packed(data).view(self.sent_dtype).to(self.dtype)
        codes, scales = (_packed(part) for part in data.split([self.width, data.shape[1] - self.width], 1))
        q = Quantized(codes.view(torch.float8_e4m3fn), scales.view(torch.float8_e8m0fnu), E4M3, (1, TILE))
        return q.dequantize(self.dtype)


def _packed(x: Tensor) -> Tensor:
    """x in dense, aligned memory, so that it can be viewed as another dtype. ``is_contiguous`` does not tell
    for a single row: it holds wherever the row starts and whatever its strides."""
    return x.contiguous() if len(x) > 1 else x.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class RowFormat:
    """The columns of a row in one exchange."""

    name: str
    columns: tuple[Column, ...]

    @property
    def nbytes(self) -> int:
        """Bytes per row."""
        return sum(column.nbytes for column in self.columns)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor (N, width) per column -> uint8 (N, nbytes)."""
        pairs = zip(self.columns, tensors, strict=True)
        return torch.cat([part for column, x in pairs for part in column.encode(x)], 1)

    def unpack(self, data: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, nbytes) -> one tensor (N, width) per column."""
        parts = data.split([column.nbytes for column in self.columns], 1)
        return tuple(column.decode(part) for column, part in zip(self.columns, parts, strict=True))


def row_formats(
    dispatch_dtype: DispatchDtype, dim: int, top_k: int, x: torch.dtype, y: torch.dtype, weight: torch.dtype
) -> dict[str, RowFormat]:
    """The formats of the four exchanges of a training step, by name.

    Dispatch sends a token and, for each of its K picks, the weight and the expert's index on the receiver (-1
    for an expert on another process). Combine returns the weighted sum over the experts there. Each has a
    backward exchange of gradients in the opposite direction.

    Args:
        x, y, weight: dtypes of the layer's input, of the experts' output and of the weights. Before and after
            an exchange, activations are at least float32, because rows are summed.
    """
    wide_x, wide_y = (torch.promote_types(dtype, torch.float32) for dtype in (x, y))
    # To the experts (dispatch, and the gradient of combine), and back from them.
    to_x, to_y = {"full": (x, y), "bf16": (torch.bfloat16,) * 2, "fp8": (None, None)}[dispatch_dtype]
    from_x, from_y = (x, y) if dispatch_dtype == "full" else (torch.bfloat16,) * 2
    weights, ids = Column(top_k, weight, weight), Column(top_k, torch.int16, torch.int16)
    return {
        "dispatch": RowFormat("dispatch", (Column(dim, wide_x, to_x), weights, ids)),
        "combine": RowFormat("combine", (Column(dim, wide_y, from_y),)),
        "combine backward": RowFormat("combine backward", (Column(dim, wide_y, to_y),)),
        "dispatch backward": RowFormat("dispatch backward", (Column(dim, wide_x, from_x), weights)),
    }
