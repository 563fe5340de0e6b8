"""[evidence] The ledger as a terminal table and as a Markdown table, from the plain data in its JSON."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from minimoe.claims.claim import FAILS, HOLDS, NOT_BUILT, OPEN
from minimoe.reporting.tables import TextTable

PLURAL = {HOLDS: "hold here", FAILS: "do not hold here", OPEN: OPEN, NOT_BUILT: NOT_BUILT}

STYLES = {HOLDS: "green", FAILS: "red", OPEN: "yellow", NOT_BUILT: "dim"}


def print_ledger(entries: list[dict[str, Any]], console: Console) -> None:
    """Each claim with its verdict; below it, each bound with the measured figure."""
    table = Table(show_header=True, pad_edge=False)
    table.add_column("claim and bounds", overflow="fold")
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
    """How many claims got each verdict, and on what machine."""
    counts = Counter(entry["verdict"] for entry in entries)
    parts = [f"{counts[v]} {words if counts[v] > 1 else v}" for v, words in PLURAL.items() if counts[v]]
    machine, seconds = entries[0]["machine"], sum(entry["seconds"] for entry in entries)
    claims = "1 claim" if len(entries) == 1 else f"{len(entries)} claims"
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"{claims}: {', '.join(parts)}. Measured on {machine['processor']}, {threads}, "
        f"torch {machine['torch']}, in {duration(seconds)} ({entries[0]['size']})."
    )


def duration(seconds: float) -> str:
    """ "8 s", "3 min 20 s" """
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 0.1 else "0.1 s"
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"


def verdict_table(entries: list[dict[str, Any]]) -> TextTable:
    """A row per claim: statement, the figures that decided, verdict."""
    rows = []
    for entry in entries:
        reason = entry["reason"]
        if entry["verdict"] == HOLDS:
            reason = "; ".join(
                f"{bound['what']} {entry['measured'][bound['figure']]['shown']} ({bound['limit']})"
                for bound in entry["bound"]
            )
        rows.append([f"`{entry['id']}` {entry['statement']}", reason, f"**{entry['verdict']}**"])
    return TextTable("claims", summary(entries), ["claim", "measured", "verdict"], rows)
