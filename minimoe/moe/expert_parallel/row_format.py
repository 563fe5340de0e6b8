"""What goes over the wire: rows of tensors packed into bytes, and a meter that counts them.

A row is one token on its way to one process, or back. ``full`` sends numbers as the layer has them,
``bf16`` in 16 bits, ``fp8`` in 8 with a power of two for every 128 of them (E4M3, as DeepSeek-V3 dispatches
activations and their gradients; arXiv 2412.19437, section 3.3.3). What comes back is bf16 then, as there.

Dimensions: N rows, D model width, K experts a token, P processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from minimoe.precision.formats import E4M3
from minimoe.precision.quantize import Quantized, quantize

DispatchDtype = Literal["full", "bf16", "fp8"]

TILE = 128  # numbers that share a scale


def check_dispatch_dtype(dispatch_dtype: str) -> None:
    """Raises ValueError for an unknown way to send."""
    if dispatch_dtype not in get_args(DispatchDtype):
        raise ValueError(
            f"dispatch_dtype must be one of {', '.join(get_args(DispatchDtype))}, not {dispatch_dtype!r}"
        )


@dataclass(frozen=True)
class Column:
    """``width`` numbers of each row: their dtype in the layer, and on the wire (None: 8 bits with scales)."""

    width: int
    dtype: torch.dtype
    dispatch_dtype: torch.dtype | None

    @property
    def nbytes(self) -> int:
        """Of a row."""
        if self.dispatch_dtype is None:
            return self.width + -(-self.width // TILE)
        return self.width * self.dispatch_dtype.itemsize

    def encode(self, x: Tensor) -> list[Tensor]:
        """x (N, width) -> uint8 tensors (N, ...) of ``nbytes`` columns together."""
        if self.dispatch_dtype is not None:
            return [_own(x.to(self.dispatch_dtype)).view(torch.uint8)]
        q = quantize(x, E4M3, (1, TILE), "pow2")
        return [q.data.view(torch.uint8), q.scale_codes.view(torch.uint8)]

    def decode(self, data: Tensor) -> Tensor:
        """uint8 (N, nbytes) -> (N, width) in the layer's dtype."""
        if self.dispatch_dtype is not None:
            return _own(data).view(self.dispatch_dtype).to(self.dtype)
        codes, scales = (_own(part) for part in data.split([self.width, data.shape[1] - self.width], 1))
        q = Quantized(codes.view(torch.float8_e4m3fn), scales.view(torch.float8_e8m0fnu), E4M3, (1, TILE))
        return q.dequantize(self.dtype)


def _own(x: Tensor) -> Tensor:
    """x in memory of its own if it must, so that it can be seen as another dtype. A single row passes for
    contiguous wherever it begins and whatever its strides."""
    return x.contiguous() if len(x) > 1 else x.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class RowFormat:
    """One way of a journey: what a row consists of."""

    name: str
    columns: tuple[Column, ...]

    @property
    def nbytes(self) -> int:
        """Of a row."""
        return sum(column.nbytes for column in self.columns)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor a column, each (N, width) -> uint8 (N, nbytes)."""
        pairs = zip(self.columns, tensors, strict=True)
        return torch.cat([part for column, x in pairs for part in column.encode(x)], 1)

    def unpack(self, data: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, nbytes) -> one tensor a column."""
        parts = data.split([column.nbytes for column in self.columns], 1)
        return tuple(column.decode(part) for column, part in zip(self.columns, parts, strict=True))


def row_formats(
    dispatch_dtype: DispatchDtype, dim: int, top_k: int, x: torch.dtype, y: torch.dtype, weight: torch.dtype
) -> dict[str, RowFormat]:
    """The four legs of a layer's step, by name.

    To the experts: a token, and for each of its K picks its weight and the expert's number at the receiver
    (-1: not there). Back: the weighted sum of what its experts there say. Gradients travel the other way.

    Args:
        x, y, weight: dtypes of the layer's input, of what its experts say, and of the weights. Before they
            are sent and after, activations are float32 at least, because rows of them are added up.
    """
    wide_x, wide_y = (torch.promote_types(dtype, torch.float32) for dtype in (x, y))
    out_x, out_y = (
        (None, None)
        if dispatch_dtype == "fp8"
        else (torch.bfloat16,) * 2
        if dispatch_dtype == "bf16"
        else (x, y)
    )
    home_x, home_y = (x, y) if dispatch_dtype == "full" else (torch.bfloat16,) * 2
    weights, ids = Column(top_k, weight, weight), Column(top_k, torch.int16, torch.int16)
    return {
        "dispatch": RowFormat("dispatch", (Column(dim, wide_x, out_x), weights, ids)),
        "combine": RowFormat("combine", (Column(dim, wide_y, home_y),)),
        "combine backward": RowFormat("combine backward", (Column(dim, wide_y, out_y),)),
        "dispatch backward": RowFormat("dispatch backward", (Column(dim, wide_x, home_x), weights)),
    }
