"""A folder of numbered pieces, each written once: what a teacher said, kept on the disk.

    folder/pieces.json                what the pieces are made from, with its own checksum; written first
    folder/piece-00000.safetensors    tensors
    folder/piece-00000.sha256         the checksum of that file, as sha256sum writes it; written last

A piece counts once its checksum stands beside it. Whatever else a kill leaves is written again, so that it
costs one piece of work at most.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minimoe.models.gpt import GPT
from minimoe.tools.files import write_atomically
from minimoe.tools.safetensors_io import write_tensors
from minimoe.training.checkpoint import checksum, flush

FORMAT = 1

MARK = "pieces.json"


class ShardError(ValueError):
    """Pieces cannot be written, read or used; the message says what to do."""


class Shards:
    """The pieces 0 … ``pieces`` - 1 of a folder. Who writes them claims the folder first."""

    def __init__(self, folder: Path, pieces: int) -> None:
        self.folder, self.pieces = folder, pieces
        self._sound: set[int] = set()  # pieces whose checksum was right

    def claim(self, settings: dict[str, Any], sizes: list[int]) -> list[int]:
        """Make the folder ready for pieces with these settings -> those to be written: missing or damaged.

        Args:
            settings: all that decides what is in the pieces, as JSON has it.
            sizes: bytes of each piece's tensors.

        Raises:
            ShardError: too little disk; or the folder holds pieces with other settings, or something else, or
                its settings are damaged.
        """
        begun = self._is_begun(settings)
        todo = [piece for piece in range(self.pieces) if not self._is_whole(piece)]
        needed = sum(sizes[piece] for piece in todo)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if needed > free:  # before the folder is claimed: who asks for less must still find it free
                short = f"what is missing needs {needed:,} more bytes in {self.folder} and {free:,} are free"
                raise ShardError(f"{short}; free some space, ask for less, or choose another folder")
            if not begun:
                _write_settings(self.folder, settings)
        except OSError as error:
            raise ShardError(_unwritten(self.folder, error)) from error
        return todo

    def _is_begun(self, settings: dict[str, Any]) -> bool:
        """Whether the folder holds pieces with these settings; False where it is empty or missing."""
        if not self.folder.exists():
            return False
        if not self.folder.is_dir():
            raise ShardError(f"{self.folder} is a file; choose a folder")
        # A kill in the very first write leaves a temporary file alone.
        held = {path.name for path in self.folder.iterdir()} - {MARK + ".tmp"}
        if held and MARK not in held:
            what = f"something else ({min(held)}; {len(held)} in all)"
            raise ShardError(f"{self.folder} holds {what} and no {MARK}; choose a new or an empty folder")
        if held:
            compare(self.folder, read_settings(self.folder), settings)
        return bool(held)

    def save(self, piece: int, tensors: dict[str, Tensor]) -> None:
        """Write a piece, then its checksum. Raises ShardError where it cannot."""
        file = self._file(piece)
        try:
            write_tensors(tensors, file)
            write_atomically(_sum_file(file), _sum_line(file))
        except (OSError, ValueError) as error:
            cause = error.__cause__ or error  # write_tensors' own remedy is another
            raise ShardError(_unwritten(file, cause)) from error

    def has(self, piece: int) -> bool:
        """Whether the piece was written to its end (not yet whether it is sound still)."""
        file = self._file(piece)
        return file.exists() and _sum_file(file).exists()

    def find(self, piece: int) -> Path:
        """The file of a piece. Raises ShardError where it is missing."""
        file = self._file(piece)
        if not self.has(piece):
            there = sum(self.has(i) for i in range(self.pieces))
            raise ShardError(
                f"{file.name} is missing: {there} of {self.pieces} pieces are in {self.folder}; write them "
                "again with the same settings, and it goes on"
            )
        return file

    def find_sound(self, piece: int) -> Path:
        """The same, read and checked the first time. Raises ShardError where it is not as it was written."""
        file = self.find(piece)
        if piece not in self._sound and not self._is_whole(piece):
            remedy = "remove it and write the pieces again: only that file is redone"
            raise ShardError(f"{file} is damaged (its checksum differs); {remedy}")
        self._sound.add(piece)
        return file

    @property
    def nbytes(self) -> int:
        """What all of the folder's files take."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _file(self, piece: int) -> Path:
        return self.folder / f"piece-{piece:05d}.safetensors"

    def _is_whole(self, piece: int) -> bool:
        if not self.has(piece):
            return False
        file = self._file(piece)
        # As text, for the line's end is the system's; and a damaged one may be no text.
        return _sum_file(file).read_text(encoding="utf-8", errors="replace") == _sum_line(file)


def compare(folder: Path, stored: dict[str, Any], wanted: dict[str, Any], whose: str = "") -> None:
    """Raise ShardError at the first wanted setting that the stored ones have otherwise, with both values."""
    for name, now in wanted.items():
        before = stored.get(name)
        if isinstance(now, dict):
            compare(folder, before or {}, now, f"the {name}'s ")
        elif before != now:
            made = f"made with {whose}{name} = {before}, now it is {now}"
            raise ShardError(f"{folder} was {made}; use the same, or write into another folder")


def read_settings(folder: Path) -> dict[str, Any]:
    """What a folder's pieces are made from. Raises ShardError where that is missing, damaged or too new."""
    try:
        found: dict[str, Any] = json.loads((folder / MARK).read_text(encoding="utf-8"))
        damage = "" if found.pop("sha256") == _sum(found) else "it does not match its checksum"
        form = found.pop("format")
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(f"{folder} holds no pieces ({MARK} is missing); write them first") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        damage = repr(error)
    if damage:
        raise ShardError(f"{folder / MARK} is damaged ({damage}); remove {folder} and write the pieces again")
    if form != FORMAT:
        raise ShardError(
            f"{folder} has format {form}, this version reads {FORMAT}; write into another folder"
        )
    return found


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    content = settings | {"format": FORMAT}
    write_atomically(folder / MARK, json.dumps(content | {"sha256": _sum(content)}, indent=1) + "\n")
    flush(folder)  # or a power cut could leave pieces without their settings: something else, to claim


def _sum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sum_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _sum_line(file: Path) -> str:
    return f"{checksum(file)}  {file.name}\n"


def _unwritten(path: Path, error: BaseException) -> str:
    return f"could not write {path} ({error}); free some space and write the pieces again: it goes on there"


def fingerprint(model: nn.Module) -> str:
    """Of a model's weights: the same bytes under the same names, the same fingerprint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(teacher: GPT) -> dict[str, Any]:
    """All that fixes its answers: weights alone do not say how they are used (heads, top_k, precision)."""
    return asdict(teacher.config) | {"fingerprint": fingerprint(teacher)}
