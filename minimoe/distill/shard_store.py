"""[speed] Numbered shards of tensors in a folder, each written once, so teacher outputs are computed once.

    folder/shards.json                what the shards are made from, with its checksum; written first
    folder/shard-00000.safetensors    tensors
    folder/shard-00000.sha256         that file's checksum in the format of sha256sum; written last

A shard counts only with its checksum beside it. Anything else that a kill leaves is written again, so a kill
costs at most one shard of work.
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
from minimoe.tools.files import checksum, flush, json_checksum, write_atomically
from minimoe.tools.safetensors_io import write_tensors
from minimoe.tools.settings import first_difference

FORMAT = 2

SETTINGS = "shards.json"


class ShardError(ValueError):
    """Shards cannot be written, read or used; the message names the remedy."""


class ShardStore:
    """The shards 0 … ``n_shards`` - 1 of a folder. A writer calls ``prepare`` first."""

    def __init__(self, folder: Path, n_shards: int) -> None:
        self.folder, self.n_shards = folder, n_shards
        self._verified: set[int] = set()

    def prepare(self, settings: dict[str, Any], sizes: list[int]) -> list[int]:
        """Make the folder ready for shards with these settings -> the missing and the damaged shards.

        Args:
            settings: everything that determines the shards' content, as plain data.
            sizes: bytes of each shard's tensors.

        Raises:
            ShardError: the disk is too full; or the folder holds shards with other settings, damaged
                settings, or something else.
        """
        is_new = self._is_new(settings)
        todo = [i for i in range(self.n_shards) if not self._is_intact(i)]
        needed = sum(sizes[i] for i in todo)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if needed > free:  # checked before the settings are written: a smaller request may use the folder
                raise ShardError(
                    f"{self.folder} needs {needed:,} more bytes and {free:,} are free; free some space, "
                    "request less, or choose another folder"
                )
            if is_new:
                content = settings | {"format": FORMAT}
                text = json.dumps(content | {"sha256": json_checksum(content)}, indent=1) + "\n"
                write_atomically(self.folder / SETTINGS, text)
                flush(self.folder)  # or a power cut could leave shards without their settings
        except OSError as error:
            raise ShardError(_write_failed(self.folder, error)) from error
        return todo

    def _is_new(self, settings: dict[str, Any]) -> bool:
        """Whether the folder is empty or missing; False where it holds shards with these settings."""
        if not self.folder.exists():
            return True
        if not self.folder.is_dir():
            raise ShardError(f"{self.folder} is a file; choose a folder")
        # A kill during the very first write leaves only a temporary file.
        names = {path.name for path in self.folder.iterdir()} - {SETTINGS + ".tmp"}
        if names and SETTINGS not in names:
            raise ShardError(
                f"{self.folder} holds something else ({min(names)}; {len(names)} in all) and no {SETTINGS}; "
                "choose a new or an empty folder"
            )
        if names:
            compare(self.folder, read_settings(self.folder), settings)
        return not names

    def save(self, i: int, tensors: dict[str, Tensor]) -> None:
        """Write a shard, then its checksum. Raises ShardError if that fails."""
        file = self._file(i)
        try:
            write_tensors(tensors, file)
            write_atomically(file.with_suffix(".sha256"), _checksum_line(file))
        except (OSError, ValueError) as error:
            cause = error.__cause__ or error  # the remedy of write_tensors does not apply
            raise ShardError(_write_failed(file, cause)) from error

    def has(self, i: int) -> bool:
        """Whether the shard was written completely (it may have been damaged since)."""
        return self._file(i).exists() and self._file(i).with_suffix(".sha256").exists()

    def path(self, i: int) -> Path:
        """The file of a shard. Raises ShardError if it is missing."""
        if not self.has(i):
            present = sum(self.has(j) for j in range(self.n_shards))
            raise ShardError(
                f"{self._file(i).name} is missing: {present} of {self.n_shards} shards are in {self.folder}; "
                "write them again with the same settings to add the missing ones"
            )
        return self._file(i)

    def verified(self, i: int) -> Path:
        """The file of a shard whose checksum was verified, on first use. Raises ShardError if it differs."""
        file = self.path(i)
        if i not in self._verified and not self._is_intact(i):
            raise ShardError(
                f"{file} is damaged (its checksum differs); remove it and write the shards again: only that "
                "file is redone"
            )
        self._verified.add(i)
        return file

    @property
    def nbytes(self) -> int:
        """Size of all files in the folder."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _file(self, i: int) -> Path:
        return self.folder / f"shard-{i:05d}.safetensors"

    def _is_intact(self, i: int) -> bool:
        file, read = (
            self._file(i),
            {"encoding": "utf-8", "errors": "replace"},
        )  # a damaged file may not be text
        return self.has(i) and file.with_suffix(".sha256").read_text(**read) == _checksum_line(file)


def compare(folder: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise ShardError for the first expected setting that was stored with another value, naming both."""
    if difference := first_difference({name: stored.get(name) for name in expected}, expected):
        raise ShardError(f"{folder} was {difference}; use the same, or write into another folder")


def read_settings(folder: Path) -> dict[str, Any]:
    """What a folder's shards are made from. Raises ShardError if it is missing, damaged or of another
    format."""
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        damage = "" if settings.pop("sha256") == json_checksum(settings) else "it does not match its checksum"
        version = settings.pop("format")
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(f"{folder} holds no shards ({SETTINGS} is missing); write them first") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        damage = repr(error)
    if damage:
        raise ShardError(
            f"{folder / SETTINGS} is damaged ({damage}); remove {folder} and write the shards again"
        )
    if version != FORMAT:
        raise ShardError(
            f"{folder} has format {version}, this version reads {FORMAT}; write into another folder"
        )
    return settings


def _checksum_line(file: Path) -> str:
    return f"{checksum(file)}  {file.name}\n"


def _write_failed(path: Path, error: BaseException) -> str:
    return f"could not write {path} ({error}); free some space and write the shards again: it resumes there"


def fingerprint(model: nn.Module) -> str:
    """Digest of a model's weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(teacher: GPT) -> dict[str, Any]:
    """Everything that determines a teacher's predictions: its weights, and its configuration, which says how
    they are used (heads, top_k, precision)."""
    return asdict(teacher.config) | {"fingerprint": fingerprint(teacher)}
