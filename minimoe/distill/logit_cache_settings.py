"""What a teacher's cache was made for: the run, the text, the teacher. The folder keeps it (``shards``), and
whoever goes on writing the cache, or reads it, compares.

Dimensions: A micro-batches a step, B batch, L sequence length, V vocabulary, K teacher entries a token.
"""

from dataclasses import dataclass
from typing import Any

import torch

from minimoe.data.corpus import Corpus
from minimoe.distill.shard_store import ShardError, describe
from minimoe.models.gpt import GPT
from minimoe.training.config import TrainConfig

KIND = "cache"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that fixes what is in a cache. Raises ShardError for what cannot be."""

    kind: str = KIND
    k: int
    temperature: float
    vocabulary: int  # V
    seed: int
    batch_size: int  # B
    accumulate: int  # A
    context: int  # L
    steps: int
    steps_per_file: int
    corpus: str  # its fingerprint
    teacher: dict[str, Any]  # as ``describe`` has it

    def __post_init__(self) -> None:
        longest = self.teacher["context"]
        if not 1 <= self.k <= self.vocabulary:
            raise ShardError(f"k ({self.k}) must be from 1 to {self.vocabulary}, the teacher's vocabulary")
        if not 1 <= self.context <= longest:
            raise ShardError(f"context ({self.context}) must be from 1 to {longest}, the teacher's")
        if not 0 < self.temperature < float("inf"):
            raise ShardError(f"temperature ({self.temperature}) must be above 0 and finite")
        if self.steps_per_file < 1:
            raise ShardError(f"steps_per_file ({self.steps_per_file}) must be at least 1")

    @property
    def id_dtype(self) -> torch.dtype:
        """The smallest that holds V - 1; not uint16, which torch hardly computes with."""
        if self.vocabulary <= 2**8:
            return torch.uint8
        return torch.int16 if self.vocabulary <= 2**15 else torch.int32

    @property
    def step_bytes(self) -> int:
        """Of one step's tensors: a float16 and an id for each entry, 8 for the digest of a micro-batch."""
        entries = self.batch_size * self.context * self.k
        return self.accumulate * (entries * (2 + self.id_dtype.itemsize) + 8)

    @property
    def pieces(self) -> list[range]:
        """The steps of each piece; the last may have fewer."""
        size = self.steps_per_file
        return [range(first, min(first + size, self.steps)) for first in range(0, self.steps, size)]


def settings_for(
    teacher: GPT,
    corpus: Corpus,
    config: TrainConfig,
    k: int,
    temperature: float,
    steps_per_file: int,
    context: int | None = None,
) -> Settings:
    """Of the cache that this teacher is to fill for this run. Raises ShardError for what cannot be."""
    run = run_settings(corpus, config, teacher.config.context if context is None else context)
    return Settings(
        k=k,
        temperature=temperature,
        vocabulary=teacher.config.vocab_size,
        steps=config.steps,
        steps_per_file=steps_per_file,
        teacher=describe(teacher),
        **run,
    )


def run_settings(corpus: Corpus, config: TrainConfig, context: int) -> dict[str, Any]:
    """What decides which tokens are in a batch: a student's run must have it as the cache has."""
    return {
        "kind": KIND,
        "corpus": corpus.fingerprint,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "context": context,
    }
