"""A teacher's likeliest tokens on the disk, so that it need only be run once.

The batches of a run depend on (seed, step, micro-batch) alone (``minimoe.data``). So a teacher can be asked
about all of them beforehand, and any number of students read its answers (arXiv 2503.16870, which also says
what it costs in truth to keep only the K likeliest of V tokens; see ``sparse``).

A file holds, for S steps, log_probs (S, A, B, L, K) float16, ids (S, A, B, L, K) uint8, int16 or int32, and a
digest of each micro-batch's tokens (S, A) int64. It is one of the pieces of a folder (``shards``).

A token takes (2 + 1) K bytes where V <= 256, (2 + 2) K where V <= 32,768, else (2 + 4) K. float16 rounds a
log-probability by at most 2^-11 of itself, or 2^-25 where that is more; so a probability of e^-10 is off by
0.5 % of itself. -inf stays. Below -65,519, where a probability is 0 in float64 too, it becomes -inf.

Dimensions: S steps of a file, A micro-batches a step, B batch, L sequence length, V vocabulary, K teacher
entries a token.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from minimoe.data.corpus import Corpus
from minimoe.distill.logit_cache_settings import Settings, run_settings, settings_for
from minimoe.distill.shard_store import ShardError, Shards, compare, read_settings
from minimoe.distill.topk_loss import TopK, top_k
from minimoe.models.gpt import GPT
from minimoe.training.config import TrainConfig


def write_cache(
    folder: Path | str,
    teacher: GPT,
    corpus: Corpus,
    config: TrainConfig,
    k: int,
    *,
    temperature: float = 1.0,
    context: int | None = None,
    steps_per_file: int = 50,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the teacher's k likeliest tokens of every batch of the run -> bytes on the disk.

    Called again after a kill, it goes on: files that are whole are kept, the others written. The teacher
    answers on ``device``, in eval mode; both are put back.

    Args:
        temperature: T of softmax(logits / T), whose logarithms are kept.
        context: L, of the students; the teacher's if None.
        steps_per_file: S. That many steps' answers are held in memory, and lost by a kill.
        progress: told after each step that the teacher was asked about: steps done, steps in all.

    Raises:
        ShardError: a setting that cannot be, too little disk, or a folder that holds something else, or a
            cache made with other settings, from other text or by another teacher.
        ValueError: text that does not fit the teacher, as ``Corpus.check``.
    """
    settings = settings_for(teacher, corpus, config, k, temperature, steps_per_file, context)
    corpus.check(settings.context, settings.vocabulary)
    shards = Shards(Path(folder), len(settings.pieces))
    todo = shards.claim(asdict(settings), [len(steps) * settings.step_bytes for steps in settings.pieces])
    home, was_training = teacher.embedding.weight.device, teacher.training
    teacher.to(device).eval()
    try:
        for piece in todo:
            answers = []
            for step in settings.pieces[piece]:
                answers.append(_ask(teacher, corpus, settings, step, device))
                if progress is not None:
                    progress(step + 1, config.steps)
            tensors = {name: torch.stack([answer[name] for answer in answers]) for name in answers[0]}
            shards.save(piece, tensors)
    finally:
        teacher.to(home).train(was_training)
    return shards.nbytes


class CachedTopK:
    """What ``write_cache`` wrote, by step and micro-batch: ``look`` answers as the teacher would.

    Files are opened when they are needed, one at a time, mapped rather than read. A file's checksum is looked
    at when it is first opened.

    Args:
        corpus, config, context: of the student's run, whose steps may be fewer than the cache has.
        k: how many of the stored tokens are wanted, the likeliest first; None for all.
        temperature: of the student's loss; the cache must have the same.

    Raises:
        ShardError: no cache, a damaged or unfinished one, or one that was made for another run.
    """

    def __init__(
        self,
        folder: Path | str,
        corpus: Corpus,
        config: TrainConfig,
        context: int,
        *,
        k: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.folder = Path(folder)
        found = read_settings(self.folder)
        wanted = run_settings(corpus, config, context) | {"temperature": temperature}
        compare(self.folder, found, wanted)
        self.settings = stored = Settings(**found)
        self.temperature = stored.temperature
        self.k = stored.k if k is None else k
        for name, most, ours in (("steps", stored.steps, config.steps), ("k", stored.k, self.k)):
            if not 1 <= ours <= most:
                raise ShardError(
                    f"{name} ({ours}) must be from 1 to {most}, which {self.folder} was made with; ask for "
                    "that, or write a larger cache in another folder"
                )
        self.shards = Shards(self.folder, len(stored.pieces))
        for piece in range(-(-config.steps // stored.steps_per_file)):
            self.shards.find(piece)
        self.nbytes = self.shards.nbytes
        self._opened: tuple[int, Any] = (-1, None)

    def predict(self, tokens_BL: Tensor, step: int, micro: int) -> TopK:
        """tokens_BL (B, L), micro-batch ``micro`` of step ``step`` (the first is 0) -> log_probs (B, L, K)
        float16 and ids (B, L, K) int64, the likeliest first, on tokens_BL's device. It is waited for: the
        tokens are compared with those that the teacher saw.

        float16 is left as it is: ``sparse`` takes from the dtype how far the numbers can be trusted.

        Raises:
            ShardError: a batch that the cache does not have, other tokens, a missing or damaged file.
        """
        stored = self.settings
        if not (0 <= step < stored.steps and 0 <= micro < stored.accumulate):
            raise ShardError(
                f"step {step}, micro-batch {micro} is not in {self.folder}: its {stored.steps} steps of "
                f"{stored.accumulate} are counted from 0; write a larger cache in another folder"
            )
        piece, row = divmod(step, stored.steps_per_file)
        tensors = self._open(piece)
        found, wanted = _digest(tokens_BL), int(tensors.get_slice("digests")[row, micro])
        if found != wanted:
            raise ShardError(
                f"these tokens {tuple(tokens_BL.shape)} are not those of step {step}, micro-batch {micro} in "
                f"{self.folder} (digest {wanted}, here {found}); look with what corpus.batch draws, or write "
                "the cache again in another folder if another numpy draws otherwise now"
            )
        log_probs, ids = (
            tensors.get_slice(name)[row, micro, :, :, : self.k].to(tokens_BL.device)
            for name in ("log_probs", "ids")
        )
        return TopK(log_probs, ids.long())

    def _open(self, piece: int) -> Any:
        """The tensors of a piece."""
        if piece != self._opened[0]:
            self._opened = piece, safe_open(self.shards.find_sound(piece), framework="pt")
        return self._opened[1]


@torch.no_grad()
def _ask(teacher: GPT, corpus: Corpus, settings: Settings, step: int, device: str) -> dict[str, Tensor]:
    """The teacher's answers to one step: log_probs (A, B, L, K), ids (A, B, L, K), digests (A,)."""
    answers, digests = [], []
    for micro in range(settings.accumulate):
        batch = corpus.batch(settings.seed, step, settings.batch_size, settings.context, micro=micro)
        logits_BLV, _ = teacher(batch.tokens_BL.to(device))
        answers.append(top_k(logits_BLV, settings.k, temperature=settings.temperature))
        digests.append(_digest(batch.tokens_BL))
    log_probs, ids = (torch.stack(parts).cpu() for parts in zip(*answers, strict=True))
    return {
        "log_probs": log_probs.half(),
        "ids": ids.to(settings.id_dtype),
        "digests": torch.tensor(digests),
    }


def _digest(tokens_BL: Tensor) -> int:
    """Of the tokens and their shape, in 8 bytes, as a signed integer."""
    content = repr(tuple(tokens_BL.shape)).encode() + tokens_BL.cpu().numpy().astype("<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
