"""[evidence] Number formats of 8 bits against 16 and 32: storage, rounding of constants, matmul error.

Nothing is trained here, so one draw of large matrices is enough.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure

from minimoe.cost import PUBLISHED, memory_footprint
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured
from minimoe.experiments.presets import PRESETS
from minimoe.models.gpt import GPT
from minimoe.precision import (
    BF16,
    E4M3,
    E5M2,
    fake_quantize,
    measure_error,
    quantize,
    quantize_weights_,
    round_to,
)
from minimoe.reporting.figures import BLUE, DARK_GRAY, VERMILLION
from minimoe.tools.memory import weight_bytes

CONSTANTS = {
    "π": math.pi,
    "e": math.e,
    "√2": math.sqrt(2),
    "golden ratio": (1 + math.sqrt(5)) / 2,
    "ln 2": math.log(2),
    "1/3": 1 / 3,
    "Euler's γ": 0.5772156649015329,
    "Catalan's G": 0.915965594177219,
    "ζ(3)": 1.2020569031595942,
    "0.1": 0.1,
}

FORMATS = (E4M3, E5M2, BF16)


def measure_storage(context: RunContext) -> Measured:
    """Bytes in 8 bits, with scales, relative to 16 bits."""
    size = 4096
    x = torch.randn(size, size, generator=context.generator())
    blocks = {"1×128": (1, 128), "128×128": (128, 128)}
    tensors = {name: quantize(x, E4M3, block).nbytes / (2 * x.numel()) for name, block in blocks.items()}
    fp8 = GPT(replace(PRESETS["standard"].moe, precision="deepseek-v3"))
    bf16_bytes = sum(2 * p.numel() for p in fp8.parameters())
    quantize_weights_(fp8)
    model, published = weight_bytes(fp8) / bf16_bytes, PUBLISHED["deepseek-v3"]
    v3 = memory_footprint(published, "deepseek-v3").weights / memory_footprint(published, "bf16").weights
    return Measured(
        {"tensor": [max(tensors.values())], "model": [model], "v3": [v3]},
        {"ratios": tensors | {"MoE model of\nminimoe compare": model, "DeepSeek-V3": v3}},
        f"A {size}×{size} tensor in E4M3 with one float32 scale per 1×128 or 128×128 block; the weights of "
        "this project's standard MoE model as stored in 8 bits (embedding, norms and gate stay in float32); "
        "those of DeepSeek-V3, counted from its configuration.",
    )


def draw_storage(figure: Figure, detail: Detail) -> None:
    axes = figure.subplots()
    axes.barh(list(detail["ratios"]), list(detail["ratios"].values()), color=BLUE, height=0.5)
    axes.axvline(0.5, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="bytes relative to 16 bits (dashed: half)", xlim=(0, 1))
    axes.invert_yaxis()


def measure_constants(context: RunContext) -> Measured:
    """Relative errors of rounded constants, in percent and in units of the format's unit roundoff."""
    exact = torch.tensor(list(CONSTANTS.values()), dtype=torch.float64)
    # The float32 that is rounded has an error of at most 2^-24 itself, far below that of any format here.
    rounded = {str(fmt): round_to(exact.float(), fmt).double() for fmt in FORMATS}
    errors = {name: ((values - exact).abs() / exact).tolist() for name, values in rounded.items()}
    units = {str(fmt): fmt.unit_roundoff for fmt in FORMATS}
    figures = {name: max(errors[name]) / units[name] for name in errors}
    figures |= {f"π in {name}": 100 * errors[name][0] for name in errors}
    figures["3.14"] = 100 * abs(3.14 - math.pi) / math.pi
    pi = ", ".join(f"{values[0].item():.8g} in {name}" for name, values in rounded.items())
    return Measured(
        {name: [value] for name, value in figures.items()},
        {"constants": list(CONSTANTS), "errors": errors, "units": units},
        f"{len(CONSTANTS)} constants rounded to each format; π becomes {pi}. A format's unit roundoff is the "
        "largest relative error of rounding.",
    )


def draw_constants(figure: Figure, detail: Detail) -> None:
    axes = figure.subplots()
    colors = (VERMILLION, BLUE, DARK_GRAY)
    for (name, errors), marker, color in zip(detail["errors"].items(), "ovs", colors, strict=True):
        axes.semilogy(detail["constants"], np.maximum(errors, 1e-6), marker, color=color, label=name)
        axes.axhline(detail["units"][name], color=color, linewidth=0.8, linestyle="--")
    axes.axhline(abs(3.14 - math.pi) / math.pi, color="black", linewidth=0.8, linestyle=":")
    axes.text(len(detail["constants"]) - 0.6, 5.5e-4, "3.14 for π", ha="right", va="bottom", fontsize=9)
    axes.set_ylabel("relative error (dashed: unit roundoff)")
    axes.legend(ncols=3, loc="lower right")
    axes.tick_params(axis="x", rotation=30)


def measure_accuracy(context: RunContext) -> Measured:
    """One product from inputs in 32, 16 and 8 bits; those of 16 and 8 bits are summed in float64, so that
    only the rounding of the inputs counts."""
    size, depth = context.pick((256, 4096), (512, 8192))
    generator = context.generator()
    a, b = (torch.randn(*shape, generator=generator) for shape in ((size, depth), (depth, size)))
    exact = a.double() @ b.double()
    inputs = {
        "bf16": (round_to(a, BF16), round_to(b, BF16)),
        "E4M3": (fake_quantize(a, E4M3, (1, 128)), fake_quantize(b, E4M3, (128, 128))),
    }
    products = {"float32": a @ b} | {name: x.double() @ y.double() for name, (x, y) in inputs.items()}
    errors = {name: measure_error(product, exact).relative for name, product in products.items()}
    return Measured(
        {
            "8 over 16": [errors["E4M3"] / errors["bf16"]],
            "16 over 32": [errors["bf16"] / errors["float32"]],
            **{name: [100 * error] for name, error in errors.items()},
        },
        {"errors": errors},
        f"A {size}×{size} product of normal numbers, K = {depth}, against float64: inputs in E4M3 (scales as "
        "in V3) and in bf16, summed without further error; and inputs in float32, summed in float32.",
    )


def draw_accuracy(figure: Figure, detail: Detail) -> None:
    axes = figure.subplots()
    bars = axes.bar(list(detail["errors"]), list(detail["errors"].values()), color=BLUE, width=0.5)
    axes.bar_label(bars, fmt="%.1e", padding=2)
    axes.set(yscale="log", ylabel="relative error (Frobenius)", xlabel="inputs", ylim=(1e-8, 1))


STORAGE = Experiment(measure_storage, draw_storage, seconds=(1, 1))

ROUNDED_CONSTANTS = Experiment(
    measure_constants, draw_constants, units={"3.14": " %"} | {f"π in {fmt}": " %" for fmt in FORMATS}
)

FORMAT_ACCURACY = Experiment(
    measure_accuracy,
    draw_accuracy,
    seconds=(1, 3),
    units=dict.fromkeys(("E4M3", "bf16", "float32"), " %") | {"8 over 16": "x", "16 over 32": "x"},
)
