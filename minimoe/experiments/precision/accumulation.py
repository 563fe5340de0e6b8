"""Claims about the running answer: what a sum in few bits loses, and how promotion repairs it.

Dimensions: K products in a sum.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.precision import E4M3, Accumulator, measure_error, round_to
from minimoe.reporting.figures import BLUE, GRAY, GREEN, VERMILLION

V3 = "DeepSeek-V3, arXiv 2412.19437"

WAYS = {
    "float32": Accumulator.fp32(),
    "tensor core, 14 bits": Accumulator.tensor_core(),
    "fp16": Accumulator.fp16(),
    "bf16": Accumulator.bf16(),
}

STYLES = {
    "float32": {"color": "black", "marker": "o", "linestyle": "-"},
    "tensor core, 14 bits": {"color": VERMILLION, "marker": "s", "linestyle": "--"},
    "promoted": {"color": BLUE, "marker": "D", "linestyle": "-"},
    "fp16": {"color": GREEN, "marker": "^", "linestyle": "-."},
    "bf16": {"color": GRAY, "marker": "v", "linestyle": ":"},
}


def sum_errors(
    ways: dict[str, Accumulator], lengths: list[int], draw: Any, size: int
) -> dict[str, list[float]]:
    """The worst relative error of size × size sums of K products of E4M3 numbers, for each K."""
    errors: dict[str, list[float]] = {name: [] for name in ways}
    for k in lengths:
        generator = torch.Generator().manual_seed(0)
        a, b = (round_to(draw(*shape, generator=generator), E4M3) for shape in ((size, k), (k, size)))
        exact = a.double() @ b.double()
        for name, way in ways.items():
            errors[name].append(measure_error(way.matmul(a, b), exact).max_relative)
    return errors


def normal_plus_1(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator) + 1


def measure_long_answer(context: RunContext) -> Measured:
    lengths = context.pick([128, 512, 4096], [128, 512, 2048, 4096, 16384])
    size = context.pick(64, 128)
    errors = sum_errors(WAYS, lengths, torch.rand, size)
    at = lengths.index(4096)
    values = {
        f"{name} over float32": [errors[name][at] / errors["float32"][at]]
        for name in WAYS
        if name != "float32"
    }
    values |= {name: [100 * errors[name][at]] for name in WAYS}
    return Measured(
        values,
        {"lengths": lengths, "errors": errors},
        f"{size}×{size} sums of K products of the same E4M3 numbers, uniform in [0, 1): the worst relative "
        "error, by how the running sum is kept. The bounds are read at K = 4096.",
    )


def draw_sums(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    for name, errors in detail["errors"].items():
        axes.loglog(detail["lengths"], np.maximum(errors, 1e-8), label=name, **STYLES[name])
    if "limit" in detail:
        axes.axhline(detail["limit"], color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="K, products in a sum", ylabel="worst relative error")
    axes.set_xticks(detail["lengths"], [str(k) for k in detail["lengths"]])
    axes.minorticks_off()
    axes.legend()


def measure_promotion(context: RunContext) -> Measured:
    lengths = context.pick([512, 4096], [128, 512, 1024, 2048, 4096, 8192])
    size = context.pick(64, 128)
    ways = {
        "tensor core, 14 bits": Accumulator.tensor_core(),
        "promoted": Accumulator.tensor_core(promote_every=128),
    }
    draws = {"uniform [0, 1)": torch.rand, "normal + 1": normal_plus_1}
    found = {name: sum_errors(ways, lengths, draw, size) for name, draw in draws.items()}
    at = lengths.index(4096)
    plain = {name: 100 * errors["tensor core, 14 bits"][at] for name, errors in found.items()}
    mended = {name: 100 * errors["promoted"][at] for name, errors in found.items()}
    return Measured(
        {
            "plain": [min(plain.values())],
            "mended": [max(mended[name] / plain[name] for name in draws)],
            **{f"{name}, plain": [plain[name]] for name in draws},
            **{f"{name}, promoted": [mended[name]] for name in draws},
        },
        {"lengths": lengths, "errors": found["normal + 1"], "limit": 0.02},
        f"{size}×{size} sums of K products of E4M3 numbers, as Hopper's tensor core keeps them bit by bit, "
        "alone and added to a float32 total every 128 products; uniform numbers in [0, 1), and normal ones "
        "+ 1, which the picture shows (dotted: 2 %). Read at K = 4096.",
    )


ACCUMULATORS = Experiment(
    measure_long_answer,
    draw_sums,
    seconds=(3, 20),
    labels=dict.fromkeys(WAYS, "%"),
)


PROMOTION = Experiment(
    measure_promotion,
    draw_sums,
    seconds=(3, 15),
    labels={
        f"{draw}, {way}": "%" for draw in ("uniform [0, 1)", "normal + 1") for way in ("plain", "promoted")
    },
)
