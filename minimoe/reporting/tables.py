"""Tables on the terminal: a comparison, from the same plain data that comparison.json holds, and numbers."""

from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class TextTable:
    """A table: its name, what it says, headings (the first is of the rows' names) and cells as text."""

    name: str
    about: str
    headings: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [" | ".join(["", *row, ""]).strip() for row in (self.headings, ["---"] * len(self.headings))]
        return "\n".join(lines + [" | ".join(["", *row, ""]).strip() for row in self.rows])


def print_table(numbers: TextTable, console: Console) -> None:
    """A table and what it says."""
    figures = table("", numbers.headings)
    for row in numbers.rows:
        figures.add_row(*row)
    console.print(numbers.about.replace("*", ""), highlight=False)
    console.print(figures)
    console.print()


def table(title: str, headings: list[str]) -> Table:
    """A table whose first column is text and whose others are figures."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        side: Literal["left", "right"] = "right" if made.columns else "left"
        made.add_column(heading, justify=side, no_wrap=not made.columns, overflow="fold")
    return made


def shown_spread(value: dict[str, Any], digits: int = 3) -> str:
    """Mean ± deviation, as ``Spread.as_dict`` has them."""
    deviation = value["deviation"]
    return f"{value['mean']:.{digits}f}" + ("" if deviation is None else f" ±{deviation:.{digits}f}")


def si(value: float) -> str:
    """1_234_567 -> 1.23 M."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {letter}"
    return f"{value:.0f}"
