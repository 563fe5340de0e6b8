"""[speed] Settings of a logit cache: everything that determines its content (run, corpus, teacher).

Dimensions: V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch

from minimoe.data.corpus import Corpus
from minimoe.distill.shard_store import ShardError, describe
from minimoe.models.gpt import GPT
from minimoe.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Everything that determines a cache's content. Raises ShardError for invalid values."""

    kind: str = "cache"
    k: int
    temperature: float
    vocabulary: int
    seed: int
    batch_size: int
    accumulate: int
    context: int
    steps: int
    steps_per_shard: int
    corpus: str  # its fingerprint
    teacher: dict[str, Any]  # from ``describe``

    def __post_init__(self) -> None:
        for name, most in (("k", self.vocabulary), ("context", self.teacher["context"])):
            if not 1 <= getattr(self, name) <= most:
                raise ShardError(f"{name} ({getattr(self, name)}) must be from 1 to {most}, the teacher's")
        if not 0 < self.temperature < float("inf"):
            raise ShardError(f"temperature ({self.temperature}) must be above 0 and finite")
        if self.steps_per_shard < 1:
            raise ShardError(f"steps_per_shard ({self.steps_per_shard}) must be at least 1")

    @property
    def id_dtype(self) -> torch.dtype:
        """The smallest that holds V - 1, except uint16, for which PyTorch has few operations."""
        if self.vocabulary <= 2**8:
            return torch.uint8
        return torch.int16 if self.vocabulary <= 2**15 else torch.int32

    @property
    def step_bytes(self) -> int:
        """Size of one step's tensors: a float16 and an id per entry, 8 bytes per micro-batch's digest."""
        entries = self.batch_size * self.context * self.k
        return self.accumulate * (entries * (2 + self.id_dtype.itemsize) + 8)

    @property
    def shards(self) -> list[range]:
        """The steps of each shard; the last may have fewer."""
        size = self.steps_per_shard
        return [range(first, min(first + size, self.steps)) for first in range(0, self.steps, size)]


def batch_settings(corpus: Corpus, config: TrainConfig, context: int) -> dict[str, Any]:
    """What determines the tokens of a batch: a student's run must have it in common with the cache."""
    settings = {name: getattr(config, name) for name in ("seed", "batch_size", "accumulate")}
    return {"kind": "cache", "corpus": corpus.fingerprint, "context": context} | settings


def cache_settings(
    teacher: GPT, corpus: Corpus, config: TrainConfig, k: int, *, temperature: float = 1.0,
    context: int | None = None, steps_per_shard: int = 50,
) -> CacheSettings:  # fmt: skip
    """The settings of a cache; the context is the teacher's if None."""
    batches = batch_settings(corpus, config, teacher.config.context if context is None else context)
    return CacheSettings(
        k=k, temperature=temperature, vocabulary=teacher.config.vocab_size, steps=config.steps,
        steps_per_shard=steps_per_shard, teacher=describe(teacher), **batches,
    )  # fmt: skip
