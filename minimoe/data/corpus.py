"""Text as training data: domains, a split by document, and batches that depend on (seed, step) alone.

Bytes are the vocabulary (V = 256): nothing to train, and bits per byte compare across texts. Documents
are joined by a zero byte, which text does not contain. Each sequence of a batch comes from one domain,
and the batch says which.

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

ALL = "all"  # in a dictionary of domains: their mean
END_OF_DOCUMENT = b"\0"

DEFAULT_DOMAINS = ("programming", "physics", "graphs", "reference")

ARTICLE_DOMAINS = ("poetry", "programming", "biology", "physics")

GROUPS = {"default": DEFAULT_DOMAINS, "article": ARTICLE_DOMAINS, "all": tuple(SOURCES)}


class Batch(NamedTuple):
    """Sequences, what follows each of their bytes, and the domain each was drawn from."""

    tokens_BL: Tensor
    targets_BL: Tensor
    domains_B: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(x.to(device, non_blocking=True) for x in self))


@dataclass(frozen=True)
class Corpus:
    """Train and validation bytes of each domain, and what they are."""

    domains: tuple[str, ...]
    train: tuple[np.ndarray, ...]  # uint8, one array a domain
    validation: tuple[np.ndarray, ...]
    sources: tuple[str, ...]  # where each domain's text came from, with versions
    fingerprint: str  # of every byte above

    def batch(self, seed: int, step: int, size: int, context: int, *, micro: int = 0, device="cpu") -> Batch:
        """Batch number ``step`` of the run ``seed``: the same whatever was drawn before it.

        Domains share the batch evenly (a remainder goes round with the step); places are uniform.
        """
        rng = np.random.default_rng((seed, step, micro))
        domains = (np.arange(size) + step * size) % len(self.domains)
        rows = []
        for domain in domains:
            start = rng.integers(len(self.train[domain]) - context)
            rows.append(self.train[domain][start : start + context + 1])
        return _as_batch(rows, domains).to(device)

    def validation_batches(self, context: int, per_domain: int, size: int) -> Iterator[Batch]:
        """``per_domain`` windows of each domain, evenly spaced over its validation text, in batches of
        one domain each. The same windows at every call."""
        for domain, data in enumerate(self.validation):
            starts = np.linspace(0, len(data) - context - 1, per_domain).astype(int)
            rows = [data[start : start + context + 1] for start in starts]
            for i in range(0, per_domain, size):
                yield _as_batch(rows[i : i + size], [domain] * len(rows[i : i + size]))

    def part(self, data_fraction: float) -> "Corpus":
        """The first ``data_fraction`` of each domain's training text, all of the validation text."""
        if not 0 < data_fraction <= 1:
            raise ValueError(f"data_fraction ({data_fraction}) must be above 0 and at most 1")
        if data_fraction == 1:
            return self
        train = tuple(data[: round(data_fraction * len(data))] for data in self.train)
        return replace(self, train=train, fingerprint=_fingerprint(self.domains, train, self.validation))

    def check(self, context: int, vocab_size: int = 256) -> None:
        """Raise ValueError where a domain is too short for one sequence, or a vocabulary for bytes."""
        if vocab_size < 256:
            raise ValueError(f"vocab_size ({vocab_size}) must be at least 256: text is bytes")
        for part, arrays in (("training", self.train), ("validation", self.validation)):
            for name, data in zip(self.domains, arrays, strict=True):
                if len(data) < context + 1:
                    raise ValueError(
                        f"domain {name} has {len(data)} bytes of {part} text, a sequence needs "
                        f"context + 1 ({context + 1}); add text or lower the context"
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
            files, each of its sub-folders a domain.
        train_bytes, validation_bytes: the size of each domain. For a folder they are upper limits: a
            tenth of a domain, at most ``validation_bytes``, is held back.

    Raises:
        ValueError: no such domain or folder, a package that is missing, a file that is not text, too
            little text; each with what to do.
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
    """The names of the known text that ``data`` means, none for a folder. Reads nothing.

    Raises:
        ValueError: it is neither.
    """
    names = GROUPS.get(str(data), tuple(str(data).split(",")))
    if all(name in SOURCES for name in names):
        return names
    if Path(data).is_dir():
        return ()
    raise ValueError(
        f"{str(data)!r} is neither a folder nor known text; "
        f"choose {', '.join(GROUPS)}, or among {', '.join(SOURCES)}"
    )


def _built_in(name: str, train_bytes: int, validation_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        train, validation = split(SOURCES[name].documents(), train_bytes, validation_bytes)
    except ValueError as error:
        raise ValueError(f"domain {name} cannot be read: {error}") from None
    if len(train) < train_bytes:
        raise ValueError(
            f"domain {name} has only {len(train):,} bytes of training text on this machine, "
            f"{train_bytes:,} were asked for; lower train_bytes"
        )
    return train, validation


def _from_folder(
    name: str, documents: list[Document], train_bytes: int, validation_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    size = sum(len(text.encode()) for _, text in documents)
    train, validation = split(iter(documents), train_bytes, min(validation_bytes, size // 10))
    if len(train) == 0 or len(validation) == 0:
        raise ValueError(
            f"domain {name} has {size} bytes in {len(documents)} document(s), too little to hold "
            "some back for validation; add text"
        )
    return train, validation


def split(
    documents: Iterator[Document], train_bytes: int, validation_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fill validation, then training, with documents in the order they come; each text once.

    A document is cut where it overfills a part, and in validation at a tenth of it (at 4,000 bytes if that
    is more), so that no single document speaks for a domain; the rest of it is dropped. No document, and no
    exact copy of one, lies on both sides.
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
