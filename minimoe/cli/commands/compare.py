"""``minimoe compare``: a mixture of experts against dense networks of equal size and of equal FLOPs."""

import dataclasses
import time
from dataclasses import asdict, dataclass

from minimoe.cli.console import console, print_header
from minimoe.cli.options import ExperimentOptions
from minimoe.experiments.context import RunContext
from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE
from minimoe.experiments.presets import PRESETS, PresetName
from minimoe.reporting.tables import print_table
from minimoe.tools.files import write_json
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import close_folder
from minimoe.training.progress import Terminal


@dataclass(frozen=True)
class Compare(ExperimentOptions):
    """Train a mixture of experts and two dense networks on the same text, and compare them.

    Prints tables and saves comparison.png and comparison.json.
    """

    preset: PresetName = "quick"
    """how much to train: quick (3 minutes on 2 CPU cores), standard (half an hour to an hour), gpu"""
    steps: int | None = None
    """training steps, in place of the preset's"""

    def run(self) -> None:
        preset = PRESETS[self.preset]
        if self.steps is not None:
            preset = dataclasses.replace(preset, training=preset.training.shortened(self.steps))
        out, device = self.folder("compare", self.preset), self.set_device()
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
        self.open_folder(out, settings)
        corpus = context.corpus
        print_header(corpus, device)

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
