"""The command ``minimoe cost``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from minimoe import records
from minimoe.cost.architecture import Architecture
from minimoe.cost.published import PUBLISHED
from minimoe.cost.report import figures, print_costs
from minimoe.terminal import console


@dataclass(frozen=True)
class Cost:
    """Count what a published model costs, from its configuration: parameters, operations, bytes, dollars."""

    model: Annotated[str, tyro.conf.Positional] = "deepseek-v3"
    """deepseek-v3, mixtral-8x7b, deepseekmoe-16b, olmoe, qwen3-30b-a3b, llama-3.1-405b, llama-2-70b, gpt-2"""
    beside: str | None = None
    """another model, beside the first"""
    keeping: str = "bf16"
    """how numbers are kept: float32, bf16 or deepseek-v3 (8 bits)"""
    tokens: float = 14.8e12
    """tokens to train on; 14.8e12 in V3"""
    accelerator: str = "h800"
    """a100, h100, h800 or h200"""
    utilisation: float = 0.4
    """share of the card's bf16 peak that training reaches"""
    price: float = 2.0
    """dollars a card and hour; 2 in V3's bill"""
    json: Path | None = None
    """also write the figures to this file: an object, or a list of two"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        if self.json is not None and not self.json.parent.is_dir():
            raise ValueError(f"--json {self.json}: there is no folder {self.json.parent}; make it first")
        found = self.figures()
        print_costs(found, console)
        if self.json is not None:
            content = found if self.beside is not None else found[0]
            records.write_atomically(self.json, json.dumps(content, indent=1) + "\n")

    def figures(self) -> list[dict[str, Any]]:
        """Of the one model or of both."""
        return [
            figures(
                _published(name), keeping=self.keeping, tokens=self.tokens, accelerator=self.accelerator,
                utilisation=self.utilisation, price=self.price,
            )
            for name in (self.model, self.beside) if name is not None
        ]  # fmt: skip


def _published(name: str) -> Architecture:
    if name not in PUBLISHED:
        raise ValueError(f"there is no model {name!r}; choose one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
