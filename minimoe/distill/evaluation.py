"""[evidence] Evaluate a student: its bits per byte, how closely it matches its teacher, speed and samples.

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
    """Means over the validation text, by domain and over all of them ("all")."""

    bits: dict[str, float]
    """the student's bits per byte"""
    teacher_bits: dict[str, float]
    agreement: dict[str, float]
    """fraction of positions where student and teacher find the same byte most likely"""
    divergence: dict[str, float]
    """KL(teacher ‖ student), nats per byte"""


@torch.no_grad()
def student_metrics(student: GPT, teacher: GPT, corpus: Corpus, config: TrainConfig) -> StudentMetrics:
    """Compare two models on the windows that the training loop evaluates on. Both are left in eval mode."""
    device = student.embedding.weight.device
    student.eval()
    teacher.eval()
    totals = torch.zeros(4, len(corpus.domains), dtype=torch.float64)
    batches = corpus.validation_batches(student.config.context, config.eval_sequences, config.batch_size)
    for batch in batches:
        batch = batch.to(device)
        student_BLV, teacher_BLV = student(batch.tokens_BL)[0], teacher(batch.tokens_BL)[0]
        metrics = (
            cross_entropy(student_BLV, batch.targets_BL) / math.log(2),
            cross_entropy(teacher_BLV, batch.targets_BL) / math.log(2),
            (student_BLV.argmax(-1) == teacher_BLV.argmax(-1)).double().mean(),
            divergence(student_BLV, teacher_BLV),
        )
        weight = len(batch.domains_B) / config.eval_sequences
        domain = int(batch.domains_B[0])  # every batch has a single domain
        totals[:, domain] += weight * torch.tensor([metric.item() for metric in metrics])
    return StudentMetrics(*(_with_mean(corpus, values) for values in totals))


def _with_mean(corpus: Corpus, values: Tensor) -> dict[str, float]:
    return {ALL: values.mean().item()} | dict(zip(corpus.domains, values.tolist(), strict=True))


def generation_speeds(
    models: dict[str, GPT], *, batch: int = 16, tokens: int = 32, rounds: int = 5
) -> dict[str, float]:
    """Bytes per second that each model generates, ``batch`` texts at a time; medians, timed in turns."""
    device = next(iter(models.values())).embedding.weight.device
    prompt = torch.zeros(batch, 8, dtype=torch.long, device=device)
    tasks = {name: lambda model=model: generate(model, prompt, tokens) for name, model in models.items()}
    seconds = interleaved_seconds(tasks, device, rounds=rounds)
    return {name: batch * tokens / seconds[name] for name in models}


def sample_texts(
    models: dict[str, GPT], corpus: Corpus, *, prompt: int = 32, tokens: int = 80, temperature: float = 0.5
) -> dict[str, str]:
    """Each model's continuation of the same piece of text, which is under "prompt"."""
    prompt_1P = draw_prompts(corpus, len(corpus.domains), prompt, seed=0)[0][-1:]
    texts = {"prompt": as_text(prompt_1P[0])}
    for name, model in models.items():
        device = model.embedding.weight.device
        generator = torch.Generator(device).manual_seed(0)
        row_1L = generate(model, prompt_1P.to(device), tokens, temperature=temperature, generator=generator)
        texts[name] = as_text(row_1L[0])
    return texts


def as_text(tokens_L: Tensor) -> str:
    return bytes(min(token, 255) for token in tokens_L.tolist()).decode("utf-8", errors="replace")
