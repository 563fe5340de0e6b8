"""Tables on the terminal: a comparison, from the same plain data that comparison.json holds, and numbers."""

from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from minimoe.numbers import Numbers
from minimoe.results import AXES

AXIS_TITLES = {"tokens": "at equal tokens", "flops": "at equal FLOPs", "seconds": "at equal seconds"}


def print_comparison(data: dict[str, Any], console: Console) -> None:
    """What the models are, what they reached (over all domains and in each), and the verdict."""
    rows = data["models"]
    seeds = data["seeds"]
    about = "1 seed" if seeds == 1 else f"{seeds} seeds, mean ±standard deviation"

    sizes = table("The models", ["", "parameters", "active", "FLOPs/token*", "tokens/s", "MaxVio"])
    for row in rows:
        violation = row["max_violation"]
        sizes.add_row(
            row["model"],
            f"{row['parameters']:,}",
            f"{row['active']:,}",
            si(row["flops_per_token"]),
            f"{row['tokens_per_second']['mean']:,.0f}",
            "" if violation is None else shown_spread(violation, 2),
        )
    console.print(sizes)
    console.print("* in training: forward and backward\n", style="dim")

    domains = list(rows[0]["tokens"])
    reached = table(f"Validation bits per byte, lower is better ({about})", ["", *domains])
    for axis in AXES:
        reached.add_row(AXIS_TITLES[axis], style="bold")
        for row in rows:
            reached.add_row(f"  {row['model']}", *(shown_spread(row[axis][domain]) for domain in domains))
    console.print(reached)
    console.print(f"\n{data['verdict']}", highlight=False)


def print_numbers(numbers: Numbers, console: Console) -> None:
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
