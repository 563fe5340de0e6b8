"""The search behind a preset's learning rates: every model gets the same grid, one seed, and no more.

    python benchmarks/search.py                                     # quick: a quarter of an hour
    python benchmarks/search.py --preset standard --steps 250 --lr 1e-3 2e-3 --schedules constant

Prints the table that the README shows, and writes what it is made from to docs/results/search-PRESET.json.
The schedules are those of the comparison (a constant rate, averaged weights) and the cosine it replaces.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.progress import track

from minimoe import GPT, load_corpus
from minimoe.experiments.presets import PRESETS, PresetName
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.training.trainer import Trainer

DOCS = Path(__file__).parent.parent / "docs" / "results"


def markdown(found: list[dict]) -> str:
    """A row a model and schedule, a column a rate; the best of each row in bold."""
    rates = sorted({entry["lr"] for entry in found})
    lines = ["| | " + " | ".join(f"lr {rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for name, schedule in dict.fromkeys((entry["model"], entry["schedule"]) for entry in found):
        row = {e["lr"]: e["bits_per_byte"] for e in found if (e["model"], e["schedule"]) == (name, schedule)}
        best = min(row.values())
        cells = [
            "" if rate not in row else f"**{row[rate]:.3f}**" if row[rate] == best else f"{row[rate]:.3f}"
            for rate in rates
        ]
        lines.append(f"| {name}, {schedule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def search(
    preset: PresetName = "quick",
    lr: tuple[float, ...] = (2e-3, 3e-3, 4e-3, 6e-3),
    schedules: tuple[Literal["constant", "cosine"], ...] = ("constant", "cosine"),
    steps: int | None = None,
) -> None:
    """Train every model of a preset at every rate; the cosine for comparison."""
    keep_freed_memory()
    chosen, corpus = PRESETS[preset], load_corpus()
    cases = [(s, name, rate) for s in schedules for name in chosen.models() for rate in lr]
    found = []
    for schedule, name, rate in track(cases, "searching"):
        config = replace(chosen.training, lr=rate, schedule=schedule, steps=steps or chosen.training.steps)
        if schedule == "cosine":
            config = replace(config, average=0.0)
        torch.manual_seed(config.seed)
        trainer = Trainer(GPT(chosen.models()[name]), corpus, config)
        for _ in range(config.steps):
            trainer.train_step()
        bits = trainer.evaluate().bits_per_byte
        found.append({"model": name, "schedule": schedule, "lr": rate, "bits_per_byte": bits})
    about = {"preset": preset, "steps": config.steps, "seed": config.seed, "data": corpus.fingerprint}
    data = about | {"machine": describe_machine("cpu"), "found": found}
    write_atomically(DOCS / f"search-{preset}.json", json.dumps(data, indent=1) + "\n")
    print(markdown(found))


if __name__ == "__main__":
    tyro.cli(search)
