"""The command ``minimoe compare``."""

import dataclasses
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from minimoe.cli.console import console, introduce, prepare
from minimoe.experiments.context import RunContext
from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE
from minimoe.experiments.presets import PRESETS, PresetName
from minimoe.reporting.tables import print_table
from minimoe.tools.files import write_json
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import close_folder, open_folder
from minimoe.training.progress import Terminal


@dataclass(frozen=True)
class Compare:
    """Train a mixture of experts and two dense networks on the same text, and compare them.

    Prints tables and saves comparison.png and comparison.json.
    """

    preset: PresetName = "quick"
    """how much to train: quick (3 minutes on 2 CPU cores), standard (half an hour to an hour), gpu"""
    seeds: int = 1
    """number of seeds; more than one shows the spread"""
    data: str = "default"
    """default, article, all, names of domains joined by commas, or a folder of text files"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    threads: int | None = None
    """CPU threads; None is one per core. If the machine is busy with other work, fewer are faster"""
    out: Path | None = None
    """folder for records, checkpoints, tables and figure [default: runs/compare-PRESET]"""
    steps: int | None = None
    """training steps, in place of the preset's"""
    resume: bool = False
    """resume the stopped run in --out"""
    overwrite: bool = False
    """replace the run in --out"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        preset = PRESETS[self.preset]
        if self.steps is not None:
            preset = dataclasses.replace(preset, training=preset.training.shortened(self.steps))
        out = self.out or Path("runs") / f"compare-{self.preset}"
        device = prepare(self.device, self.threads)
        context = RunContext(
            out, seeds=self.seeds, device=device, data=self.data, preset=preset, named_folders=True,
            display=lambda title: Terminal(console, title),
        )  # fmt: skip
        with console.status("reading text"):
            context.check(MOE_VS_DENSE.jobs(context))
        settings = {
            "moe": asdict(preset.moe),
            "training": asdict(preset.training),
            "lr": preset.lr,
            "data": self.data,
            "seeds": self.seeds,
            "device": device,
        }
        open_folder(out, settings, resume=self.resume, overwrite=self.overwrite)
        corpus = context.corpus
        introduce(corpus, device)

        start = time.perf_counter()
        measured = MOE_VS_DENSE.measure(context)
        about = {
            "preset": self.preset,
            "machine": describe_machine(device),
            "domains": dict(zip(corpus.domains, corpus.sources, strict=True)),
            "data": corpus.fingerprint,
            "seconds": time.perf_counter() - start,
        }
        data = about | measured.detail
        write_json(out / "comparison.json", data)
        title = f"minimoe compare · {self.preset} · seeds: {self.seeds}"
        MOE_VS_DENSE.save_figure(data, out / "comparison.png", title)
        close_folder(out)
        console.print()
        for table in MOE_VS_DENSE.tables(data):
            print_table(table, console)
        console.print(data["verdict"], highlight=False)
        console.print(f"\nFigure: {out / 'comparison.png'}   Data: {out / 'comparison.json'}", soft_wrap=True)
