"""How good a student is, and how like its teacher it has become.

Dimensions: B batch, L sequence length, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minimoe.data.corpus import ALL, Corpus
from minimoe.distill.losses import divergence
from minimoe.distill.teacher_text import draw_prompts
from minimoe.models.generation import generate
from minimoe.models.gpt import GPT
from minimoe.tools.timing import interleaved_seconds
from minimoe.training.config import TrainConfig
from minimoe.training.trainer import cross_entropy


@dataclass(frozen=True)
class StudentMetrics:
    """Over the validation text, by domain and ("all") their mean."""

    bits: dict[str, float]  # the student's, a byte
    teacher_bits: dict[str, float]
    agreement: dict[str, float]  # share of places where both hold the same byte for the likeliest
    divergence: dict[str, float]  # mean KL(teacher ‖ student), nats a byte


@torch.no_grad()
def student_metrics(student: GPT, teacher: GPT, corpus: Corpus, config: TrainConfig) -> StudentMetrics:
    """Compare two models on the windows that the training loop evaluates on. Their modes become eval."""
    device = student.embedding.weight.device
    student.eval()
    teacher.eval()
    totals = torch.zeros(4, len(corpus.domains), dtype=torch.float64)
    batches = corpus.validation_batches(student.config.context, config.eval_sequences, config.batch_size)
    for batch in batches:
        batch = batch.to(device)
        mine_BLV, theirs_BLV = student(batch.tokens_BL)[0], teacher(batch.tokens_BL)[0]
        figures = (
            cross_entropy(mine_BLV, batch.targets_BL) / math.log(2),
            cross_entropy(theirs_BLV, batch.targets_BL) / math.log(2),
            (mine_BLV.argmax(-1) == theirs_BLV.argmax(-1)).double().mean(),
            divergence(mine_BLV, theirs_BLV),
        )
        share = len(batch.domains_B) / config.eval_sequences
        domain = int(batch.domains_B[0])  # a batch is of one domain
        totals[:, domain] += share * torch.tensor([figure.item() for figure in figures])
    return StudentMetrics(*(_with_mean(corpus, values) for values in totals))


def _with_mean(corpus: Corpus, values: Tensor) -> dict[str, float]:
    return {ALL: values.mean().item()} | dict(zip(corpus.domains, values.tolist(), strict=True))


def speeds(models: dict[str, GPT], *, batch: int = 16, tokens: int = 32, rounds: int = 5) -> dict[str, float]:
    """Bytes a second that each model writes, ``batch`` texts at a time; medians of turns."""
    device = next(iter(models.values())).embedding.weight.device
    prompt = torch.zeros(batch, 8, dtype=torch.long, device=device)
    tasks = {name: lambda model=model: generate(model, prompt, tokens) for name, model in models.items()}
    seconds = interleaved_seconds(tasks, device, rounds=rounds)
    return {name: batch * tokens / seconds[name] for name in models}


def samples(
    models: dict[str, GPT], corpus: Corpus, *, prompt: int = 32, tokens: int = 80, temperature: float = 0.5
) -> dict[str, str]:
    """What each goes on with after the same piece of text, which is under "prompt"."""
    prompt_1P = draw_prompts(corpus, len(corpus.domains), prompt, seed=0)[0][-1:]
    found = {"prompt": as_text(prompt_1P[0])}
    for name, model in models.items():
        device = model.embedding.weight.device
        generator = torch.Generator(device).manual_seed(0)
        written = generate(model, prompt_1P.to(device), tokens, temperature=temperature, generator=generator)
        found[name] = as_text(written[0])
    return found


def as_text(tokens_L: Tensor) -> str:
    return bytes(min(token, 255) for token in tokens_L.tolist()).decode("utf-8", errors="replace")
