"""Text that a model writes: all that is seen of a teacher behind an interface, and a student's own words.

A row is a prompt, a few bytes of the corpus, and what the model goes on with; a row is as long as a context
needs (L + 1). Prompts come evenly from the domains, and are not learned.

Dimensions: N rows, L a row's length, P bytes of prompt, B batch.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from minimoe.data.corpus import Batch, Corpus
from minimoe.distill.config import DistillConfig
from minimoe.distill.shard_store import Shards, describe
from minimoe.models.generation import generate
from minimoe.models.gpt import GPT

IGNORED = -100  # a target that does not count; torch's own sign

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class TeacherText:
    """What a teacher wrote: rows_NL int16, the domain that each row's prompt is from, the prompt's length."""

    rows_NL: Tensor
    domains_N: Tensor
    prompt: int

    @property
    def tokens(self) -> int:
        """How many the teacher wrote."""
        return self.rows_NL.shape[0] * (self.rows_NL.shape[1] - self.prompt)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.rows_NL.numpy().tobytes()).hexdigest()[:16]

    def first(self, tokens: int) -> "TeacherText":
        """So many rows as hold about ``tokens`` of the teacher's. Raises ValueError if there are fewer."""
        if tokens > self.tokens:
            raise ValueError(f"{tokens:,} teacher tokens are wanted and {self.tokens:,} were written")
        n = max(1, round(tokens / (self.rows_NL.shape[1] - self.prompt)))
        return TeacherText(self.rows_NL[:n], self.domains_N[:n], self.prompt)

    def batch(self, seed: int, step: int, size: int, *, micro: int = 0, device="cpu") -> Batch:
        """Rows drawn by (seed, step, micro) alone."""
        rows = np.random.default_rng((seed, step, micro)).integers(len(self.rows_NL), size=size)
        return as_batch(self.rows_NL[rows], self.domains_N[rows], self.prompt).to(device)


def as_batch(rows_BL: Tensor, domains_B: Tensor, prompt: int) -> Batch:
    """Rows as tokens and targets; what the prompt gives is no target."""
    tokens_BL, targets_BL = rows_BL[:, :-1].long(), rows_BL[:, 1:].long()
    targets_BL[:, : prompt - 1] = IGNORED
    return Batch(tokens_BL, targets_BL, domains_B)


def draw_prompts(corpus: Corpus, n: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """n pieces of training text, the domains in turn -> prompts (n, P) int64, domains (n,)."""
    rng = np.random.default_rng(seed)
    domains = np.arange(n) % len(corpus.domains)
    starts = [rng.integers(len(corpus.train[domain]) - length) for domain in domains]
    rows = [corpus.train[d][start : start + length] for d, start in zip(domains, starts, strict=True)]
    return torch.from_numpy(np.stack(rows).astype(np.int64)), torch.from_numpy(domains)


def write(model: GPT, prompts_NP: Tensor, length: int, lesson: DistillConfig, seed: int) -> Tensor:
    """Each prompt continued to a row of ``length`` -> (N, L) int16, on the CPU."""
    generator = torch.Generator(prompts_NP.device).manual_seed(seed)
    written = generate(
        model, prompts_NP, length - prompts_NP.shape[1],
        temperature=lesson.sampling_temperature, top_p=lesson.top_p, generator=generator,
    )  # fmt: skip
    return torch.cat((prompts_NP, written), dim=1).to("cpu", torch.int16)


def write_text(
    teacher: GPT,
    corpus: Corpus,
    context: int,
    lesson: DistillConfig,
    seed: int,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TeacherText:
    """Have the teacher write ``lesson.teacher_tokens`` bytes in rows of context + 1.

    Args:
        folder: where the text is kept, piece by piece; what is there already is not written again.
        progress: told how many pieces of how many are done.

    Raises:
        ShardError: the folder holds another text, a damaged one, or something else; or the disk is full.
        ValueError: context beyond the teacher's.
    """
    if not lesson.prompt < context <= teacher.config.context:
        raise ValueError(
            f"context ({context}) must be longer than the prompt ({lesson.prompt}) and no longer than the "
            f"teacher's ({teacher.config.context})"
        )
    n_rows = -(-lesson.teacher_tokens // (context + 1 - lesson.prompt))
    sizes = [min(ROWS_AT_ONCE, n_rows - first) for first in range(0, n_rows, ROWS_AT_ONCE)]
    shards = None
    if folder is not None:
        settings = {
            "kind": "text", "context": context, "seed": seed, "prompt": lesson.prompt,
            "sampling_temperature": lesson.sampling_temperature, "top_p": lesson.top_p,
            "corpus": corpus.fingerprint, "teacher": describe(teacher),
            "rows": n_rows, "rows_at_once": ROWS_AT_ONCE,  # last, for what is above may be why they differ
        }  # fmt: skip
        shards = Shards(folder, len(sizes))
        shards.claim(settings, [n * (2 * (context + 1) + 8) for n in sizes])  # int16 a byte, int64 a domain
    found = []
    for piece, n in enumerate(sizes):
        if shards is not None and shards.has(piece):
            # A damaged one is refused here, not redone: another machine may write other words for the same
            # seed, and a student may be half-way through these.
            tensors = load_file(shards.find_sound(piece))
        else:
            tensors = _write_piece(teacher, corpus, n, context, lesson, (seed, piece))
            if shards is not None:
                shards.save(piece, tensors)
        found.append(tensors)
        if progress is not None:
            progress(piece + 1, len(sizes))
    rows_NL, domains_N = (torch.cat([tensors[name] for tensors in found]) for name in ("rows", "domains"))
    return TeacherText(rows_NL, domains_N, lesson.prompt)


def _write_piece(
    teacher: GPT, corpus: Corpus, n: int, context: int, lesson: DistillConfig, seed: tuple[int, int]
) -> dict[str, Tensor]:
    """n rows, (n, context + 1) int16, and the domains of their prompts, (n,) int64.

    Each piece has a seed of its own, so that it does not matter which were written before.
    """
    piece_seed = int(np.random.default_rng(seed).integers(2**62))
    prompts_NP, domains_N = draw_prompts(corpus, n, lesson.prompt, piece_seed)
    device = teacher.embedding.weight.device
    rows_NL = write(teacher, prompts_NP.to(device), context + 1, lesson, piece_seed)
    return {"rows": rows_NL, "domains": domains_N}
