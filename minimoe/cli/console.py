"""The terminal that all commands print to."""

from rich.console import Console

from minimoe.data.corpus import Corpus
from minimoe.tools.machine import describe_machine
from minimoe.version import __version__

console = Console()


def print_header(corpus: Corpus, device: str) -> None:
    """Versions, processor and text of a run."""
    machine = describe_machine(device)
    console.print(
        f"minimoe {__version__} · torch {machine['torch']} on {machine['processor']}, "
        f"{machine['threads']} threads",
        soft_wrap=True,
        highlight=False,
    )
    for name, source, text in zip(corpus.domains, corpus.sources, corpus.train, strict=True):
        console.print(f"  {name}: {len(text):,} bytes from {source}", highlight=False)
