"""Where the mixture's layer overtakes dense: the rows that differ in T alone, and a sentence about them."""

from collections.abc import Iterable, Sequence
from typing import Any

from minimoe.bench.layers import BOTH, DENSE_ACTIVE, DENSE_TOTAL, FORWARD, MIXTURE

Record = dict[str, Any]

PANELS = tuple((way, rival) for way in (FORWARD, BOTH) for rival in (DENSE_ACTIVE, DENSE_TOTAL))


def outcome(ratio: Record) -> str:
    """Of a ratio with its interval: faster, slower, or even where 1 lies within."""
    if ratio["high"] < 1:
        return "faster"
    return "slower" if ratio["low"] > 1 else "even"


def layer_rows(records: Iterable[Record], way: str) -> list[Record]:
    """The mixture's rows of the layer in one direction, in float32 or else the first dtype there is."""
    found = [r for r in records if r["task"] == MIXTURE and r["group"] == f"layer, {way}"]
    dtypes = {record["dtype"] for record in found}
    chosen = "float32" if "float32" in dtypes else min(dtypes, default="")
    return [record for record in found if record["dtype"] == chosen]


def crossings(records: Iterable[Record], way: str) -> dict[int, list[Record]]:
    """Rows that differ in T alone, by E: those of the commonest K, D and H, each E with two T at least."""
    rows = layer_rows(records, way)
    if not rows:
        return {}
    sizes = [tuple(row["shape"][letter] for letter in "KDH") for row in rows]
    usual = max(sizes, key=sizes.count)
    by_experts: dict[int, list[Record]] = {}
    for row, size in zip(rows, sizes, strict=True):
        if size == usual:
            by_experts.setdefault(row["shape"]["E"], []).append(row)
    return {
        experts: sorted(found, key=lambda row: row["shape"]["T"])
        for experts, found in sorted(by_experts.items())
        if len(found) > 1
    }


def crossovers(records: Sequence[Record], way: str, rival: str) -> str | None:
    """Where the mixture's layer beats dense: a sentence, or None where that was not measured."""
    found = crossings(records, way)
    if not found:
        return None
    clauses = [f"with E = {experts} {crossover(rows, rival)}" for experts, rows in found.items()]
    tokens = [row["shape"]["T"] for rows in found.values() for row in rows]
    return f"Against {rival}, {way}, T from {min(tokens)} to {max(tokens)}: {'; '.join(clauses)}."


def crossover(rows: Sequence[Record], rival: str) -> str:
    """Of rows in the order of T: where the mixture is faster than ``rival``, as far as it was measured."""
    found = [(row["shape"]["T"], row["against"][rival]) for row in rows]
    outcomes = [outcome(ratio) for _, ratio in found]
    won = [place for place, said in enumerate(outcomes) if said == "faster"]
    if len(won) == len(found):
        return "always faster"
    best_T, best = min(found, key=lambda pair: pair[1]["ratio"])
    if not won:
        return f"never faster (at best {best['ratio']:.2f}, at T = {best_T})"
    if won == list(range(won[0], len(found))):
        before_T, before = found[won[0] - 1]
        T, ratio = found[won[0]]
        return f"faster from T = {T} on ({ratio['ratio']:.2f}; {before['ratio']:.2f} at T = {before_T})"
    if won == list(range(won[-1] + 1)):
        after_T, after = found[won[-1] + 1]
        T, ratio = found[won[-1]]
        return f"faster up to T = {T} ({ratio['ratio']:.2f}; {after['ratio']:.2f} at T = {after_T})"
    return f"faster at T = {', '.join(str(found[place][0]) for place in won)} alone of {len(found)} tried"
