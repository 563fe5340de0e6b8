"""The command ``minimoe bench``."""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import tyro

from minimoe.bench import measure as measuring
from minimoe.bench.case import Case, Suite
from minimoe.bench.figures import plot_bench
from minimoe.bench.measure import Effort
from minimoe.bench.report import print_bench
from minimoe.bench.runner import run_cases
from minimoe.bench.suites import FULL, QUICK, Plan, cases
from minimoe.bench.summary import sentences, summarize
from minimoe.cli.console import console, prepare
from minimoe.experiments.context import RunContext
from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE
from minimoe.experiments.presets import PRESETS
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.tools.run_dir import close_folder, open_folder
from minimoe.training.loop import Interrupted
from minimoe.training.progress import Terminal
from minimoe.version import __version__

SIZES = ("dim", "expert_dim", "n_experts", "top_k", "tokens", "matmul")


@dataclass(frozen=True)
class Bench:
    """Measure on this machine, at your size, whether a mixture, 8 bits or a student is worth it.

    Everything is checked for the same result before it is timed. Prints a table and saves figures and
    bench.json.
    """

    suite: Annotated[Literal["moe", "fp8", "distill", "all"], tyro.conf.Positional] = "all"
    """what to measure"""
    quick: bool = False
    """small sizes, under 3 minutes; without it also trains the quick comparison, by loss"""
    dim: int | None = None
    """D, the layer's width; sweeps go from it [default: 512, quick 256]"""
    expert_dim: int | None = None
    """H, the width of an expert [default: 128, quick 64]"""
    n_experts: int | None = None
    """E [default: 32]"""
    top_k: int | None = None
    """K, experts a token [default: 4]"""
    tokens: int | None = None
    """T, tokens that a layer sees at a time [default: 256, quick 128]"""
    matmul: int | None = None
    """M, N and K of a product, sides of what is quantised [default: 2048, quick 768]"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is cuda where there is one"""
    threads: int = 1
    """CPU threads; one varies least on a machine that others use too"""
    out: Path | None = None
    """folder for records, table and figures [default: runs/bench, or runs/bench-quick]"""
    resume: bool = False
    """go on with the run that was stopped in --out"""
    overwrite: bool = False
    """replace the run in --out"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> None:
        plan = self.plan()
        suites = get_args(Suite) if self.suite == "all" else (self.suite,)
        effort = measuring.QUICK if self.quick else measuring.FULL
        self.measure(cases(plan, suites), plan, effort, by_loss="moe" in suites and not self.quick)

    def plan(self) -> Plan:
        """The sizes to measure. Raises ValueError for what cannot be."""
        chosen = {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}
        return dataclasses.replace(QUICK if self.quick else FULL, **chosen)

    def measure(self, wanted: Sequence[Case], plan: Plan, effort: Effort, *, by_loss: bool) -> None:
        """Measure some cases, and with ``by_loss`` train, all below --out; then show what came out.

        Raises:
            Interrupted: Ctrl-C; what was measured is kept.
        """
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = prepare(auto if self.device == "auto" else self.device, self.threads)
        out = self.out or Path("runs") / ("bench-quick" if self.quick else "bench")
        keep_freed_memory()  # as training does
        settings = {"suite": self.suite, "plan": asdict(plan), "effort": asdict(effort), "device": device,
                    "threads": self.threads, "cases": [case.key for case in wanted]}  # fmt: skip
        open_folder(out, settings, resume=self.resume, overwrite=self.overwrite)
        start = time.perf_counter()
        try:
            peaks, found = run_cases(wanted, torch.device(device), effort, out, console)
            training = self._train(out, device) if by_loss else None
        except KeyboardInterrupt:
            raise Interrupted from None
        data = {
            "suite": self.suite,
            "quick": self.quick,
            "version": __version__,
            "machine": describe_machine(device),
            "peaks": asdict(peaks),
            "effort": asdict(effort),
            "size": plan.shape,
            "seconds": time.perf_counter() - start,
            "summary": summarize(found),
            "sentences": sentences(found),
            "training": training,
            "records": found,
        }
        write_atomically(out / "bench.json", json.dumps(data, indent=1) + "\n")
        figures = plot_bench(json.loads((out / "bench.json").read_text(encoding="utf-8")), out)
        close_folder(out)
        print_bench(data, console)
        names = ", ".join(path.name for path in figures)
        console.print(f"\nData: {out / 'bench.json'}   Figures there: {names}", soft_wrap=True)

    def _train(self, out: Path, device: str) -> dict[str, Any]:
        """The quick comparison, one seed: bits per byte at equal tokens, operations and seconds."""
        context = RunContext(
            out / "compare", seeds=1, device=device, preset=PRESETS["quick"], named_folders=True,
            display=lambda title: Terminal(console, title),
        )  # fmt: skip
        return MOE_VS_DENSE.measure(context).detail
