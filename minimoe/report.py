"""A comparison on the terminal and as JSON."""

from typing import Any

from rich.console import Console
from rich.table import Table

from minimoe.results import Comparison, Spread


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Two tables, one of what the models are and one of what they reached, then the verdict."""
    rows = comparison.rows()
    seeds = comparison.seeds
    about = "1 seed" if seeds == 1 else f"{seeds} seeds, mean ± standard deviation"

    sizes = Table(title="The models", title_justify="left", title_style="bold")
    for heading in ("", "parameters", "active a token", "FLOPs a token*", "tokens/s", "MaxVio"):
        sizes.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        violation = row["max_violation"]
        sizes.add_row(
            row["model"],
            f"{row['parameters']:,}",
            f"{row['active']:,}",
            _si(row["flops_per_token"]),
            f"{row['tokens_per_second'].mean:,.0f}",
            "" if violation is None else violation.text(2),
        )
    console.print(sizes)
    console.print("* training, forward and backward\n", style="dim")

    reached = Table(
        title=f"Validation bits per byte, lower is better ({about})",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("", "equal tokens", "equal FLOPs", "equal seconds"):
        reached.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        reached.add_row(row["model"], *(row[axis].text() for axis in ("tokens", "flops", "seconds")))
    console.print(reached)

    domains = Table(title="The same by domain, at equal tokens", title_justify="left", title_style="bold")
    names = list(rows[0]["domains"])
    for heading in ("", *names):
        domains.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        domains.add_row(row["model"], *(row["domains"][name].text() for name in names))
    console.print(domains)
    console.print(f"\n{comparison.verdict()}")


def as_json(comparison: Comparison, about: dict[str, Any]) -> dict[str, Any]:
    """The same as plain data, the curves included."""
    return {
        **about,
        "models": [_plain(row) for row in comparison.rows()],
        "verdict": comparison.verdict(),
        "curves": {
            name: [
                {
                    **{axis: values.tolist() for axis, values in curve.spent.items()},
                    "bits_per_byte": curve.bits_per_byte.tolist(),
                }
                for curve in curves
            ]
            for name, curves in comparison.curves.items()
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return {"mean": value.mean, "deviation": value.deviation}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _si(value: float) -> str:
    """1,234,567 -> 1.23 M."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {letter}"
    return f"{value:.0f}"
