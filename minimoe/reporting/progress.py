"""The progress bar of every command."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column


def progress_bar(console: Console, unit: str = "", *, transient: bool = False) -> Progress:
    """Bar, "3/9 unit" if there is a unit, time left, and the task's description, shortened to fit."""
    count: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn(f"{unit} ·")] if unit else []
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    text = TextColumn("left · {task.description}", table_column=rest)
    bar, left = BarColumn(20), TimeRemainingColumn()
    return Progress(bar, *count, left, text, console=console, transient=transient, expand=True)
