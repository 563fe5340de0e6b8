"""The corpus: byte-level text in domains, split by document, with batches that depend on (seed, step) only.

The vocabulary is bytes (V = 256), so no tokenizer is trained and bits per byte are comparable across texts.
Documents are joined by a zero byte, which text does not contain. Each sequence of a batch comes from one
domain, which the batch names.

Dimensions: B batch, L sequence length.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimoe.data.sources import SOURCES, Document, folder_domains

ALL = "all"  # key of the mean in a dictionary of domains
END_OF_DOCUMENT = b"\0"

DEFAULT_DOMAINS = ("programming", "physics", "graphs", "reference")

ARTICLE_DOMAINS = ("poetry", "programming", "biology", "physics")

GROUPS = {"default": DEFAULT_DOMAINS, "article": ARTICLE_DOMAINS, "all": tuple(SOURCES)}


class Batch(NamedTuple):
    """Sequences, the next byte at every position, and the domain of each sequence."""

    tokens_BL: Tensor
    targets_BL: Tensor
    domains_B: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(x.to(device, non_blocking=True) for x in self))


@dataclass(frozen=True)
class Corpus:
    """Training and validation bytes of each domain."""

    domains: tuple[str, ...]
    train: tuple[np.ndarray, ...]  # uint8, one array per domain
    validation: tuple[np.ndarray, ...]
    sources: tuple[str, ...]  # origin of each domain's text, with versions
    fingerprint: str  # hash of all names and bytes above

    def batch(self, seed: int, step: int, size: int, context: int, *, micro: int = 0, device="cpu") -> Batch:
        """The batch of a step, which depends only on (seed, step, micro).

        Domains have equal shares of the batch (a remainder rotates with the step); positions are uniform.
        """
        rng = np.random.default_rng((seed, step, micro))
        domains = (np.arange(size) + step * size) % len(self.domains)
        rows = []
        for domain in domains:
            start = rng.integers(len(self.train[domain]) - context)
            rows.append(self.train[domain][start : start + context + 1])
        return _as_batch(rows, domains).to(device)

    def validation_batches(self, context: int, per_domain: int, size: int) -> Iterator[Batch]:
        """``per_domain`` windows of each domain, evenly spaced over its validation text, in batches of one
        domain each. Every call returns the same windows."""
        for domain, data in enumerate(self.validation):
            starts = np.linspace(0, len(data) - context - 1, per_domain).astype(int)
            rows = [data[start : start + context + 1] for start in starts]
            for i in range(0, per_domain, size):
                yield _as_batch(rows[i : i + size], [domain] * len(rows[i : i + size]))

    def part(self, data_fraction: float) -> "Corpus":
        """The first ``data_fraction`` of each domain's training text, and all of the validation text."""
        if not 0 < data_fraction <= 1:
            raise ValueError(f"data_fraction ({data_fraction}) must be above 0 and at most 1")
        if data_fraction == 1:
            return self
        train = tuple(data[: round(data_fraction * len(data))] for data in self.train)
        return replace(self, train=train, fingerprint=_fingerprint(self.domains, train, self.validation))

    def check(self, context: int, vocab_size: int = 256) -> None:
        """Raise ValueError if a domain is shorter than one sequence, or the vocabulary smaller than 256."""
        if vocab_size < 256:
            raise ValueError(f"vocab_size ({vocab_size}) must be at least 256, because tokens are bytes")
        for part, arrays in (("training", self.train), ("validation", self.validation)):
            for name, data in zip(self.domains, arrays, strict=True):
                if len(data) < context + 1:
                    raise ValueError(
                        f"domain {name} has {len(data)} bytes of {part} text, but a sequence needs "
                        f"context + 1 ({context + 1}); add text or reduce the context"
                    )


def _as_batch(rows: list[np.ndarray], domains: Iterable[int]) -> Batch:
    tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.tensor(list(domains)))


def load_corpus(
    data: str | Path = "default",
    *,
    train_bytes: int = 300_000,
    validation_bytes: int = 40_000,
) -> Corpus:
    """Read a corpus from this machine; nothing is downloaded.

    Args:
        data: ``default`` (programming, physics, graphs, reference), ``article`` (poetry, programming,
            biology, physics), ``all``, names of domains joined by commas, or a folder of your own text
            files, with one sub-folder per domain.
        train_bytes, validation_bytes: size of each domain. For a folder they are upper limits: a tenth of
            each domain, at most ``validation_bytes``, is held out for validation.

    Raises:
        ValueError: an unknown domain or folder, a missing package, a file that is not text, or too little
            text; the message says what to do.
    """
    if train_bytes < 1 or validation_bytes < 1:
        raise ValueError(
            f"train_bytes ({train_bytes}) and validation_bytes ({validation_bytes}) must be positive"
        )
    names = check_data(data)
    if names:
        parts = [_built_in(name, train_bytes, validation_bytes) for name in names]
        sources = tuple(SOURCES[name].version() for name in names)
    else:
        folder = folder_domains(Path(data))
        names, sources = tuple(folder), tuple(f"folder {data}" for _ in folder)
        parts = [_from_folder(name, docs, train_bytes, validation_bytes) for name, docs in folder.items()]
    train, validation = zip(*parts, strict=True)
    return Corpus(tuple(names), train, validation, sources, _fingerprint(names, train, validation))


def check_data(data: str | Path) -> tuple[str, ...]:
    """The built-in domains that ``data`` names; empty for a folder. Reads no text.

    Raises:
        ValueError: it is neither.
    """
    names = GROUPS.get(str(data), tuple(str(data).split(",")))
    if all(name in SOURCES for name in names):
        return names
    if Path(data).is_dir():
        return ()
    raise ValueError(
        f"{str(data)!r} is neither a folder nor a domain; choose one of {', '.join(GROUPS)}, or domains "
        f"among {', '.join(SOURCES)}"
    )


def _built_in(name: str, train_bytes: int, validation_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        train, validation = split(SOURCES[name].documents(), train_bytes, validation_bytes)
    except ValueError as error:
        raise ValueError(f"could not read domain {name}: {error}") from None
    if len(train) < train_bytes:
        raise ValueError(
            f"domain {name} has only {len(train):,} bytes of training text on this machine, not "
            f"{train_bytes:,}; reduce train_bytes"
        )
    return train, validation


def _from_folder(
    name: str, documents: list[Document], train_bytes: int, validation_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    size = sum(len(text.encode()) for _, text in documents)
    train, validation = split(iter(documents), train_bytes, min(validation_bytes, size // 10))
    if len(train) == 0 or len(validation) == 0:
        raise ValueError(
            f"domain {name} has {size} bytes in {len(documents)} document(s), too little to hold some "
            "out for validation; add text"
        )
    return train, validation


def split(
    documents: Iterator[Document], train_bytes: int, validation_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the validation and then the training text with documents, in order -> (train, validation).

    A document is truncated where a part is full, and in validation to a tenth of the part (or to 4,000 bytes
    if that is more), so that no single document dominates a domain. Exact copies are dropped, so no document
    is on both sides.
    """
    seen: set[bytes] = set()
    parts = []
    for limit, longest in ((validation_bytes, max(validation_bytes // 10, 4_000)), (train_bytes, None)):
        filled = bytearray()
        while len(filled) < limit:
            _, text = next(documents, (None, None))
            if text is None:
                break
            raw = text.strip().encode().replace(END_OF_DOCUMENT, b"")
            digest = hashlib.sha256(raw).digest()
            if raw and digest not in seen:
                seen.add(digest)
                filled += raw[:longest] + END_OF_DOCUMENT
        parts.append(np.frombuffer(bytes(filled[:limit]), dtype=np.uint8))
    validation, train = parts
    return train, validation


def _fingerprint(names: Iterable[str], *parts: tuple[np.ndarray, ...]) -> str:
    digest = hashlib.sha256(",".join(names).encode())
    for arrays in parts:
        for array in arrays:
            digest.update(hashlib.sha256(array.tobytes()).digest())
    return digest.hexdigest()[:16]
