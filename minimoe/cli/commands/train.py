"""``minimoe train``: one model, in one process or, started by torchrun, in several."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minimoe.cli.console import console, print_header
from minimoe.cli.options import DataOption, DebugOption, DeviceOptions, FolderOptions
from minimoe.data.corpus import load_corpus
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
from minimoe.tools.run_dir import close_folder, holds_run
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train
from minimoe.training.progress import Terminal


@dataclass(frozen=True)
class Train(DebugOption, FolderOptions, DeviceOptions, DataOption):
    """Train one model, dense (the default) or MoE (--model.n-experts 32)."""

    expert_parallel: int | None = None
    """number of processes that share the experts of each layer; start them with torchrun"""
    dispatch_dtype: DispatchDtype = "full"
    """format of tokens sent between processes: full, bf16, or fp8 (results in bf16)"""
    timeout: float = 300.0
    """seconds to wait for an unresponsive process"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """the model's configuration"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """the training configuration"""

    def run(self) -> None:
        device = self.set_device()
        with init_distributed(
            self.expert_parallel, self.dispatch_dtype, self.timeout, local_device(device)
        ) as strategy:
            console.quiet = not strategy.is_rank0
            self._run(device, strategy)

    def _run(self, device: str, strategy: SingleProcess) -> None:
        out = self.folder("train")
        with console.status("reading text"):
            corpus = load_corpus(self.data)
        corpus.check(self.model.context, self.model.vocab_size)
        settings: dict[str, Any] = {
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.train),
            "data": self.data,
            "device": device,
        }
        if self.dispatch_dtype != "full":
            settings["dispatch_dtype"] = self.dispatch_dtype
        if is_torchrun():
            layout = {"expert_parallel": self.expert_parallel, "text": corpus.fingerprint}
            require_same_settings(settings | layout)
        resume = strategy.run_on_rank0(lambda: self._open(out, settings))
        if strategy.is_rank0:
            print_header(corpus, device)
        torch.manual_seed(self.train.seed)
        evaluations = train(
            GPT(self.model), corpus, self.train, out=out, device=local_device(device),
            resume=resume, display=Terminal(console) if strategy.is_rank0 else None, strategy=strategy,
        )  # fmt: skip
        strategy.run_on_rank0(lambda: close_folder(out))
        if evaluations:
            last = evaluations[-1]
            domains = ", ".join(f"{name} {bits:.3f}" for name, bits in last.domains.items())
            console.print(f"\nvalidation bits per byte {last.bits_per_byte:.3f} ({domains})")
        console.print(f"Try it: minimoe sample --run {out}", soft_wrap=True)

    def _open(self, out: Path, settings: dict[str, Any]) -> bool:
        """Claim the folder -> whether to resume, which a restart by torchrun always does."""
        restarted = is_restart() and holds_run(out)
        flags = dataclasses.replace(
            self, resume=self.resume or restarted, overwrite=self.overwrite and not restarted
        )
        flags.open_folder(out, settings)
        return flags.resume
