"""The commands of ``minimoe``: compare, train, sample, precision (distill and digits: ``distill.commands``).

Each dataclass is a command; its fields are the flags, the strings below them the help.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minimoe.cli.console import console, introduce, load, prepare
from minimoe.distributed.elastic import (
    init_distributed,
    is_restart,
    is_torchrun,
    local_device,
    require_same_settings,
)
from minimoe.distributed.strategy import SingleProcess
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.moe.expert_parallel.row_format import DispatchDtype
from minimoe.tools.run_dir import close_folder, holds_run, open_folder
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train
from minimoe.training.progress import Terminal


@dataclass(frozen=True)
class Train:
    """Train one model, dense (the default) or a mixture (--model.n-experts 32)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """the model's shape"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """how to train it"""
    data: str = "default"
    """default, article, all, names of domains joined by commas, or a folder of text files"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    threads: int | None = None
    """CPU threads; None is one a core. On a machine that is busy with something else, fewer are faster"""
    out: Path = Path("runs/train")
    """folder for records and checkpoints"""
    expert_parallel: int | None = None
    """so many processes hold the experts of a layer between them; start them with torchrun"""
    dispatch_dtype: DispatchDtype = "full"
    """how tokens travel between processes: full, bf16, or fp8 (and results in bf16)"""
    timeout: float = 300.0
    """seconds to wait for a process that does not answer"""
    resume: bool = False
    """go on with the run that was stopped in --out"""
    overwrite: bool = False
    """replace the run in --out"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        device = prepare(self.device, self.threads)
        with init_distributed(
            self.expert_parallel, self.dispatch_dtype, self.timeout, local_device(device)
        ) as strategy:
            console.quiet = not strategy.is_rank0
            self._run(device, strategy)

    def _run(self, device: str, strategy: SingleProcess) -> None:
        corpus = load(self.data)
        corpus.check(self.model.context, self.model.vocab_size)
        wanted = {
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.train),
            "data": self.data,
            "device": device,
        }
        if self.dispatch_dtype != "full":
            wanted["dispatch_dtype"] = self.dispatch_dtype
        if is_torchrun():
            require_same_settings(
                wanted | {"expert_parallel": self.expert_parallel, "text": corpus.fingerprint}
            )
        resume = strategy.run_on_rank0(lambda: self._open(wanted))
        if strategy.is_rank0:
            introduce(corpus, device)
        torch.manual_seed(self.train.seed)
        evaluations = train(
            GPT(self.model), corpus, self.train, out=self.out, device=local_device(device),
            resume=resume, display=Terminal(console) if strategy.is_rank0 else None, strategy=strategy,
        )  # fmt: skip
        strategy.run_on_rank0(lambda: close_folder(self.out))
        if evaluations:
            last = evaluations[-1]
            domains = ", ".join(f"{name} {bits:.3f}" for name, bits in last.domains.items())
            console.print(f"\nvalidation bits per byte {last.bits_per_byte:.3f} ({domains})")
        console.print(f"Try it: minimoe sample --run {self.out}", soft_wrap=True)

    def _open(self, wanted: dict[str, Any]) -> bool:
        """Claim the folder; whether to go on with what is in it. After a restart that goes without saying."""
        again = is_restart() and holds_run(self.out)
        resume = self.resume or again
        open_folder(self.out, wanted, resume=resume, overwrite=self.overwrite and not again)
        return resume
