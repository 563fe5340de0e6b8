"""The command ``minimoe cost``."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from minimoe.cli.console import console
from minimoe.cost.architecture import Architecture, from_config
from minimoe.cost.estimate import estimate
from minimoe.cost.published import PUBLISHED
from minimoe.cost.report import print_costs
from minimoe.models.config import ModelConfig
from minimoe.tools import timing
from minimoe.tools.files import write_atomically
from minimoe.tools.run_dir import check_file

OURS = "ours"


@dataclass(frozen=True)
class Cost:
    """Count what a model costs, from its configuration: parameters, operations, bytes, least times, money."""

    model: Annotated[str, tyro.conf.Positional] = "deepseek-v3"
    """deepseek-v3, mixtral-8x7b, deepseekmoe-16b, olmoe, qwen3-30b-a3b, llama-3.1-405b, llama-2-70b, gpt-2,
    or ours, of --config"""
    compare_with: str | None = None
    """another model, compare_with the first"""
    config: ModelConfig = field(default_factory=ModelConfig)
    """the shape of ours"""
    keeping: str | None = None
    """how numbers are kept: float32 (ours unless told), bf16 (others unless told) or deepseek-v3 (8 bits)"""
    tokens: float = 14.8e12
    """tokens to train on; 14.8e12 in V3"""
    accelerator: str = "h800"
    """a100, h100, h800 or h200"""
    utilisation: float = 0.4
    """share of the card's bf16 peak that training reaches"""
    price: float = 2.0
    """dollars a card and hour; 2 in V3's bill"""
    measure_peaks: bool = False
    """least times by this machine's peaks, measured, in place of the accelerator's"""
    json: Path | None = None
    """also write the figures to this file: an object, or a list of two"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        check_file("--json", self.json)
        found = self.estimates()
        print_costs(found, console)
        if self.json is not None:
            content = found if self.compare_with is not None else found[0]
            write_atomically(self.json, json.dumps(content, indent=1) + "\n")

    def estimates(self) -> list[dict[str, Any]]:
        """Of the one model or of both."""
        names = [name for name in (self.model, self.compare_with) if name is not None]
        if OURS not in names and self.config != ModelConfig():
            raise ValueError(f"--config is the shape of ours, not of {names[0]}; say minimoe cost ours")
        models = [self._architecture(name) for name in names]
        peaks = timing.peaks() if self.measure_peaks else None
        return [
            estimate(
                a, keeping=self.keeping or ("float32" if name == OURS else "bf16"), tokens=self.tokens,
                accelerator=self.accelerator, utilisation=self.utilisation, price=self.price, here=peaks,
            )
            for name, a in zip(names, models, strict=True)
        ]  # fmt: skip

    def _architecture(self, name: str) -> Architecture:
        if name == OURS:
            return replace(from_config(self.config), name=OURS)
        if name not in PUBLISHED:
            raise ValueError(f"there is no model {name!r}; choose one of {', '.join(PUBLISHED)} or {OURS}")
        return PUBLISHED[name]
