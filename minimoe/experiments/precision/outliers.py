"""The claim that scales for small groups of numbers protect the others from an outlier."""

from typing import Any

import torch
from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.precision import E4M3, fake_quantize, measure_error
from minimoe.precision.analysis.error import decibels
from minimoe.reporting.figures import BLUE, VERMILLION


def measure_outliers(context: RunContext) -> Measured:
    size, height = context.pick((2048, 512), (4096, 2048))
    x = torch.randn(height, size, generator=context.generator())
    column = size // 3
    others = torch.arange(size) != column
    factors = [10.0**e for e in range(7)]
    noise: dict[str, list[float]] = {}
    for name, block in (("tensor", None), ("1×128", (1, 128)), ("128×128", (128, 128))):
        noise[name] = []
        for factor in factors:
            y = x.clone()
            y[:, column] *= factor
            rounded = fake_quantize(y, E4M3, block)
            noise[name].append(decibels(measure_error(rounded[:, others], y[:, others]).relative))
    at = factors.index(1e5)
    return Measured(
        {
            "tiles": [noise["1×128"][at] - noise["tensor"][at]],
            "blocks": [noise["128×128"][at] - noise["tensor"][at]],
            **{name: [values[at]] for name, values in noise.items()},
        },
        {"factors": factors, "noise": noise},
        f"{height}×{size} normal numbers in E4M3, one column scaled by a factor: signal to noise of the "
        "other columns, by what shares a scale. Read where the column is 100,000 times as large; E4M3 "
        "spans a factor of 229,376 from its smallest number to its largest.",
    )


def draw_outliers(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    styles = zip(
        ("tensor", "128×128", "1×128"), ("s:", "^--", "o-"), (VERMILLION, BLUE, "black"), strict=True
    )
    for name, style, color in styles:
        axes.semilogx(
            detail["factors"], detail["noise"][name], style, color=color, label=f"a scale for each {name}"
        )
    axes.set(xlabel="the outlying column's factor", ylabel="other columns: signal to noise, dB")
    axes.legend()


OUTLIERS = Experiment(
    measure_outliers,
    draw_outliers,
    seconds=(2, 15),
    labels=dict.fromkeys(("tensor", "1×128", "128×128"), " dB"),
)
