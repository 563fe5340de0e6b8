"""The commands of ``minimoe``: compare, train, sample, precision (distill and digits: ``distill.commands``).

Each dataclass is a command; its fields are the flags, the strings below them the help.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from minimoe.cli.console import console, introduce, load, prepare
from minimoe.experiments.moe_vs_dense.experiment import read_results, settings, train_all
from minimoe.experiments.moe_vs_dense.figure import plot_comparison
from minimoe.experiments.moe_vs_dense.report import print_comparison
from minimoe.experiments.presets import PRESETS, PresetName
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import close_folder, open_folder
from minimoe.training.progress import Terminal


@dataclass(frozen=True)
class Compare:
    """Train a mixture of experts and two dense networks on the same real text, and compare them.

    Prints a table and saves comparison.png and comparison.json.
    """

    preset: PresetName = "quick"
    """how much to train: quick (3 minutes on 2 CPU cores), standard (half an hour to an hour), gpu"""
    seeds: int = 1
    """repeat with this many seeds and show the spread"""
    data: str = "default"
    """default, article, all, names of domains joined by commas, or a folder of text files"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    threads: int | None = None
    """CPU threads; None is one a core. On a machine that is busy with something else, fewer are faster"""
    out: Path | None = None
    """folder for records, checkpoints, table and figure [default: runs/compare-PRESET]"""
    steps: int | None = None
    """train for this many steps instead of the preset's"""
    resume: bool = False
    """go on with the run that was stopped in --out"""
    overwrite: bool = False
    """replace the run in --out"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds ({self.seeds}) must be at least 1")
        preset = PRESETS[self.preset]
        if self.steps is not None:
            preset = dataclasses.replace(preset, training=preset.training.shortened(self.steps))
        out = self.out or Path("runs") / f"compare-{self.preset}"
        device = prepare(self.device, self.threads)
        corpus = load(self.data)
        corpus.check(preset.moe.context)
        wanted = settings(preset, self.data, self.seeds, device)
        open_folder(out, wanted, resume=self.resume, overwrite=self.overwrite)
        introduce(corpus, device)

        start = time.perf_counter()
        train_all(
            preset, corpus, out, seeds=self.seeds, device=device, resume=self.resume,
            display=lambda title: Terminal(console, title),
        )  # fmt: skip
        comparison = read_results(preset, out, self.seeds)
        about = {
            "preset": self.preset,
            "machine": describe_machine(device),
            "domains": dict(zip(corpus.domains, corpus.sources, strict=True)),
            "data": corpus.fingerprint,
            "seconds": time.perf_counter() - start,
        }
        data = about | comparison.as_dict()
        write_atomically(out / "comparison.json", json.dumps(data, indent=1) + "\n")
        title = f"minimoe compare · {self.preset} · seeds: {self.seeds}"
        plot_comparison(comparison, out / "comparison.png", title)
        close_folder(out)
        console.print()
        print_comparison(data, console)
        console.print(f"\nFigure: {out / 'comparison.png'}   Data: {out / 'comparison.json'}")
