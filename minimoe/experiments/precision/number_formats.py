"""Claims about short numbers: the space they take, what is left of π, what a product loses.

Nothing is learnt here, so one draw of large matrices says as much as many.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from minimoe.cost import PUBLISHED, memory_footprint
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
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
from minimoe.tools.memory import bytes_held

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


def measure_space(context: RunContext) -> Measured:
    """Bytes with scales, over those of 16 bits."""
    size = 4096
    x = torch.randn(size, size, generator=context.generator())
    blocks = {"1×128": (1, 128), "128×128": (128, 128)}
    tensors = {name: quantize(x, E4M3, block).nbytes / (2 * x.numel()) for name, block in blocks.items()}
    config = PRESETS["standard"].moe
    bf16 = sum(2 * p.numel() for p in GPT(config).parameters())
    low = GPT(replace(config, precision="deepseek-v3"))
    quantize_weights_(low)
    v3 = PUBLISHED["deepseek-v3"]
    ratios = tensors | {
        "mixture of\nminimoe compare": bytes_held(low) / bf16,
        "DeepSeek-V3": memory_footprint(v3, "deepseek-v3").weights / memory_footprint(v3, "bf16").weights,
    }
    tensor, ours, theirs = max(tensors.values()), *list(ratios.values())[2:]
    return Measured(
        {"tensor": [tensor], "model": [ours], "v3": [theirs]},
        {"ratios": ratios},
        f"A {size}×{size} tensor in E4M3 with a float32 scale for each 1×128 or 128×128; the weights of the "
        "standard mixture of this project as it keeps them in 8 bits (embedding, norms and gate stay in "
        "float32); those of DeepSeek-V3, counted from its configuration.",
    )


def draw_space(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    names, ratios = list(detail["ratios"]), list(detail["ratios"].values())
    axes.barh(names, ratios, color=BLUE, height=0.5)
    axes.axvline(0.5, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="bytes, over those of 16 bits (dashed: half)", xlim=(0, 1))
    axes.invert_yaxis()


def measure_pi(context: RunContext) -> Measured:
    """Errors of rounded constants, in units of what the format allows."""
    exact = torch.tensor(list(CONSTANTS.values()), dtype=torch.float64)
    errors = {}
    for fmt in (E4M3, E5M2, BF16):
        rounded = round_to(exact.float(), fmt).double()
        errors[str(fmt)] = ((rounded - exact).abs() / exact).tolist()
    # The float32 that is rounded is off by 2^-24 itself, which no format here can notice.
    units = {str(fmt): fmt.unit_roundoff for fmt in (E4M3, E5M2, BF16)}
    values = {name: [max(errors[name]) / units[name]] for name in errors}
    values |= {f"π in {name}": [100 * errors[name][0]] for name in errors}
    values["3.14"] = [100 * abs(3.14 - math.pi) / math.pi]
    pi = {
        name: round_to(torch.tensor([math.pi]), fmt).item()
        for name, fmt in zip(errors, (E4M3, E5M2, BF16), strict=True)
    }
    told = ", ".join(f"{value:.8g} in {name}" for name, value in pi.items())
    return Measured(
        values,
        {"constants": list(CONSTANTS), "errors": errors, "units": units},
        f"{len(CONSTANTS)} constants rounded to each format; π becomes {told}. A format's unit roundoff is "
        "the relative error that rounding may make at worst.",
    )


COLORS = (VERMILLION, BLUE, DARK_GRAY)


def draw_pi(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    for (name, errors), marker, color in zip(detail["errors"].items(), "ovs", COLORS, strict=True):
        axes.semilogy(detail["constants"], np.maximum(errors, 1e-6), marker, color=color, label=name)
        axes.axhline(detail["units"][name], color=color, linewidth=0.8, linestyle="--")
    axes.axhline(abs(3.14 - math.pi) / math.pi, color="black", linewidth=0.8, linestyle=":")
    axes.text(len(detail["constants"]) - 0.6, 5.5e-4, "3.14 for π", ha="right", va="bottom", fontsize=9)
    axes.set_ylabel("relative error (dashed: unit roundoff)")
    axes.legend(ncols=3, loc="lower right")
    axes.tick_params(axis="x", rotation=30)


def measure_accuracy(context: RunContext) -> Measured:
    """The same product from inputs of fewer and fewer bits, summed in float64: what shortening alone does."""
    size, depth = context.pick((256, 4096), (512, 8192))
    generator = context.generator()
    a, b = (torch.randn(*shape, generator=generator) for shape in ((size, depth), (depth, size)))
    exact = a.double() @ b.double()
    inputs = {
        "float32": (a, b),
        "bf16": (round_to(a, BF16), round_to(b, BF16)),
        "E4M3": (fake_quantize(a, E4M3, (1, 128)), fake_quantize(b, E4M3, (128, 128))),
    }
    # float32 is exact here as an input; its calculation is not.
    products = {
        name: (x @ y if name == "float32" else x.double() @ y.double()) for name, (x, y) in inputs.items()
    }
    errors = {name: measure_error(product, exact).relative for name, product in products.items()}
    return Measured(
        {
            "8 over 16": [errors["E4M3"] / errors["bf16"]],
            "16 over 32": [errors["bf16"] / errors["float32"]],
            "E4M3": [100 * errors["E4M3"]],
            "bf16": [100 * errors["bf16"]],
            "float32": [100 * errors["float32"]],
        },
        {"errors": errors},
        f"A {size}×{size} product of normal numbers, K = {depth}, against float64. Inputs in E4M3 (scales "
        "as in V3) and in bf16, their products summed without further error; and in float32, summed in "
        "float32.",
    )


def draw_accuracy(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    bars = axes.bar(list(detail["errors"]), list(detail["errors"].values()), color=COLORS[1], width=0.5)
    axes.bar_label(bars, fmt="%.1e", padding=2)
    axes.set(yscale="log", ylabel="relative error (Frobenius)", xlabel="numbers of", ylim=(1e-8, 1))


STORAGE = Experiment(
    measure_space,
    draw_space,
    seconds=(1, 1),
)


ROUNDED_CONSTANTS = Experiment(
    measure_pi,
    draw_pi,
    seconds=(0.1, 0.1),
    units={"3.14": "%", **{f"π in {fmt}": "%" for fmt in (E4M3, E5M2, BF16)}},
)


FORMAT_ACCURACY = Experiment(
    measure_accuracy,
    draw_accuracy,
    seconds=(1, 3),
    units=dict.fromkeys(("E4M3", "bf16", "float32"), "%"),
)
