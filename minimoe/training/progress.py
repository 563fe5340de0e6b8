"""Progress display: a live table and a progress bar on a terminal; elsewhere one line per evaluation."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from minimoe.reporting.progress import progress_bar
from minimoe.training.metrics import Evaluation, Step
from minimoe.training.trainer import Trainer


class Display(Protocol):
    """Receives every step and evaluation while models train."""

    def __enter__(self) -> "Display": ...
    def __exit__(self, *exception: object) -> None: ...
    def start(self, trainers: Mapping[str, Trainer]) -> None: ...
    def step(self, name: str, step: Step) -> None: ...
    def evaluation(self, name: str, evaluation: Evaluation) -> None: ...


class Silent:
    """Shows nothing."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *exception: object) -> None: ...
    def start(self, trainers: Mapping[str, Trainer]) -> None: ...
    def step(self, name: str, step: Step) -> None: ...
    def evaluation(self, name: str, evaluation: Evaluation) -> None: ...


class Row:
    """The latest metrics of one model."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=20)
        self.rates: deque[float] = deque(maxlen=20)
        self.busiest = self.idlest = self.dead = self.validation = ""

    def cells(self, name: str) -> list[str]:
        loss = f"{statistics.fmean(self.losses):.3f}" if self.losses else ""
        rate = f"{statistics.median(self.rates):,.0f}" if self.rates else ""
        return [name, loss, self.validation, rate, self.busiest, self.idlest, self.dead]


class Terminal:
    """A live table: training and validation bits per byte, tokens per second, the load of the busiest and the
    idlest expert relative to an even load, and the number of dead experts."""

    def __init__(self, console: Console, title: str = "training") -> None:
        self.console = console
        self.title = title
        self.rows: dict[str, Row] = {}
        self.progress = progress_bar(console, "steps")
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self._draw)

    def __enter__(self) -> "Terminal":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def start(self, trainers: Mapping[str, Trainer]) -> None:
        self.rows = {name: Row() for name in trainers}
        done = sum(trainer.step for trainer in trainers.values())
        total = sum(trainer.config.steps for trainer in trainers.values())
        self.task = self.progress.add_task(self.title, total=total, completed=done)
        if done and not self.console.is_terminal:
            self.console.print(f"{self.title}: resuming after {done} of {total} steps")

    def step(self, name: str, step: Step) -> None:
        row = self.rows[name]
        row.losses.append(step.loss / math.log(2))
        row.rates.append(step.tokens / step.seconds)
        if step.counts_ME is not None:
            shares = step.counts_ME / step.counts_ME.sum(1, keepdim=True)
            even = 1 / shares.shape[1]
            row.busiest = f"{shares.max() / even:.2f}x even"
            row.idlest = f"{shares.min() / even:.2f}x even"
            row.dead = f"{int((step.counts_ME == 0).sum())} of {step.counts_ME.numel()}"
        self.progress.advance(self.task)

    def evaluation(self, name: str, evaluation: Evaluation) -> None:
        row = self.rows[name]
        row.validation = f"{evaluation.bits_per_byte:.3f}"
        if not self.console.is_terminal:
            _, loss, validation, rate, busiest, idlest, dead = row.cells(name)
            loads = f" · busiest {busiest}, idlest {idlest}, dead {dead}" if busiest else ""
            self.console.print(
                f"{self.title} · {name} · step {evaluation.step} · bits/byte {loss} training, "
                f"{validation} validation · {rate} tokens/s{loads}",
                soft_wrap=True,
            )

    def _draw(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("model", "bits/byte", "validation", "tokens/s", "busiest", "idlest expert", "dead"):
            table.add_column(heading, justify="left" if heading == "model" else "right")
        for name, row in self.rows.items():
            table.add_row(*row.cells(name))
        return Group(table, self.progress.get_renderable())
