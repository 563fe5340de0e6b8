"""The commands of ``minimoe``: compare, train, sample, precision (distill and digits: ``distill.commands``).

Each dataclass is a command; its fields are the flags, the strings below them the help.
"""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from minimoe import records
from minimoe.bench.commands import Bench
from minimoe.checkpoint import load_model
from minimoe.claims.commands import Claims
from minimoe.compare import PRESETS, PresetName, read_results, settings, train_all
from minimoe.cost.commands import Cost
from minimoe.distill.commands import Digits, Distill
from minimoe.folders import check_file, close_folder, holds_run, open_folder
from minimoe.generation import check_sampling, generate
from minimoe.launch import check_same, joined, launched, local_device, restarted
from minimoe.model import GPT, ModelConfig
from minimoe.moe.wire import Wire
from minimoe.numbers import TABLES
from minimoe.plots import plot_comparison
from minimoe.processes import Alone
from minimoe.progress import Terminal
from minimoe.report import print_comparison, print_numbers
from minimoe.terminal import console, introduce, load, prepare
from minimoe.train_config import TrainConfig
from minimoe.training import pick_device, train


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
            "machine": records.machine(device),
            "domains": dict(zip(corpus.domains, corpus.sources, strict=True)),
            "data": corpus.fingerprint,
            "seconds": time.perf_counter() - start,
        }
        data = about | comparison.as_dict()
        records.write_atomically(out / "comparison.json", json.dumps(data, indent=1) + "\n")
        title = f"minimoe compare · {self.preset} · seeds: {self.seeds}"
        plot_comparison(comparison, out / "comparison.png", title)
        close_folder(out)
        console.print()
        print_comparison(data, console)
        console.print(f"\nFigure: {out / 'comparison.png'}   Data: {out / 'comparison.json'}")


@dataclass(frozen=True)
class Train:
    """Train one model, dense (the default) or a mixture (--model.n-experts 32)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """the model's shape"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """how to train it"""
    data: str = "default"
    """default, article, all, names of domains joined by commas, or a folder of text files"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    threads: int | None = None
    """CPU threads; None is one a core. On a machine that is busy with something else, fewer are faster"""
    out: Path = Path("runs/train")
    """folder for records and checkpoints"""
    expert_parallel: int | None = None
    """so many processes hold the experts of a layer between them; start them with torchrun"""
    wire: Wire = "full"
    """how tokens travel between processes: full, bf16, or fp8 (and results in bf16)"""
    timeout: float = 300.0
    """seconds to wait for a process that does not answer"""
    resume: bool = False
    """go on with the run that was stopped in --out"""
    overwrite: bool = False
    """replace the run in --out"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        device = prepare(self.device, self.threads)
        with joined(self.expert_parallel, self.wire, self.timeout, local_device(device)) as processes:
            console.quiet = not processes.writes
            self._run(device, processes)

    def _run(self, device: str, processes: Alone) -> None:
        corpus = load(self.data)
        corpus.check(self.model.context, self.model.vocab_size)
        wanted = {
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.train),
            "data": self.data,
            "device": device,
        }
        if self.wire != "full":
            wanted["wire"] = self.wire
        if launched():
            check_same(wanted | {"expert_parallel": self.expert_parallel, "text": corpus.fingerprint})
        resume = processes.once(lambda: self._open(wanted))
        if processes.writes:
            introduce(corpus, device)
        torch.manual_seed(self.train.seed)
        evaluations = train(
            GPT(self.model), corpus, self.train, out=self.out, device=local_device(device),
            resume=resume, display=Terminal(console) if processes.writes else None, processes=processes,
        )  # fmt: skip
        processes.once(lambda: close_folder(self.out))
        if evaluations:
            last = evaluations[-1]
            domains = ", ".join(f"{name} {bits:.3f}" for name, bits in last.domains.items())
            console.print(f"\nvalidation bits per byte {last.bits_per_byte:.3f} ({domains})")
        console.print(f"Try it: minimoe sample --run {self.out}", soft_wrap=True)

    def _open(self, wanted: dict[str, Any]) -> bool:
        """Claim the folder; whether to go on with what is in it. After a restart that goes without saying."""
        again = restarted() and holds_run(self.out)
        resume = self.resume or again
        open_folder(self.out, wanted, resume=resume, overwrite=self.overwrite and not again)
        return resume


@dataclass(frozen=True)
class Sample:
    """Let a trained model write."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run")] = Path("runs/train")
    """a run's folder (of compare: its seed-0/moe, say) or one checkpoint"""
    prompt: str = "The "
    """text to go on from"""
    tokens: int = 300
    """bytes to write"""
    samples: int = 1
    """how many continuations"""
    temperature: float = 0.8
    """0 is greedy; 1 samples from the model as it is"""
    top_p: float = 0.95
    """sample from the likeliest bytes that hold this much probability"""
    seed: int = 0
    """of the sampling"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        check_sampling(self.temperature, self.top_p)
        if self.samples < 1:
            raise ValueError(f"--samples ({self.samples}) must be at least 1")
        if not self.prompt:
            raise ValueError("--prompt is empty; give the model at least one byte to go on from")
        device = pick_device(self.device)
        model = load_model(self.run_folder, device)
        prompt = torch.tensor([list(self.prompt.encode())] * self.samples, device=device)
        generator = torch.Generator(device).manual_seed(self.seed)
        written = generate(
            model, prompt, self.tokens,
            temperature=self.temperature, top_p=self.top_p, generator=generator,
        )  # fmt: skip
        for i, row in enumerate(written.tolist()):
            if self.samples > 1:
                console.rule(f"sample {i + 1}")
            text = bytes(row).decode("utf-8", errors="replace").replace("\0", "\n\n")
            console.print(self.prompt + text, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Precision:
    """Measure what 8 bits lose and what 32-bit sums save: rounding, outliers, sums, products. A minute."""

    out: Path | None = None
    """also write the tables to this JSON file"""
    threads: int | None = None
    """CPU threads; None is one a core"""
    seed: int = 0
    """of the random numbers"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        device = prepare("cpu", self.threads)
        check_file("--out", self.out)
        tables = []
        for measure in TABLES:
            with console.status(f"measuring {measure.__name__.replace('_', ' ')}"):
                tables.append(measure(seed=self.seed))
            print_numbers(tables[-1], console)
        if self.out is not None:
            data = {"machine": records.machine(device), "seed": self.seed}
            data |= {"tables": [dataclasses.asdict(table) for table in tables]}
            records.write_atomically(self.out, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


COMMANDS: dict[str, Any] = {
    "compare": Compare,
    "train": Train,
    "sample": Sample,
    "precision": Precision,
    "distill": Distill,
    "digits": Digits,
    "cost": Cost,
    "claims": Claims,
    "bench": Bench,
}
