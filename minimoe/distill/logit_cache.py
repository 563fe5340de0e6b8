"""[speed] A teacher's top-K predictions on disk: the teacher runs once for any number of students.

The batches of a run depend on (seed, step, micro-batch) alone, so a teacher can predict all of them first
(arXiv 2503.16870, which also measures what is lost by storing only K of V tokens; see ``topk_loss``).

A shard holds S steps: log_probs (S, A, B, L, K) float16, ids (S, A, B, L, K) uint8, int16 or int32, and a
digest of each micro-batch's tokens (S, A) int64.

A token takes (2 + 1) K bytes where V <= 256, (2 + 2) K where V <= 32,768, else (2 + 4) K. float16 rounds a
log-probability by at most 2^-11 of its value, or 2^-25 if that is more, so a probability of e^-10 is off by
0.5 %. -inf is exact. Below -65,519, where the probability is 0 in float64 too, values become -inf.

Dimensions: S steps per shard, A micro-batches per step, B batch, L sequence length, V vocabulary, K teacher
entries per token.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from minimoe.data.corpus import Corpus
from minimoe.distill.shard_store import ShardError, ShardStore, compare, describe, read_settings
from minimoe.distill.topk_loss import TopK, top_k
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
    corpus: str  # fingerprint
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


def write_cache(
    folder: Path | str, teacher: GPT, corpus: Corpus, config: TrainConfig, k: int, *,
    temperature: float = 1.0, context: int | None = None, steps_per_shard: int = 50, device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> int:  # fmt: skip
    """Write the teacher's k most likely tokens for every batch of the run -> bytes on disk.

    After a kill the same call resumes: intact shards are kept, the others written. The teacher predicts on
    ``device`` in eval mode; its device and mode are restored.

    Args:
        temperature: T of softmax(logits / T), whose logarithms are stored.
        context: L, of the students; the teacher's if None.
        steps_per_shard: S. This many steps are held in memory, and lost by a kill.
        on_progress: called after each step with the number of steps done and of all steps.

    Raises:
        ShardError: an invalid setting, a full disk, or a folder that holds something else or a cache with
            other settings, of other text or of another teacher.
        ValueError: the corpus does not fit the teacher, as ``Corpus.check``.
    """
    made = batch_settings(corpus, config, teacher.config.context if context is None else context)
    made |= {"k": k, "temperature": temperature, "steps": config.steps, "steps_per_shard": steps_per_shard}
    settings = CacheSettings(vocabulary=teacher.config.vocab_size, teacher=describe(teacher), **made)
    corpus.check(settings.context, settings.vocabulary)
    store = ShardStore(Path(folder), len(settings.shards))
    todo = store.prepare(asdict(settings), [len(steps) * settings.step_bytes for steps in settings.shards])
    home, was_training = teacher.embedding.weight.device, teacher.training
    teacher.to(device).eval()
    try:
        for i in todo:
            steps = []
            for step in settings.shards[i]:
                steps.append(_predict_step(teacher, corpus, settings, step, device))
                if on_progress is not None:
                    on_progress(step + 1, config.steps)
            store.save(i, {name: torch.stack([tensors[name] for tensors in steps]) for name in steps[0]})
    finally:
        teacher.to(home).train(was_training)
    return store.nbytes


class CachedTopK:
    """A teacher that reads what ``write_cache`` wrote, by step and micro-batch.

    Shards are memory-mapped one at a time, when they are needed; checksums are verified on first use.

    Args:
        corpus, config, context: of the student's run, which may have fewer steps than the cache.
        k: how many of the stored tokens to use, most likely first; None for all.
        temperature: of the student's loss; the cache must have the same.

    Raises:
        ShardError: a missing, damaged or incomplete cache, or one made for another run.
    """

    def __init__(
        self, folder: Path | str, corpus: Corpus, config: TrainConfig, context: int, *,
        k: int | None = None, temperature: float = 1.0,
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        stored = read_settings(self.folder)
        compare(self.folder, stored, batch_settings(corpus, config, context) | {"temperature": temperature})
        self.settings = CacheSettings(**stored)
        self.temperature = temperature
        self.k = self.settings.k if k is None else k
        for name, requested in (("steps", config.steps), ("k", self.k)):
            if not 1 <= requested <= stored[name]:
                raise ShardError(
                    f"{name} ({requested}) must be from 1 to {stored[name]}, which {self.folder} was made "
                    "with; use fewer, or write a larger cache in another folder"
                )
        self.store = ShardStore(self.folder, len(self.settings.shards))
        for i in range(-(-config.steps // self.settings.steps_per_shard)):
            self.store.path(i)
        self.nbytes = self.store.nbytes
        self._open_shard: tuple[int, Any] = (-1, None)

    def predict(self, tokens_BL: Tensor, step: int, micro: int) -> TopK:
        """tokens_BL (B, L), micro-batch ``micro`` of step ``step``, both counted from 0 -> log_probs
        (B, L, K) float16 and ids (B, L, K) int64, most likely first, on tokens_BL's device. A GPU
        synchronizes, because the tokens are compared with those that the teacher read.

        log_probs stay float16: their dtype tells ``topk_loss`` how precise they are.

        Raises:
            ShardError: a batch outside the cache, other tokens, a missing or damaged shard.
        """
        stored = self.settings
        if not (0 <= step < stored.steps and 0 <= micro < stored.accumulate):
            raise ShardError(
                f"step {step}, micro-batch {micro} is not in {self.folder}, which has {stored.steps} steps "
                f"of {stored.accumulate}, counted from 0; write a larger cache in another folder"
            )
        i, row = divmod(step, stored.steps_per_shard)
        if i != self._open_shard[0]:
            self._open_shard = i, safe_open(self.store.verified(i), framework="pt")
        tensors = self._open_shard[1]
        digest, expected = _digest(tokens_BL), int(tensors.get_slice("digests")[row, micro])
        if digest != expected:
            raise ShardError(
                f"these tokens {tuple(tokens_BL.shape)} are not those of step {step}, micro-batch {micro} in "
                f"{self.folder} (digest {expected}, here {digest}); pass what corpus.batch draws, or, if a "
                "new numpy version draws differently, write the cache again in another folder"
            )
        log_probs, ids = (tensors.get_slice(name)[row, micro, :, :, : self.k] for name in TopK._fields)
        return TopK(log_probs.to(tokens_BL.device), ids.to(tokens_BL.device).long())


@torch.no_grad()
def _predict_step(
    teacher: GPT, corpus: Corpus, settings: CacheSettings, step: int, device: str
) -> dict[str, Tensor]:
    """The teacher's predictions for one step: log_probs (A, B, L, K), ids (A, B, L, K), digests (A,)."""
    predictions, digests = [], []
    for micro in range(settings.accumulate):
        batch = corpus.batch(settings.seed, step, settings.batch_size, settings.context, micro=micro)
        logits_BLV, _ = teacher(batch.tokens_BL.to(device))
        predictions.append(top_k(logits_BLV, settings.k, temperature=settings.temperature))
        digests.append(_digest(batch.tokens_BL))
    log_probs, ids = (torch.stack(parts).cpu() for parts in zip(*predictions, strict=True))
    ids = ids.to(settings.id_dtype)
    return {"log_probs": log_probs.half(), "ids": ids, "digests": torch.tensor(digests)}


def _digest(tokens_BL: Tensor) -> int:
    """8-byte digest of the tokens and their shape, as a signed integer."""
    content = repr(tuple(tokens_BL.shape)).encode() + tokens_BL.cpu().numpy().astype("<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
