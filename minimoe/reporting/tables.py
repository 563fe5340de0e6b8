"""Tables as plain text cells, printed on the terminal or rendered as Markdown; and SI prefixes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class TextTable:
    """A table of text cells."""

    name: str
    about: str
    """what the table shows, in a sentence or two"""
    headings: list[str]
    """the first is the heading of the rows' names"""
    rows: list[list[str]]

    @classmethod
    def from_rows(
        cls, name: str, about: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]
    ) -> "TextTable":
        """From rows of plain data; ``columns`` maps each heading to its format, such as "{loss:.3f}"."""
        cells = [[template.format(**row) for template in columns.values()] for row in rows]
        return cls(name, about, list(columns), cells)

    def markdown(self) -> str:
        lines = (self.headings, ["---"] * len(self.headings), *self.rows)
        return "\n".join(" | ".join(["", *line, ""]).strip() for line in lines)


def print_table(table: TextTable, console: Console) -> None:
    """Print what a table shows, and the table."""
    figures = rich_table("", table.headings)
    for row in table.rows:
        figures.add_row(*row)
    console.print(table.about.replace("*", ""), highlight=False)
    console.print(figures)
    console.print()


def rich_table(title: str, headings: list[str]) -> Table:
    """An empty table for the terminal: text in the first column, right-aligned figures in the others."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        justify: Literal["left", "right"] = "right" if table.columns else "left"
        table.add_column(heading, justify=justify, no_wrap=not table.columns, overflow="fold")
    return table


def si(value: float) -> str:
    """A number with its SI prefix: 1_234_567 -> "1.23 M"."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {letter}"
    return f"{value:.0f}"
