"""``minimoe distill``: distillation methods compared."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from minimoe.cli.console import console, print_header
from minimoe.cli.options import ExperimentOptions
from minimoe.distill.checks import Kind
from minimoe.distill.config import DistillConfig
from minimoe.distill.shard_store import fingerprint
from minimoe.experiments.context import RunContext
from minimoe.experiments.distillation.experiment import distillation
from minimoe.experiments.distillation.jobs import DistillationRun, GivenTeacher
from minimoe.experiments.distillation.report import print_distillation
from minimoe.experiments.distillation.setup import SETUPS, Setup, choose_methods
from minimoe.experiments.jobs import OnProgress
from minimoe.reporting.progress import progress_bar
from minimoe.tools.files import write_json
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import close_folder
from minimoe.training.checkpoint import load_model
from minimoe.training.progress import Terminal


@dataclass(frozen=True)
class Distill(ExperimentOptions):
    """Distill a large model into a small one by every method, on real text, and compare the students.

    Prints tables and saves distillation.png and distillation.json.
    """

    preset: Literal["quick"] = "quick"
    """how much to train: quick (under 10 minutes on 2 CPU cores)"""
    methods: str = "all"
    """some of the methods, joined by commas: "logits,top-4,on-policy"; alone is always among them"""
    teacher: Path | None = None
    """folder of a run (such as seed-0/moe of compare) or a checkpoint, to use instead of a trained teacher"""
    data_fraction: float = 1.0
    """fraction of the training text that the students read; the teachers read all of it"""
    teacher_tokens: int = 300_000
    """bytes that the teacher generates for the students trained on its text alone"""
    kind: Kind = "forward"
    """divergence from the teacher: forward, reverse, jsd, skew or tv"""
    temperature: float = 1.0
    """T of both softmaxes"""
    baseline_factor: int = 4
    """steps of the longer student without a teacher, relative to the others, to compare at equal FLOPs"""
    steps: int | None = None
    """training steps, in place of the preset's"""

    def run(self) -> None:
        if self.baseline_factor < 1:
            raise ValueError(f"--baseline-factor ({self.baseline_factor}) must be at least 1")
        setup = self._setup()
        methods = choose_methods(setup, self.methods, mixture=self.teacher is None)
        out, device = self.folder("distill", self.preset), self.set_device()
        given = None
        if self.teacher is not None:
            model = load_model(self.teacher, device)
            given = GivenTeacher(fingerprint(model), model)
        run = DistillationRun(setup, methods, given)
        experiment = distillation(run)
        context = RunContext(
            out, seeds=self.seeds, device=device, data=self.data, named_folders=True,
            display=lambda title: Terminal(console, title), on_progress=generation_progress(run, device),
        )  # fmt: skip
        with console.status("reading text"):
            context.check(experiment.jobs(context))
        settings = {
            "setup": asdict(setup),
            "methods": list(methods),
            "data": self.data,
            "seeds": self.seeds,
            "device": device,
            "teacher": "trained here" if given is None else given.fingerprint,
        }
        self.open_folder(out, settings)
        corpus = context.corpus
        print_header(corpus, device)

        start = time.perf_counter()
        run.train(context)
        with console.status("evaluating"):
            measured = experiment.measure(context)
        about = {
            "preset": self.preset,
            "data_fraction": self.data_fraction,
            "machine": describe_machine(device),
            "domains": dict(zip(corpus.domains, corpus.sources, strict=True)),
            "data": corpus.fingerprint,
            "seconds": time.perf_counter() - start,
        }
        data = about | measured.detail
        figure = out / "distillation.png"
        write_json(figure.with_suffix(".json"), data)
        part = "" if self.data_fraction == 1 else f" · students read {self.data_fraction:.0%} of the text"
        title = f"minimoe distill · {self.preset}{part} · seeds: {self.seeds}"
        experiment.save_figure(data, figure, title)
        close_folder(out)
        console.print()
        print_distillation(data, console)
        console.print(f"\nFigure: {figure}   Data: {figure.with_suffix('.json')}", soft_wrap=True)

    def _setup(self) -> Setup:
        setup = replace(
            SETUPS[self.preset],
            data_fraction=self.data_fraction,
            teacher_tokens=self.teacher_tokens,
            baseline_factor=self.baseline_factor,
            distill_config=DistillConfig(kind=self.kind, temperature=self.temperature),
        )
        return setup if self.steps is None else replace(setup, training=setup.training.shortened(self.steps))


def generation_progress(run: DistillationRun, device: str) -> OnProgress:
    """Show a progress bar while a teacher generates text; called with the predicted seconds of each shard."""
    total = job.seconds(device) if (job := run.text_job(seed=0)) else 0.0
    bar = progress_bar(console, transient=True)
    task = bar.add_task("the teacher generates text", total=total)

    def on_progress(seconds: float) -> None:
        if not bar.live.is_started:
            bar.reset(task)
            bar.start()
        bar.advance(task, seconds)
        if bar.tasks[0].completed > 0.999 * total:
            bar.stop()

    return on_progress
