"""[evidence] Accumulation error: long sums in float32, fp16, bf16 and a tensor core, also with promotion.

Dimensions: K products per sum.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured
from minimoe.precision import E4M3, Accumulator, measure_error, round_to
from minimoe.reporting.figures import BLUE, GRAY, GREEN, VERMILLION
from minimoe.reporting.tables import TextTable

TENSOR_CORE, PROMOTED = "tensor core, 14 bits", "promoted every 128"

ACCUMULATORS = {
    "float32": Accumulator.fp32(),
    TENSOR_CORE: Accumulator.tensor_core(),
    PROMOTED: Accumulator.tensor_core(promote_every=128),
    "fp16": Accumulator.fp16(),
    "bf16": Accumulator.bf16(),
}

SHORT = (TENSOR_CORE, "fp16", "bf16")  # sums with fewer bits than float32

INPUTS: dict[str, Callable[..., Tensor]] = {
    "uniform [0, 1)": torch.rand,
    "normal + 1": lambda *shape, generator: torch.randn(*shape, generator=generator) + 1,
    "normal": torch.randn,
}

POSITIVE = ("uniform [0, 1)", "normal + 1")  # of positive mean: their sums do not cancel

STYLES = {
    "float32": {"color": "black", "marker": "o", "linestyle": "-"},
    TENSOR_CORE: {"color": VERMILLION, "marker": "s", "linestyle": "--"},
    PROMOTED: {"color": BLUE, "marker": "D", "linestyle": "-"},
    "fp16": {"color": GREEN, "marker": "^", "linestyle": "-."},
    "bf16": {"color": GRAY, "marker": "v", "linestyle": ":"},
}

TABLE_LENGTHS = (512, 4096, 16384)


def sum_errors(
    lengths: Sequence[int], size: int, seed: int = 0, inputs: Sequence[str] = tuple(INPUTS)
) -> dict[str, dict[str, list[float]]]:
    """Largest error of size × size sums of K products of E4M3 numbers: by inputs, by accumulator, for each K.

    It is relative to the sum; of normal numbers, whose sums cancel, to the sum of magnitudes.
    """
    errors: dict[str, dict[str, list[float]]] = {x: {name: [] for name in ACCUMULATORS} for x in inputs}
    for kind, of_kind in errors.items():
        for k in lengths:
            generator = torch.Generator().manual_seed(seed)
            a, b = (round_to(INPUTS[kind](*s, generator=generator), E4M3) for s in ((size, k), (k, size)))
            exact = a.double() @ b.double()  # exact in float64 up to K = 171,196
            for name, accumulator in ACCUMULATORS.items():
                error = measure_error(accumulator.matmul(a, b), exact, a=a, b=b)
                of_kind[name].append(error.backward if kind == "normal" else error.max_relative)
    return errors


def measure(context: RunContext) -> Measured:
    lengths = context.pick([128, 512, 4096], [128, 512, 2048, 4096, 16384])
    size = context.pick(64, 128)
    errors = sum_errors(lengths, size, context.seed)
    at = lengths.index(4096)
    uniform = {name: values[at] for name, values in errors["uniform [0, 1)"].items()}
    plain, promoted = ({x: errors[x][name][at] for x in POSITIVE} for name in (TENSOR_CORE, PROMOTED))
    figures = {f"{name} over float32": uniform[name] / uniform["float32"] for name in SHORT}
    figures |= {name: 100 * uniform[name] for name in ("float32", *SHORT)}
    figures |= {"plain": 100 * min(plain.values()), "mended": max(promoted[x] / plain[x] for x in POSITIVE)}
    figures |= {f"{inputs}, plain": 100 * error for inputs, error in plain.items()}
    figures |= {f"{inputs}, promoted": 100 * error for inputs, error in promoted.items()}
    return Measured(
        {name: [value] for name, value in figures.items()},
        {"size": size, "lengths": lengths, "errors": errors},
        f"{size}×{size} sums of K products of E4M3 numbers, uniform in [0, 1) or normal with mean 1: largest "
        "relative error by accumulator. Hopper's tensor core is emulated bit by bit, alone and with its sum "
        "added to a float32 total every 128 products. Bounds are read at K = 4096, those of fp16 and bf16 "
        "from uniform numbers. Dotted: the 2 % that V3 reports.",
    )


def draw(figure: Figure, detail: Detail) -> None:
    errors = {inputs: detail["errors"][inputs] for inputs in POSITIVE if inputs in detail["errors"]}
    panels = figure.subplots(1, len(errors), sharey=True, squeeze=False)[0]
    for axes, (inputs, of_inputs) in zip(panels, errors.items(), strict=True):
        for name, values in of_inputs.items():
            axes.loglog(detail["lengths"], np.maximum(values, 1e-8), label=name, **STYLES[name])
        axes.axhline(0.02, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(inputs, fontsize=10)
        axes.set_xlabel("K, products per sum")
        axes.set_xticks(detail["lengths"], [str(k) for k in detail["lengths"]])
        axes.minorticks_off()
    panels[0].set_ylabel("largest relative error")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)


def tables(detail: Detail) -> list[TextTable]:
    rows = []
    for inputs, of_inputs in detail["errors"].items():
        for k, *errors in zip(detail["lengths"], *of_inputs.values(), strict=True):
            if k in TABLE_LENGTHS:
                rows.append([inputs, str(k), *(f"{e:.1e}" if e < 5e-4 else f"{e:.2%}" for e in errors)])
    size = detail["size"]
    about = (
        f"Largest error of {size}×{size} sums of K products of E4M3 numbers, by accumulator: relative to the "
        "sum; for normal numbers, whose sums cancel, relative to the sum of magnitudes."
    )
    return [TextTable("sums", about, ["numbers", "K", *ACCUMULATORS], rows)]


PERCENT = ("float32", *SHORT, "plain", *(f"{x}, {y}" for x in POSITIVE for y in ("plain", "promoted")))
UNITS = dict.fromkeys(PERCENT, " %") | {"mended": "x"} | {f"{name} over float32": "x" for name in SHORT}

ACCUMULATION = Experiment(measure, draw, tables=tables, seconds=(3, 20), units=UNITS)
