"""What the commands share: the terminal, threads and device, the text, and who is at work."""

import torch
from rich.console import Console

from minimoe.data.corpus import Corpus, load_corpus
from minimoe.tools.machine import describe_machine, pick_device
from minimoe.version import __version__

console = Console()


def prepare(device: str, threads: int | None) -> str:
    """Set the threads, pick the device."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads ({threads}) must be at least 1")
        torch.set_num_threads(threads)
    return pick_device(device)


def load(data: str) -> Corpus:
    with console.status("reading text"):
        return load_corpus(data)


def introduce(corpus: Corpus, device: str) -> None:
    machine = describe_machine(device)
    console.print(
        f"minimoe {__version__} · torch {machine['torch']} on {machine['processor']}, "
        f"{machine['threads']} threads",
        soft_wrap=True,
        highlight=False,
    )
    for name, source, text in zip(corpus.domains, corpus.sources, corpus.train, strict=True):
        console.print(f"  {name}: {len(text):,} bytes from {source}", highlight=False)
