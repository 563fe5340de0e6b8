"""[evidence] Crossover: from how many tokens on the MoE layer is faster than a dense one, as a sentence."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from minimoe.bench.layers import DENSE_ACTIVE, DENSE_TOTAL, DIRECTIONS, MOE

Record = dict[str, Any]

COMPARISONS = tuple((d, b) for d in DIRECTIONS for b in (DENSE_ACTIVE, DENSE_TOTAL))


def verdict(ratio: Record) -> Literal["faster", "slower", "even"]:
    """Of a ratio of times with its confidence interval; even if the interval contains 1."""
    if ratio["high"] < 1:
        return "faster"
    return "slower" if ratio["low"] > 1 else "even"


def layer_records(records: Iterable[Record], direction: str) -> list[Record]:
    """The layers' records in one direction, in float32 or else the first dtype in the alphabet."""
    rows = [r for r in records if r["group"] == f"layer, {direction}"]
    dtypes = {row["dtype"] for row in rows}
    chosen = "float32" if "float32" in dtypes else min(dtypes, default="")
    return [row for row in rows if row["dtype"] == chosen]


def token_sweeps(records: Iterable[Record], direction: str) -> dict[int, list[Record]]:
    """By E, the records of at least two T that differ in T alone, at the most frequent K, D and H."""
    rows = [row for row in layer_records(records, direction) if row["task"] == MOE]
    sizes = [tuple(row["shape"][letter] for letter in "KDH") for row in rows]
    usual = max(sizes, key=sizes.count, default=())
    by_experts: dict[int, list[Record]] = {}
    for row, size in zip(rows, sizes, strict=True):
        if size == usual:
            by_experts.setdefault(row["shape"]["E"], []).append(row)
    return {
        experts: sorted(sweep, key=lambda row: row["shape"]["T"])
        for experts, sweep in sorted(by_experts.items())
        if len(sweep) > 1
    }


def describe_crossovers(records: Sequence[Record], direction: str, baseline: str) -> str | None:
    """A sentence on where the MoE layer is faster than ``baseline``; None if no sweep was measured."""
    sweeps = token_sweeps(records, direction)
    if not sweeps:
        return None
    clauses = [f"with E = {experts} {describe_crossover(rows, baseline)}" for experts, rows in sweeps.items()]
    tokens = [row["shape"]["T"] for rows in sweeps.values() for row in rows]
    return f"Against {baseline}, {direction}, T from {min(tokens)} to {max(tokens)}: {'; '.join(clauses)}."


def describe_crossover(rows: Sequence[Record], baseline: str) -> str:
    """Where one sweep's MoE layer is faster than ``baseline``; rows are ordered by T."""
    points = [(row["shape"]["T"], row["against"][baseline]) for row in rows]
    won = [i for i, (_, ratio) in enumerate(points) if verdict(ratio) == "faster"]
    if len(won) == len(points):
        return "always faster"
    best_T, best = min(points, key=lambda point: point[1]["ratio"])
    if not won:
        return f"never faster (at best {best['ratio']:.2f}, at T = {best_T})"
    first, last = won[0], won[-1]
    if won == list(range(first, len(points))):
        before_T, before = points[first - 1]
        T, ratio = points[first]
        return f"faster from T = {T} on ({ratio['ratio']:.2f}; {before['ratio']:.2f} at T = {before_T})"
    if won == list(range(last + 1)):
        after_T, after = points[last + 1]
        T, ratio = points[last]
        return f"faster up to T = {T} ({ratio['ratio']:.2f}; {after['ratio']:.2f} at T = {after_T})"
    return f"faster only at T = {', '.join(str(points[i][0]) for i in won)} of {len(points)} measured"
