"""Writes the recorded results, and what follows from the source tree, into the pages of the documentation.

    python scripts/render_docs.py            # rewrite what is out of date
    python scripts/render_docs.py --check    # change nothing; exit with 1 if a page is out of date

A page marks a block with ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; RENDERERS says how to fill it.
"""

import contextlib
import difflib
import io
import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from picture import picture
from rich.console import Console
from tree import ROOT, arrows, first_sentence, lines, mark, rooms

RESULTS = ROOT / "docs" / "results"
PICTURE = ROOT / "docs" / "development" / "rooms.svg"
BLOCK = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", re.S)

# For each technique, the files to read, in order; each can be understood without the later ones.
READING = {
    "mixture": [
        "moe/feed_forward.py",
        "moe/router.py",
        "moe/dispatch/reference.py",
        "moe/experts.py",
        "moe/layer.py",
        "moe/load_balancing.py",
    ],
    "fp8": [
        "precision/rounding.py",
        "precision/scales.py",
        "precision/quantize.py",
        "precision/recipe.py",
        "precision/matmul.py",
    ],
    "distillation": [
        "distill/config.py",
        "distill/losses.py",
        "distill/topk_loss.py",
        "distill/teachers.py",
        "distill/trainer.py",
    ],
}

# Claims with a page of results in docs/results/, and the heading there.
RESULTS_OF = {
    "less-accurate": "precision.md#rounding",
    "wide-answer": "precision.md#accumulation",
    "promotion": "precision.md#accumulation",
    "accurate-enough": "fp8-training.md",
    "outliers": "precision.md#outliers",
    "much-more-efficient": "moe-vs-dense.md",
    "struggled": "load-balance.md",
    "moving-data": "expert-parallelism.md",
    "small-from-big": "distillation.md",
    "copying-is-easy": "distillation.md",
    "the-bill": "model-cost.md",
    "fits-in-memory": "model-cost.md",
}


def record(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def fenced(text: str) -> str:
    return "```text\n" + "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n```"


def printed(show: Callable[[Any, Console], None], data: Any) -> str:
    """What a command prints of its data, 100 columns wide."""
    console = Console(record=True, width=100, file=io.StringIO())
    show(data, console)
    return fenced(console.export_text())


def comparison(name: str) -> str:
    from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE

    data = record(name)
    blocks = [f"{table.about}\n\n{table.markdown()}" for table in MOE_VS_DENSE.tables(data)]
    return "\n\n".join([*blocks, data["verdict"]])


def headline() -> str:
    """The main comparison in a few lines: bits per byte of each model at equal tokens, FLOPs and seconds."""
    data = record("compare-quick")
    out = [
        "| | parameters | active | equal tokens | equal FLOPs | equal seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in data["models"]:
        bits = (f"{row[axis]['all']['mean']:.3f}" for axis in ("tokens", "flops", "seconds"))
        out.append(f"| {row['model']} | {row['parameters']:,} | {row['active']:,} | {' | '.join(bits)} |")
    return "\n".join(out)


def distillation(name: str) -> str:
    from minimoe.experiments.distillation.report import print_distillation

    return printed(print_distillation, record(name))


def bench() -> str:
    from minimoe.bench.report import print_bench

    return printed(print_bench, record("bench"))


def cost() -> str:
    from minimoe.cli.commands.cost import Cost
    from minimoe.cost.report import print_costs

    return printed(print_costs, Cost(compare_with="llama-3.1-405b", keeping="deepseek-v3").estimates())


def claims() -> str:
    from minimoe.claims.report import verdict_table

    table = verdict_table(record("claims"))
    return f"{table.about}\n\n{table.markdown()}"


def verdicts() -> str:
    """A line per claim, for the README."""
    out = ["| id | claim | verdict |", "|---|---|---|"]
    out += [f"| `{entry['id']}` | {entry['statement']} | {entry['verdict']} |" for entry in record("claims")]
    return "\n".join(out)


def claim_sources() -> str:
    """For every claim the file of its bounds, the file of its experiment, and the page of results if any."""
    from minimoe.claims import CLAIMS, registry

    out = ["| claim | bounds | experiment | results |", "|---|---|---|---|"]
    bounds = {claim.id: part.__name__ for part in registry.PARTS for claim in part.CLAIMS}
    for claim in CLAIMS.values():
        if claim.experiment is not None:
            measure = claim.experiment.measure
            function = measure.func if isinstance(measure, partial) else measure
            files = (name.replace(".", "/") + ".py" for name in (bounds[claim.id], function.__module__))
            links = (f"[{file.removeprefix('minimoe/')}](../../{file})" for file in files)
            page = RESULTS_OF.get(claim.id)
            results = f"[{page.partition('.')[0]}]({page})" if page else ""
            out.append(f"| `{claim.id}` | {' | '.join(links)} | {results} |")
    return "\n".join(out)


def table(file: str, name: str) -> str:
    from minimoe.reporting.tables import TextTable

    found = {entry["name"]: entry for entry in record(file)["tables"]}
    return TextTable(**found[name]).markdown()


def digits(name: str) -> str:
    from minimoe.experiments.digits import experiment

    tables = experiment.digits(0).tables(record("digits"))
    return next(table.markdown() for table in tables if table.name == name)


def experiment_table(experiment: str, file: str, name: str) -> str:
    """A table that an experiment makes from a recorded run."""
    from minimoe.experiments.registry import EXPERIMENTS

    return next(t for t in EXPERIMENTS[experiment].tables(record(file)) if t.name == name).markdown()


def recorded_experiment(file: str) -> str:
    """The table of what ``minimoe experiment`` recorded."""
    from minimoe.experiments.registry import EXPERIMENTS

    data = record(file)
    return "\n\n".join(table.markdown() for table in EXPERIMENTS[data["experiment"]].tables(data["detail"]))


def distill_memory() -> str:
    from minimoe.bench.distill_memory import memory_table

    return memory_table(record("distill-memory")["found"]).markdown()


def text(name: str) -> str:
    return fenced((RESULTS / f"{name}.txt").read_text(encoding="utf-8"))


def room_map() -> str:
    """Every room and file with the first sentence of its docstring."""
    out = []
    for room, files in rooms().items():
        out += [f"### {room}", "", first_sentence(files[0].parent / "__init__.py"), ""]
        out += ["| file | what it does |", "|---|---|"]
        for path in files:
            if path.name != "__init__.py":
                name = path.relative_to(ROOT / "minimoe" / room).as_posix()
                kind = f" *({mark(path)})*" if mark(path) else ""
                href = f"../../{path.relative_to(ROOT).as_posix()}"
                out.append(f"| [{name}]({href}) | {first_sentence(path)}{kind} |")
        out.append("")
    return "\n".join(out).rstrip()


def import_matrix() -> str:
    """A row per importing room, a column per imported one: a dot where there is an arrow."""
    edges, order = arrows(), list(rooms())
    imported = [room for room in order if any(b == room for _, b in edges)]
    out = ["| imports → | " + " | ".join(imported) + " |", "|---" + "|:-:" * len(imported) + "|"]
    for room in reversed(order):
        cells = ("●" if (room, other) in edges else "" for other in imported)
        out.append(f"| **{room}** | " + " | ".join(cells) + " |")
    return "\n".join(out)


def reading(technique: str) -> str:
    """The files to read, with their lengths."""
    paths = [ROOT / "minimoe" / name for name in READING[technique]]
    out = ["| | file | lines | what it does |", "|---|---|---|---|"]
    for i, path in enumerate(paths, 1):
        name = path.relative_to(ROOT / "minimoe").as_posix()
        out.append(f"| {i} | [{name}](../minimoe/{name}) | {lines(path)} | {first_sentence(path)} |")
    return "\n".join([*out, f"| | **together** | **{sum(map(lines, paths))}** | |"])


def commands_help() -> str:
    """What ``minimoe COMMAND --help`` prints, 100 columns wide, for every command."""
    from minimoe.cli.commands import COMMANDS
    from minimoe.cli.main import main

    os.environ["COLUMNS"] = "100"
    found = []
    for name in COMMANDS:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([name, "--help"])
        summary = f"<summary><code>minimoe {name} --help</code></summary>"
        found.append(f'<details markdown="1">{summary}\n\n{fenced(out.getvalue())}\n\n</details>')
    return "\n\n".join(found)


RENDERERS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "verdicts": verdicts,
    "claims": claims,
    "claim-sources": claim_sources,
    "bench": bench,
    "cost": cost,
    "help": commands_help,
    "rooms": room_map,
    "imports": import_matrix,
    "distill-memory": distill_memory,
    **{name: partial(comparison, name) for name in ("compare-quick", "compare-standard")},
    **{name: partial(distillation, name) for name in ("distill-quick", "distill-scarce")},
    **{
        name: partial(recorded_experiment, name)
        for name in ("balance-quick", "fp8-training", "search-quick", "search-standard", "search-distill")
    },
    **{
        f"parallel-{name}": partial(experiment_table, experiment, "parallel", name)
        for name, experiment in {
            "bytes": "expert-parallel",
            "predicted": "expert-parallel",
            "speed": "expert-parallel-speed",
            "placement": "eplb",
        }.items()
    },
    **{
        f"precision-{name}": partial(table, "precision", name)
        for name in ("signal-to-noise", "rules-of-scale", "outliers", "sums", "products", "bounds")
    },
    **{name: partial(digits, name) for name in ("digits-100", "digits-897", "digits-unseen")},
    **{name: partial(text, name) for name in ("train-step", "moe-layer", "precision-speed")},
    **{f"reading-{name}": partial(reading, name) for name in READING},
}


def pages() -> list[Path]:
    """The README and the pages with rendered blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(page: str) -> str:
    """A page with its blocks rendered again. Raises KeyError for a block that has no renderer."""
    return BLOCK.sub(lambda block: f"{block[1]}{RENDERERS[block[2]]()}\n{block[3]}", page)


def outdated() -> dict[Path, tuple[str, str]]:
    """The files that differ from what would be rendered today: as they are, and as they should be."""
    should = {path: rendered(path.read_text(encoding="utf-8")) for path in pages()}
    should[PICTURE] = picture()
    found = {path: path.read_text(encoding="utf-8") if path.exists() else "" for path in should}
    return {path: (found[path], text) for path, text in should.items() if found[path] != text}


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    changed = outdated()
    for path, (now, then) in changed.items():
        name = path.relative_to(ROOT)
        diff = list(
            difflib.unified_diff(now.splitlines(), then.splitlines(), str(name), "rendered", n=0, lineterm="")
        )
        added = sum(line.startswith("+") for line in diff[2:])
        removed = sum(line.startswith("-") for line in diff[2:])
        print(f"{name}: {added} lines added, {removed} removed")
        if arguments:
            print("\n".join(diff[:24]))
        else:
            path.write_text(then, encoding="utf-8")
    if arguments and changed:
        print("out of date; run: python scripts/render_docs.py")
    return int(bool(arguments and changed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
