"""[portability] Reads tensors by name from one safetensors file or from several with an index, on demand.

DeepSeek-V3's files are in FP8 with one float32 scale per 128 x 128 block of a weight, ``weight_scale_inv`` (a
factor, despite its name), which is multiplied in when a weight is read.

Dimensions: O output width, I input width of a matrix.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minimoe.tools.files import replacing

BLOCK = 128

SCALE = "_scale_inv"


class TensorFiles(ExitStack):
    """The tensors of a file or folder by name. Files are opened when needed and closed on exit."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._open: dict[Path, Any] = {}
        index, single = path / "model.safetensors.index.json", path / "model.safetensors"
        if index.exists():
            try:
                shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"could not read {index} ({error!r}); download it again") from error
            self.files = {name: path / shard for name, shard in shards.items()}
        elif path.is_file() or single.exists():
            file = path if path.is_file() else single
            self.files = dict.fromkeys(self._file(file).keys(), file)
        else:
            raise ValueError(
                f"{path} is neither a safetensors file nor a folder with {single.name} or {index.name}; "
                "download one (pickled tensors are not supported)"
            )

    def _file(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = self.enter_context(safe_open(file, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ValueError(f"could not read {file} ({error}); download it again") from error
        return self._open[file]

    def _slice(self, name: str) -> Any:
        """A lazy slice of the tensor; nothing is read yet."""
        file = self.files[name]
        try:
            return self._file(file).get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{file} lacks {name}, which the index lists; download both again") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape. Raises ValueError if scales of a quantized one are missing or do not fit."""
        shape, scale = tuple(self._slice(name).get_shape()), name + SCALE
        if scale in self.files:
            actual, expected = self.shape(scale), (*shape[:-2], *(-(-size // BLOCK) for size in shape[-2:]))
            if actual != expected:
                raise ValueError(
                    f"{scale} has shape {actual}; for {shape} it must be {expected}, one scale per block of "
                    f"{BLOCK} x {BLOCK}"
                )
        elif self._slice(name).get_dtype().startswith("F8"):
            raise ValueError(f"{name} is in FP8 and its scales, {scale}, are missing; download them")
        return shape

    def read(self, name: str) -> Tensor:
        """The tensor, dequantized to float32 if it has scales."""
        tensor: Tensor = self._slice(name)[:]
        scale = name + SCALE
        return _dequantize(tensor, self._slice(scale)[:]) if scale in self.files else tensor


def _dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """weight (..., O, I), scale (..., ceil(O / 128), ceil(I / 128)) -> float32 (..., O, I)."""
    out, inner = weight.shape[-2:]
    factors = scale.float().repeat_interleave(BLOCK, -2)[..., :out, :]  # blocks at the edges are partial
    return weight.float() * factors.repeat_interleave(BLOCK, -1)[..., :inner]


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file completely or not at all. Raises ValueError if that fails."""
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})  # older readers require the format
    except (OSError, SafetensorError) as error:
        raise ValueError(f"could not write {path} ({error}); free space, or choose another path") from error
