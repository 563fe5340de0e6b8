"""``minimoe bench``: is MoE, FP8 or distillation worth it on this machine, at your size."""

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
from minimoe.bench.suites import FULL, QUICK, Plan
from minimoe.bench.suites import cases as suite_cases
from minimoe.bench.summary import sentences, summarize
from minimoe.cli.console import console
from minimoe.cli.options import DebugOption, DeviceOptions, FolderOptions
from minimoe.distributed.errors import Interrupted
from minimoe.experiments.context import RunContext
from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE
from minimoe.experiments.presets import PRESETS
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine, pick_device
from minimoe.tools.run_dir import close_folder
from minimoe.training.progress import Terminal
from minimoe.version import __version__

SIZES = ("dim", "expert_dim", "n_experts", "top_k", "tokens", "matmul")


@dataclass(frozen=True)
class Bench(DebugOption, FolderOptions, DeviceOptions):
    """Measure whether MoE, FP8 or distillation is worth it on this machine, at your size.

    Results are compared before anything is timed. Prints a table and saves figures and bench.json.
    """

    suite: Annotated[Literal["moe", "fp8", "distill", "all"], tyro.conf.Positional] = "all"
    """suite of benchmarks to run"""
    quick: bool = False
    """small sizes, under 3 minutes; without it, also train the models of compare --preset quick"""
    dim: int | None = None
    """D, the layer's width, around which it is swept [default: 512, quick 256]"""
    expert_dim: int | None = None
    """H, expert width [default: 128, quick 64]"""
    n_experts: int | None = None
    """E, number of experts [default: 32]"""
    top_k: int | None = None
    """K, experts per token [default: 4]"""
    tokens: int | None = None
    """T, tokens per call of the layer [default: 256, quick 128]"""
    matmul: int | None = None
    """M, N and K of a matmul, and sides of a quantized matrix [default: 2048, quick 768]"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if available"""
    threads: int = 1
    """CPU threads; with one, times vary least on a shared machine"""

    def run(self) -> None:
        plan = self.plan()
        suites = get_args(Suite) if self.suite == "all" else (self.suite,)
        effort = measuring.QUICK if self.quick else measuring.FULL
        self.measure(suite_cases(plan, suites), plan, effort, train="moe" in suites and not self.quick)

    def plan(self) -> Plan:
        """The sizes to measure. Raises ValueError for invalid ones."""
        chosen = {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}
        return dataclasses.replace(QUICK if self.quick else FULL, **chosen)

    def measure(self, cases: Sequence[Case], plan: Plan, effort: Effort, *, train: bool) -> None:
        """Measure ``cases``, train if asked to, and write and print the results.

        Raises:
            Interrupted: on Ctrl-C; finished measurements are kept.
        """
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = pick_device(auto if self.device == "auto" else self.device)
        self.set_threads()
        out = self.folder("bench", *(["quick"] if self.quick else []))
        keep_freed_memory()  # as training does
        settings = {"suite": self.suite, "plan": asdict(plan), "effort": asdict(effort), "device": device,
                    "threads": self.threads, "cases": [case.key for case in cases]}  # fmt: skip
        self.open_folder(out, settings)
        start = time.perf_counter()
        try:
            peaks, records = run_cases(cases, torch.device(device), effort, out, console)
            training = self._train(out, device) if train else None
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
            "summary": summarize(records),
            "sentences": sentences(records),
            "training": training,
            "records": records,
        }
        write_atomically(out / "bench.json", json.dumps(data, indent=1) + "\n")
        figures = plot_bench(json.loads((out / "bench.json").read_text(encoding="utf-8")), out)
        close_folder(out)
        print_bench(data, console)
        names = ", ".join(["bench.json", *(path.name for path in figures)])
        console.print(f"\nWritten to {out}: {names}", soft_wrap=True)

    def _train(self, out: Path, device: str) -> dict[str, Any]:
        """One seed of the quick comparison: bits per byte at equal tokens, FLOPs and seconds."""
        context = RunContext(
            out / "compare", seeds=1, device=device, preset=PRESETS["quick"], named_folders=True,
            display=lambda title: Terminal(console, title),
        )  # fmt: skip
        return MOE_VS_DENSE.measure(context).detail
