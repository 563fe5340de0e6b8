"""Tables on the terminal: a comparison, from the same plain data that comparison.json holds, and numbers."""

from typing import Any

from rich.console import Console

from minimoe.experiments.curves import AXES
from minimoe.reporting.statistics import describe_seeds, format_spread
from minimoe.reporting.tables import rich_table, si

AXIS_TITLES = {"tokens": "at equal tokens", "flops": "at equal FLOPs", "seconds": "at equal seconds"}


def print_comparison(data: dict[str, Any], console: Console) -> None:
    """What the models are, what they reached (over all domains and in each), and the verdict."""
    rows = data["models"]

    sizes = rich_table("The models", ["", "parameters", "active", "FLOPs/token*", "tokens/s", "MaxVio"])
    for row in rows:
        violation = row["max_violation"]
        sizes.add_row(
            row["model"],
            f"{row['parameters']:,}",
            f"{row['active']:,}",
            si(row["flops_per_token"]),
            f"{row['tokens_per_second']['mean']:,.0f}",
            "" if violation is None else format_spread(violation, ".2f"),
        )
    console.print(sizes)
    console.print("* in training: forward and backward\n", style="dim")

    domains = list(rows[0]["tokens"])
    reached = rich_table(
        f"Validation bits per byte, lower is better ({describe_seeds(data['seeds'])})", ["", *domains]
    )
    for axis in AXES:
        reached.add_row(AXIS_TITLES[axis], style="bold")
        for row in rows:
            reached.add_row(
                f"  {row['model']}", *(format_spread(row[axis][domain], ".3f") for domain in domains)
            )
    console.print(reached)
    console.print(f"\n{data['verdict']}", highlight=False)
