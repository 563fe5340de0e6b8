"""[evidence] Summary of benchmark records: geometric means by group, and sentences that follow from them."""

import math
import statistics
from collections.abc import Iterable, Sequence

from minimoe.bench.crossover import COMPARISONS, Record, describe_crossovers
from minimoe.bench.layers import DENSE_ACTIVE, DENSE_TOTAL


def geometric_mean(values: Sequence[float]) -> float:
    """Of ratios: that of 2 and 1/2 is 1. Raises ValueError if there are none, or one is not above 0."""
    if not values or min(values) <= 0:
        raise ValueError(f"a geometric mean needs at least one ratio, and all above 0, not {list(values)}")
    return math.exp(statistics.fmean(math.log(value) for value in values))


def summarize(records: Iterable[Record]) -> list[Record]:
    """One dictionary per suite, group, dtype, candidate and baseline, in the order of the records: geometric
    mean, least and largest of its rows' ratios, number of noisy rows, the roofline's prediction, and the
    ratio of memory. Baselines are not compared with each other."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        baselines = {} if record["task"] in record["against"] else record["against"]
        for baseline, ratio in baselines.items():
            key = (record["suite"], record["group"], record["dtype"], record["task"], baseline)
            groups.setdefault(key, []).append(ratio | {"share_of_peak": record["share_of_peak"]})
    return [
        dict(zip(("suite", "group", "dtype", "task", "against"), key, strict=True)) | _row(ratios)
        for key, ratios in groups.items()
    ]


def _row(ratios: list[Record]) -> Record:
    times = [ratio["ratio"] for ratio in ratios if ratio["ratio"] is not None]
    return {
        "rows": len(ratios),
        "noisy": sum(bool(ratio["noisy"]) for ratio in ratios),
        "mean": _mean_of(ratios, "ratio"),
        "least": min(times, default=None),
        "largest": max(times, default=None),
        **{key: _mean_of(ratios, key) for key in ("predicted", "memory", "share_of_peak")},
    }


def _mean_of(ratios: list[Record], key: str) -> float | None:
    values = [ratio[key] for ratio in ratios if ratio[key] is not None]
    return geometric_mean(values) if values else None


def sentences(records: Sequence[Record]) -> dict[str, list[str]]:
    """What each suite's figures show."""
    rows = summarize(records)
    crossovers = (describe_crossovers(records, *comparison) for comparison in COMPARISONS)
    moe = _moe(rows) + [sentence for sentence in crossovers if sentence]
    by_suite = {"moe": moe, "fp8": _fp8(rows), "distill": _distill(rows)}
    return {suite: suite_sentences for suite, suite_sentences in by_suite.items() if suite_sentences}


def _timed(rows: list[Record], suite: str, group: str, against: str | None = None) -> list[Record]:
    """Timed rows of the groups whose names start with ``group``."""
    return [
        row
        for row in rows
        if row["suite"] == suite and row["group"].startswith(group) and row["mean"] is not None
        and against in (None, row["against"])
    ]  # fmt: skip


def _overall(rows: list[Record]) -> str:
    """The geometric mean over the rows behind all of these means; ~ if any is noisy."""
    count = sum(row["rows"] for row in rows)
    mean = math.exp(sum(row["rows"] * math.log(row["mean"]) for row in rows) / count)
    return f"{'~' if any(row['noisy'] for row in rows) else ''}{mean:.2f}"


def _basis(count: int) -> str:
    return "1 row" if count == 1 else f"geometric means of {count} rows"


def _moe(rows: list[Record]) -> list[str]:
    result = []
    places = {"layer": "As a layer", "training": "In a training step", "gen": "In generation"}
    for group, place in places.items():
        active, total = (_timed(rows, "moe", group, rival) for rival in (DENSE_ACTIVE, DENSE_TOTAL))
        if active and total:
            result.append(
                f"{place}, the MoE took {_overall(active)} times as long as a dense network with its active "
                f"parameters and {_overall(total)} times as long as one with its total parameters "
                f"({_basis(sum(row['rows'] for row in active))})."
            )
    return result


def _fp8(rows: list[Record]) -> list[str]:
    result = []
    for group, what in {"matmul": "matmul", "linear": "linear layer", "training": "training step"}.items():
        candidates = _timed(rows, "fp8", group, "float32")
        if candidates:
            best, worst = (pick(candidates, key=lambda row: row["mean"]) for pick in (min, max))
            times = f"{_overall([best])} times as long as float32"
            if group == "matmul":
                half = next(r for r in _timed(rows, "fp8", group, "bf16") if r["task"] == best["task"])
                times += f" and {_overall([half])} times as long as bf16"
            result.append(
                f"The fastest 8-bit {what} was {best['task']}, which took {times}; the slowest was "
                f"{worst['task']}, {_overall([worst])} times as long as float32 ({_basis(best['rows'])})."
            )
    result += [
        f"Model weights stored as 8-bit codes took {row['memory']:.2f} of the bytes of float32."
        for row in rows
        if row["suite"] == "fp8" and row["group"] == "weights" and row["against"] == "float32"
    ]
    return result


def _distill(rows: list[Record]) -> list[str]:
    places = {"forward": "a forward pass", "gen": "generation", "training": "a training step"}
    clauses = [
        f"{_overall(timed)} in {place}"
        for group, place in places.items()
        if (timed := _timed(rows, "distill", group))
    ]
    result = [f"Of its teacher's time, the student took {', '.join(clauses)}."] if clauses else []
    if timed := _timed(rows, "distill", "distillation step"):
        result.append(
            f"A training step on the teacher's logits took {_overall(timed)} times as long as one on labels."
        )
    if timed := _timed(rows, "distill", "chunked loss"):
        result.append(
            f"The chunked loss took {_overall(timed)} times as long as the loss on all logits at once and "
            f"kept {timed[0]['memory']:.3f} of its bytes for the backward pass."
        )
    return result
