"""What the records amount to: geometric means by group, and sentences in words that the figures choose."""

import math
import statistics
from collections.abc import Iterable, Sequence

from minimoe.bench.crossover import PANELS, Record, crossovers
from minimoe.bench.layers import DENSE_ACTIVE, DENSE_TOTAL


def geometric_mean(values: Sequence[float]) -> float:
    """Of ratios: twice as long and half as long make 1. Raises ValueError without any, or for one <= 0."""
    if not values or min(values) <= 0:
        raise ValueError(f"a geometric mean needs ratios above 0, and at least one; there are {list(values)}")
    return math.exp(statistics.fmean(math.log(value) for value in values))


def summarize(records: Iterable[Record]) -> list[Record]:
    """A dictionary for each suite, group, dtype, candidate and baseline, in the order of the records: the
    geometric mean of its rows' ratios, the least and the largest, how many say they are noisy, what the
    roofline predicts, and the memory's ratio. Baselines are not compared with each other."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record["task"] in record["against"]:
            continue
        for rival, ratio in record["against"].items():
            key = (record["suite"], record["group"], record["dtype"], record["task"], rival)
            groups.setdefault(key, []).append(ratio | {"share": record["share_of_peak"]})
    return [
        dict(zip(("suite", "group", "dtype", "task", "against"), key, strict=True)) | _row(ratios)
        for key, ratios in groups.items()
    ]


def _row(ratios: list[Record]) -> Record:
    times = [ratio["ratio"] for ratio in ratios if ratio["ratio"] is not None]
    return {
        "rows": len(ratios),
        "noisy": sum(bool(ratio["noisy"]) for ratio in ratios),
        "mean": geometric_mean(times) if times else None,
        "least": min(times, default=None),
        "largest": max(times, default=None),
        "predicted": _mean_of(ratios, "predicted"),
        "memory": _mean_of(ratios, "memory"),
        "share_of_peak": _mean_of(ratios, "share"),
    }


def _mean_of(ratios: list[Record], key: str) -> float | None:
    values = [ratio[key] for ratio in ratios if ratio[key] is not None]
    return geometric_mean(values) if values else None


def sentences(records: Sequence[Record]) -> dict[str, list[str]]:
    """What each suite's figures say, for and against."""
    rows = summarize(records)
    found = {
        "moe": _moe(rows) + [said for pair in PANELS if (said := crossovers(records, *pair))],
        "fp8": _fp8(rows),
        "distill": _distill(rows),
    }
    return {suite: said for suite, said in found.items() if said}


def _pick(rows: list[Record], suite: str, start: str, against: str | None = None) -> list[Record]:
    return [
        row
        for row in rows
        if row["suite"] == suite and row["group"].startswith(start) and row["mean"] is not None
        and against in (None, row["against"])
    ]  # fmt: skip


def _over(rows: list[Record]) -> str:
    """The geometric mean over all that the rows are means of."""
    count = sum(row["rows"] for row in rows)
    mean = math.exp(sum(row["rows"] * math.log(row["mean"]) for row in rows) / count)
    noisy = "~" if any(row["noisy"] for row in rows) else ""
    return f"{noisy}{mean:.2f}"


def _moe(rows: list[Record]) -> list[str]:
    said = []
    for start, work in (("layer", "As a layer"), ("training", "In a training step"), ("writing", "Writing")):
        active, total = (_pick(rows, "moe", start, rival) for rival in (DENSE_ACTIVE, DENSE_TOTAL))
        if active and total:
            said.append(
                f"{work} the mixture took {_over(active)} times as long as dense with its active parameters "
                f"and {_over(total)} times as long as dense with its total parameters "
                f"({_means(sum(row['rows'] for row in active))})."
            )
    return said


def _means(count: int) -> str:
    return "1 row" if count == 1 else f"geometric means of {count} rows"


def _fp8(rows: list[Record]) -> list[str]:
    said = []
    for start, what in (
        ("matmul", "Of the products"),
        ("linear", "Of the layers"),
        ("training", "Of the steps"),
    ):
        found = _pick(rows, "fp8", start, "float32")
        if found:
            best, worst = (pick(found, key=lambda row: row["mean"]) for pick in (min, max))
            one = f"{best['task']} was the fastest, {_over([best])} times as long as float32"
            if start == "matmul":
                half = next(r for r in _pick(rows, "fp8", start, "bf16") if r["task"] == best["task"])
                one += f" and {_over([half])} times as long as bf16"
            said.append(f"{what} in 8 bits {one}; {worst['task']} the slowest, {_over([worst])} times "
                        f"({_means(best['rows'])}).")  # fmt: skip
    held = [r for r in rows if r["suite"] == "fp8" and r["group"] == "weights" and r["against"] == "float32"]
    said += [
        f"The models' weights as 8-bit codes took {row['memory']:.2f} of float32's bytes." for row in held
    ]
    return said


def _distill(rows: list[Record]) -> list[str]:
    clauses = []
    for start, work in (
        ("reading", "to read"),
        ("writing", "to write"),
        ("training step", "for a training step"),
    ):
        if found := _pick(rows, "distill", start):
            clauses.append(f"{_over(found)} of its teacher's time {work}")
    said = [f"The student took {', '.join(clauses)}."] if clauses else []
    if found := _pick(rows, "distill", "step with"):
        said.append(f"A step on the teacher's logits took {_over(found)} times as long as a step alone.")
    if found := _pick(rows, "distill", "loss"):
        said.append(
            f"The loss in chunks took {_over(found)} times as long as from all logits at once and kept "
            f"{found[0]['memory']:.3f} of the bytes for the backward pass."
        )
    return said
