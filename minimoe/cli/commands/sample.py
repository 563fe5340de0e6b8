"""The commands of ``minimoe``: compare, train, sample, precision (distill and digits: ``distill.commands``).

Each dataclass is a command; its fields are the flags, the strings below them the help.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from minimoe.cli.console import console
from minimoe.models.generation import check_sampling, generate
from minimoe.tools.machine import pick_device
from minimoe.training.checkpoint import load_model


@dataclass(frozen=True)
class Sample:
    """Let a trained model write."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run")] = Path("runs/train")
    """a run's folder (of compare: its seed-0/moe, say) or one checkpoint"""
    prompt: str = "The "
    """text to go on from"""
    tokens: int = 300
    """bytes to write"""
    samples: int = 1
    """how many continuations"""
    temperature: float = 0.8
    """0 is greedy; 1 samples from the model as it is"""
    top_p: float = 0.95
    """sample from the likeliest bytes that hold this much probability"""
    seed: int = 0
    """of the sampling"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        check_sampling(self.temperature, self.top_p)
        if self.samples < 1:
            raise ValueError(f"--samples ({self.samples}) must be at least 1")
        if not self.prompt:
            raise ValueError("--prompt is empty; give the model at least one byte to go on from")
        device = pick_device(self.device)
        model = load_model(self.run_folder, device)
        prompt = torch.tensor([list(self.prompt.encode())] * self.samples, device=device)
        generator = torch.Generator(device).manual_seed(self.seed)
        written = generate(
            model, prompt, self.tokens,
            temperature=self.temperature, top_p=self.top_p, generator=generator,
        )  # fmt: skip
        for i, row in enumerate(written.tolist()):
            if self.samples > 1:
                console.rule(f"sample {i + 1}")
            text = bytes(row).decode("utf-8", errors="replace").replace("\0", "\n\n")
            console.print(self.prompt + text, markup=False, highlight=False, soft_wrap=True)
