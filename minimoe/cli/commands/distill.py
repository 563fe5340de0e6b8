"""The commands ``minimoe distill`` and ``minimoe digits``."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minimoe.cli.console import console, introduce, load, prepare
from minimoe.distill.config import DistillConfig
from minimoe.distill.losses import Kind
from minimoe.experiments.distillation.experiment import (
    ALONE,
    SETUPS,
    Experiment,
    Method,
    Setup,
    settings,
    teach,
)
from minimoe.experiments.distillation.gather import gather
from minimoe.experiments.distillation.report import plot_distillation, print_distillation
from minimoe.reporting.progress import progress_bar
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import close_folder, open_folder
from minimoe.training.checkpoint import load_model
from minimoe.training.progress import Terminal


@dataclass(frozen=True)
class Distill:
    """Teach a small model by a big one in every way, on real text, and compare it with itself trained alone.

    Prints tables and saves distillation.png and distillation.json.
    """

    preset: Literal["quick"] = "quick"
    """how much to train: quick (under 10 minutes on 2 CPU cores)"""
    seeds: int = 1
    """repeat with this many seeds and show the spread"""
    methods: str = "all"
    """some of the methods, joined by commas: "logits,top-4,on-policy"; alone is always among them"""
    teacher: Path | None = None
    """a run's folder (of compare: its seed-0/moe, say) or a checkpoint: teach by this model, train none"""
    data_fraction: float = 1.0
    """of the training text, what the students have; the teachers have all of it"""
    teacher_tokens: int = 300_000
    """bytes that the teacher writes for the students that see only its text"""
    kind: Kind = "forward"
    """divergence from the teacher: forward, reverse, jsd, skew or tv"""
    temperature: float = 1.0
    """T of both softmaxes"""
    baseline_factor: int = 4
    """how many times as long a student alone trains, to be read at the others' arithmetic"""
    data: str = "default"
    """default, article, all, names of domains joined by commas, or a folder of text files"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    threads: int | None = None
    """CPU threads; None is one a core. On a machine that is busy with something else, fewer are faster"""
    out: Path | None = None
    """folder for records, checkpoints, table and figure [default: runs/distill-PRESET]"""
    steps: int | None = None
    """train for this many steps instead of the preset's"""
    resume: bool = False
    """go on with the run that was stopped in --out"""
    overwrite: bool = False
    """replace the run in --out"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        if self.seeds < 1 or self.baseline_factor < 1:
            raise ValueError(
                f"--seeds ({self.seeds}) and --baseline-factor ({self.baseline_factor}) must be at least 1"
            )
        setup = self._setup()
        methods = choose(setup, self.methods, mixture=self.teacher is None)
        out = self.out or Path("runs") / f"distill-{self.preset}"
        device = prepare(self.device, self.threads)
        corpus = load(self.data)
        teacher = None if self.teacher is None else load_model(self.teacher, device)
        experiment = Experiment(setup, methods, corpus, out, self.seeds, device, teacher)
        open_folder(out, settings(experiment, self.data), resume=self.resume, overwrite=self.overwrite)
        introduce(corpus, device)

        start = time.perf_counter()
        teach(experiment, resume=self.resume, display=lambda title: Terminal(console, title), progress=bar)
        with console.status("comparing"):
            found = gather(experiment)
        about = {
            "preset": self.preset,
            "data_fraction": self.data_fraction,
            "machine": describe_machine(device),
            "domains": dict(zip(corpus.domains, corpus.sources, strict=True)),
            "data": corpus.fingerprint,
            "seconds": time.perf_counter() - start,
        }
        data = about | found
        write_atomically(out / "distillation.json", json.dumps(data, indent=1) + "\n")
        share = "" if self.data_fraction == 1 else f" · students have {self.data_fraction:.0%} of the text"
        title = f"minimoe distill · {self.preset}{share} · seeds: {self.seeds}"
        plot_distillation(data, out / "distillation.png", title)
        close_folder(out)
        console.print()
        print_distillation(data, console)
        console.print(
            f"\nFigure: {out / 'distillation.png'}   Data: {out / 'distillation.json'}", soft_wrap=True
        )

    def _setup(self) -> Setup:
        setup = dataclasses.replace(
            SETUPS[self.preset],
            data_fraction=self.data_fraction,
            teacher_tokens=self.teacher_tokens,
            baseline_factor=self.baseline_factor,
            lesson=DistillConfig(kind=self.kind, temperature=self.temperature),
        )
        if self.steps is None:
            return setup
        return dataclasses.replace(setup, training=setup.training.shortened(self.steps))


def choose(setup: Setup, wanted: str, *, mixture: bool) -> dict[str, Method]:
    """The methods that are asked for, in their order. Without a mixture to teach, those by it are left out.

    Raises:
        ValueError: there is no such method.
    """
    methods = {n: method for n, method in setup.methods().items() if mixture or method.teacher != "mixture"}
    names = set(methods) if wanted == "all" else {name.strip() for name in wanted.split(",")} | {ALONE}
    if unknown := names - methods.keys():
        raise ValueError(f"--methods: there is no {sorted(unknown)[0]!r}; choose among {', '.join(methods)}")
    return {name: method for name, method in methods.items() if name in names}


def bar(title: str) -> Callable[[int, int], None]:
    """Shows how far something has come: a bar on a terminal, a line at its end elsewhere."""
    progress = progress_bar(console)
    task = progress.add_task(title)

    def told(done: int, of: int) -> None:
        if not console.is_terminal:
            if done == of:
                console.print(f"{title}: done")
            return
        if not progress.live.is_started:
            progress.start()
        progress.update(task, completed=done, total=of)
        if done == of:
            progress.stop()

    return told
