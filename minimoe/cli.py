"""The command line: ``minimoe compare | train | sample | precision``. Flags and help come from the
dataclasses below.

A user's mistake ends in one line that says what to change; ``--debug`` shows the traceback.
"""

import contextlib
import dataclasses
import io
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from minimoe import records
from minimoe.checkpoint import load_model
from minimoe.compare import PRESETS, PresetName, read_results, settings, train_all
from minimoe.data import Corpus, load_corpus
from minimoe.folders import close_folder, open_folder
from minimoe.generation import check_sampling, generate
from minimoe.model import GPT, ModelConfig
from minimoe.numbers import TABLES
from minimoe.plots import plot_comparison
from minimoe.progress import Terminal
from minimoe.report import print_comparison, print_numbers
from minimoe.train_config import TrainConfig
from minimoe.training import Interrupted, pick_device, train
from minimoe.version import __version__

console = Console()


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
            every = max(1, min(preset.training.eval_every, self.steps // 10))
            training = dataclasses.replace(
                preset.training,
                steps=self.steps,
                eval_every=every,
                warmup=min(preset.training.warmup, self.steps),
            )
            preset = dataclasses.replace(preset, training=training)
        out = self.out or Path("runs") / f"compare-{self.preset}"
        device = _prepare(self.device, self.threads)
        corpus = _load(self.data)
        corpus.check(preset.moe.context)
        wanted = settings(preset, self.data, self.seeds, device)
        open_folder(out, wanted, resume=self.resume, overwrite=self.overwrite)
        _introduce(corpus, device)

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
    resume: bool = False
    """go on with the run that was stopped in --out"""
    overwrite: bool = False
    """replace the run in --out"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        device = _prepare(self.device, self.threads)
        corpus = _load(self.data)
        corpus.check(self.model.context, self.model.vocab_size)
        wanted = {
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.train),
            "data": self.data,
            "device": device,
        }
        open_folder(self.out, wanted, resume=self.resume, overwrite=self.overwrite)
        _introduce(corpus, device)
        torch.manual_seed(self.train.seed)
        evaluations = train(
            GPT(self.model), corpus, self.train, out=self.out, device=device,
            resume=self.resume, display=Terminal(console),
        )  # fmt: skip
        close_folder(self.out)
        if evaluations:
            last = evaluations[-1]
            domains = ", ".join(f"{name} {bits:.3f}" for name, bits in last.domains.items())
            console.print(f"\nvalidation bits per byte {last.bits_per_byte:.3f} ({domains})")
        console.print(f"Try it: minimoe sample --run {self.out}", soft_wrap=True)


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
        device = _prepare("cpu", self.threads)
        if self.out is not None and not self.out.parent.is_dir():
            raise ValueError(f"--out {self.out}: there is no folder {self.out.parent}; make it first")
        tables = []
        for measure in TABLES:
            with console.status(f"measuring {measure.__name__.replace('_', ' ')}"):
                tables.append(measure(seed=self.seed))
            print_numbers(tables[-1], console)
        if self.out is not None:
            data = {"machine": records.machine(device), "seed": self.seed}
            data |= {"tables": [dataclasses.asdict(table) for table in tables]}
            records.write_atomically(self.out, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _prepare(device: str, threads: int | None) -> str:
    """Set the threads, pick the device."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads ({threads}) must be at least 1")
        torch.set_num_threads(threads)
    return pick_device(device)


def _load(data: str) -> Corpus:
    with console.status("reading text"):
        return load_corpus(data)


def _introduce(corpus: Corpus, device: str) -> None:
    machine = records.machine(device)
    console.print(
        f"minimoe {__version__} · torch {machine['torch']} on {machine['processor']}, "
        f"{machine['threads']} threads",
        soft_wrap=True,
        highlight=False,
    )
    for name, source, text in zip(corpus.domains, corpus.sources, corpus.train, strict=True):
        console.print(f"  {name}: {len(text):,} bytes from {source}", highlight=False)


COMMANDS: dict[str, Any] = {"compare": Compare, "train": Train, "sample": Sample, "precision": Precision}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 1 for an error, 130 for an interruption."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = _parse(arguments)
    try:
        command.run()
        return 0
    except Interrupted:
        again = [flag for flag in arguments if flag not in ("--resume", "--overwrite")]
        _say(f"stopped; everything is saved. To go on: minimoe {shlex.join(again)} --resume")
        return 130
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except (ValueError, OSError) as error:
        if "--debug" in arguments:
            raise
        _say(f"error: {error}")
        return 1


def entry() -> None:
    """The ``minimoe`` command. What a terminal cannot show (± · on ASCII ones) becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(main())


def _parse(arguments: list[str]) -> Any:
    """The command that the arguments describe; a mistake in them ends the process in one line."""
    mistake = io.StringIO()
    try:
        with contextlib.redirect_stderr(mistake):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="minimoe",
                description="Do the tricks that made DeepSeek cheap really work? Measure it here.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if end.code:
            _say(f"error: {_first_sentence(mistake.getvalue())}")
        raise


def _first_sentence(box: str) -> str:
    """What tyro says in a box of several lines: its first paragraph, and the flag it thinks was meant. The
    title stands in the frame, or where the terminal knows ASCII alone, in a paragraph of its own."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"[─-]{10,}", " ".join(lines))
    paragraphs = paragraphs if "╭" in box else paragraphs[1:]
    message = re.sub(r"^Error parsing \S*__\S*: ", "", paragraphs[0].strip())
    meant = re.search(r"Perhaps you meant:\s+(--[\w.-]+)", " ".join(paragraphs))
    helpful = meant is not None and meant[1] not in message  # not a flag of another command
    remedy = f"perhaps you meant {meant[1]}" if meant and helpful else "see minimoe --help"
    return f"{message.split(' Arguments are applied')[0].rstrip(' .')}; {remedy}"


def _say(message: str) -> None:
    print(f"minimoe: {' '.join(message.split())}", file=sys.stderr)
