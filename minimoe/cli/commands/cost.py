"""``minimoe cost``: what a model costs, computed from its configuration."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import tyro

from minimoe.cli.console import console
from minimoe.cli.options import DebugOption, JsonOption
from minimoe.cost.architecture import Architecture, from_config
from minimoe.cost.estimate import estimate
from minimoe.cost.published import PUBLISHED
from minimoe.cost.report import print_costs
from minimoe.models.config import ModelConfig
from minimoe.tools import timing

OURS = "ours"


@dataclass(frozen=True)
class Cost(DebugOption, JsonOption):
    """Compute what a model costs from its configuration: parameters, FLOPs, bytes, time, dollars."""

    model: Annotated[str, tyro.conf.Positional] = "deepseek-v3"
    """deepseek-v3, mixtral-8x7b, deepseekmoe-16b, olmoe, qwen3-30b-a3b, llama-3.1-405b, llama-2-70b, gpt-2,
    or ours (see --config)"""
    compare_with: str | None = None
    """a second model, in a column beside the first"""
    config: ModelConfig = field(default_factory=ModelConfig)
    """configuration of the model ours"""
    keeping: str | None = None
    """storage precision: float32 (default for ours), bf16 (default for others) or deepseek-v3 (8 bits)"""
    tokens: float = 14.8e12
    """training tokens; 14.8e12 for DeepSeek-V3"""
    accelerator: str = "h800"
    """a100, h100, h800 or h200"""
    mfu: float = 0.4
    """model FLOPs utilization of training, as a share of the accelerator's bf16 peak"""
    price: float = 2.0
    """dollars per GPU-hour; 2 for DeepSeek-V3"""
    measure_peaks: bool = False
    """measure this machine's peaks and use them, instead of the accelerator's, for lower bounds on time"""

    def run(self) -> None:
        self.check_json()
        estimates = self.estimates()
        print_costs(estimates, console)
        self.write_json(estimates if self.compare_with is not None else estimates[0])

    def estimates(self) -> list[dict[str, Any]]:
        """Cost estimates of the model and, with ``compare_with``, of the other."""
        names = [name for name in (self.model, self.compare_with) if name is not None]
        if OURS not in names and self.config != ModelConfig():
            raise ValueError(f"--config describes ours, not {names[0]}; use minimoe cost ours")
        models = [self._architecture(name) for name in names]
        peaks = timing.peaks() if self.measure_peaks else None
        return [
            estimate(
                a, storage_precision=self.keeping or ("float32" if name == OURS else "bf16"),
                tokens=self.tokens, accelerator=self.accelerator, mfu=self.mfu, price=self.price, peaks=peaks,
            )
            for name, a in zip(names, models, strict=True)
        ]  # fmt: skip

    def _architecture(self, name: str) -> Architecture:
        if name == OURS:
            return replace(from_config(self.config), name=OURS)
        if name not in PUBLISHED:
            raise ValueError(f"unknown model {name!r}; choose one of {', '.join(PUBLISHED)} or {OURS}")
        return PUBLISHED[name]
