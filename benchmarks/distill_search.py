"""The search behind the students' learning rate in ``minimoe distill``: one seed, the same grid for the
student alone and for the one that sees the teacher's logits, with all of the text and with a twentieth.

    python benchmarks/distill_search.py        # a quarter of an hour on 2 CPU cores

Prints the table that the README shows, and writes what it is made from to docs/results/search-distill.json.
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from rich.console import Console
from search import DOCS, markdown

from minimoe import GPT, load_corpus
from minimoe.data.corpus import Corpus
from minimoe.distill.teachers import LogitTeacher
from minimoe.distill.trainer import DistillationTrainer, as_teacher
from minimoe.experiments.distillation.experiment import ALONE, SETUPS
from minimoe.experiments.distillation.results import read_curve
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.training.checkpoint import load_model
from minimoe.training.config import TrainConfig
from minimoe.training.loop import train_in_turns
from minimoe.training.progress import Terminal
from minimoe.training.trainer import Trainer

SETUP = SETUPS["quick"]
METHODS = {name: SETUP.methods()[name] for name in (ALONE, "logits")}


def search(
    lr: tuple[float, ...] = (2e-3, 3e-3, 5e-3, 8e-3),
    shares: tuple[float, ...] = (1.0, 0.05),
    steps: int | None = None,
) -> None:
    """Train a teacher, then each student at every rate, a step each in turn; each read at its best."""
    corpus = load_corpus()
    training = SETUP.training if steps is None else SETUP.training.shortened(steps)
    found = []
    with TemporaryDirectory() as folder:
        look = LogitTeacher(taught(corpus, training, Path(folder) / "teacher"))
        for share in shares:
            found += students(
                corpus.part(share), training, look, lr, Path(folder), f"{share:.0%} of the text"
            )
    about = {"steps": training.steps, "seed": training.seed, "data": corpus.fingerprint}
    data = about | {"machine": describe_machine("cpu"), "found": found}
    write_atomically(DOCS / "search-distill.json", json.dumps(data, indent=1) + "\n")
    print(markdown(found))


def taught(corpus: Corpus, training: TrainConfig, folder: Path) -> GPT:
    """The teacher of ``minimoe distill``, with its averaged weights."""
    torch.manual_seed(training.seed)
    teacher = Trainer(GPT(SETUP.teacher), corpus, replace(training, lr=SETUP.teacher_lr))
    train_in_turns({"teacher": teacher}, {"teacher": folder}, display=Terminal(Console(), "teacher"))
    return load_model(folder, "cpu")


def students(
    corpus: Corpus,
    training: TrainConfig,
    look: LogitTeacher,
    rates: tuple[float, ...],
    folder: Path,
    title: str,
) -> list[dict]:
    """An entry for each student and rate, as ``search.markdown`` wants them."""
    trainers, folders = {}, {}
    for name, method in METHODS.items():
        for rate in rates:
            torch.manual_seed(training.seed)
            config, teacher = replace(training, lr=rate), as_teacher(look, method.lesson)
            key = f"{name} {rate:g}"
            trainers[key] = DistillationTrainer(GPT(SETUP.student), corpus, config, method.lesson, teacher)
            folders[key] = folder / title / key
    train_in_turns(trainers, folders, display=Terminal(Console(), title))
    found = []
    for name, method in METHODS.items():
        for rate in rates:
            records = folders[f"{name} {rate:g}"] / "records.jsonl"
            bits = read_curve(records, method, SETUP, SETUP.teacher).best
            found.append({"model": name, "schedule": title, "lr": rate, "bits_per_byte": bits})
    return found


if __name__ == "__main__":
    tyro.cli(search)
