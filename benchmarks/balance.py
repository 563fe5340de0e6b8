"""Keeping every expert at work, five ways side by side on real text: the table that the README shows.

    python benchmarks/balance.py                    # a quarter of an hour on 2 CPU cores

The mixture of the quick preset; every method of a seed has the same batches and initial weights.
Losses have the weights of ``train_config.BALANCE_WEIGHTS``, the bias its default speed; nothing was searched.
Prints the table and writes what it is made from to docs/results/balance-PRESET.json.
"""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
import tyro
from rich.progress import track

from minimoe import GPT, load_corpus
from minimoe.experiments.presets import PRESETS, PresetName
from minimoe.reporting.statistics import format_spread
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.training.config import Balance
from minimoe.training.loop import load_record
from minimoe.training.trainer import Trainer

DOCS = Path(__file__).parent.parent / "docs" / "results"
COLUMNS = {  # key of a run: heading and digits
    "bits_per_byte": ("bits per byte", 3),
    "max_violation": ("MaxVio", 2),
    "batch_max_violation": ("MaxVio in a batch", 2),
    "entropy": ("entropy of the loads", 3),
    "dead": ("dead experts", 1),
}


def markdown(found: list[dict]) -> str:
    """A row a method: mean ± standard deviation over seeds."""
    lines = ["| balance | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for method in dict.fromkeys(run["balance"] for run in found):
        cells = []
        for key, (_, digits) in COLUMNS.items():
            values = [run[key] for run in found if run["balance"] == method]
            cells.append(format_spread(values, f".{digits}f"))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def train(trainer: Trainer) -> dict[str, float]:
    """The whole run -> loss and loads over the validation text, and MaxVio within the last 100 batches."""
    batches = [load_record(trainer.train_step().counts_ME) for _ in range(trainer.config.steps)]
    evaluation = trainer.evaluate()
    return {
        "bits_per_byte": evaluation.bits_per_byte,
        "batch_max_violation": statistics.fmean(batch["max_violation"] for batch in batches[-100:]),
        **load_record(evaluation.counts_ME),
    }


def balance(
    preset: PresetName = "quick", seeds: int = 3, steps: int | None = None, threads: int | None = None
) -> None:
    """Train the preset's mixture with every balance method and every seed."""
    if seeds < 1 or (threads is not None and threads < 1):
        raise ValueError(f"--seeds ({seeds}) and --threads ({threads}) must be at least 1")
    keep_freed_memory()
    torch.set_num_threads(threads or torch.get_num_threads())
    chosen, corpus = PRESETS[preset], load_corpus()
    base = replace(chosen.training, lr=chosen.lr["moe"], steps=steps or chosen.training.steps)
    found = []
    for method, seed in track([(m, s) for m in get_args(Balance) for s in range(seeds)], "training"):
        torch.manual_seed(seed)
        trainer = Trainer(GPT(chosen.moe), corpus, replace(base, balance=method, seed=seed))
        found.append({"balance": method, "seed": seed} | train(trainer))
    experts = chosen.moe.n_experts * (chosen.moe.n_layers - chosen.moe.first_dense)
    data = {"preset": preset, "steps": base.steps, "experts": experts, "data": corpus.fingerprint}
    write_atomically(
        DOCS / f"balance-{preset}.json",
        json.dumps(data | {"machine": describe_machine("cpu"), "found": found}, indent=1) + "\n",
    )
    print(markdown(found))


if __name__ == "__main__":
    tyro.cli(balance)
