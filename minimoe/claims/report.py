"""The ledger on the terminal, from the same plain data that its JSON holds."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from minimoe.claims.claim import FAILS, HOLDS, NOT_BUILT, OPEN

PLURAL = {HOLDS: "hold here", FAILS: "do not hold here", OPEN: OPEN, NOT_BUILT: NOT_BUILT}

STYLES = {HOLDS: "green", FAILS: "red", OPEN: "yellow", NOT_BUILT: "dim"}


def print_ledger(entries: list[dict[str, Any]], console: Console) -> None:
    """Every claim with its verdict, and below it every bound with what was measured."""
    table = Table(show_header=True, pad_edge=False)
    table.add_column("claim, and what it stands on", overflow="fold")
    table.add_column("measured", justify="right", overflow="fold")
    table.add_column("bound", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for entry in entries:
        verdict = entry["verdict"]
        table.add_section()
        table.add_row(f"[bold]{entry['id']}[/bold]: [{STYLES[verdict]}]{verdict}[/{STYLES[verdict]}]")
        if not entry["bound"]:
            table.add_row(f"  {entry['reason']}", style="dim")
        for bound in entry["bound"]:
            measured = entry["measured"].get(bound["figure"], {"shown": ""})["shown"]
            table.add_row(f"  {bound['what']}", measured, bound["limit"], bound["outcome"] or "")
    console.print(table)
    console.print(summary(entries), highlight=False)


def summary(entries: list[dict[str, Any]]) -> str:
    """How many claims got which verdict, and on what they were tried."""
    counted = Counter(entry["verdict"] for entry in entries)
    parts = [f"{counted[v]} {words if counted[v] > 1 else v}" for v, words in PLURAL.items() if counted[v]]
    machine, seconds = entries[0]["machine"], sum(entry["seconds"] for entry in entries)
    claims = "1 claim" if len(entries) == 1 else f"{len(entries)} claims"
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"{claims}: {', '.join(parts)}. Tried on {machine['processor']}, {threads}, "
        f"torch {machine['torch']}, in {duration(seconds)} ({entries[0]['size']})."
    )


def duration(seconds: float) -> str:
    """ "8 s", "3 min 20 s" """
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 0.1 else "0.1 s"
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"


def markdown(entries: list[dict[str, Any]]) -> str:
    """A row a claim: what it says, what decided, the verdict."""
    lines = ["| claim | what was measured | verdict |", "|---|---|---|"]
    for entry in entries:
        said = entry["reason"]
        if entry["verdict"] == HOLDS:
            figures = (entry["measured"][bound["figure"]]["shown"] for bound in entry["bound"])
            said = "; ".join(
                f"{bound['what']} {figure} ({bound['limit']})"
                for bound, figure in zip(entry["bound"], figures, strict=True)
            )
        lines.append(f"| `{entry['id']}` {entry['statement']} | {said} | **{entry['verdict']}** |")
    return "\n".join(lines)
