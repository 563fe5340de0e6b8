"""Claims that are counted from published configurations: the memory, and Mixtral."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from minimoe.cost import ACCELERATORS, PUBLISHED, count, memory_footprint
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured
from minimoe.moe import preset
from minimoe.reporting.figures import BLUE, LIGHT_GRAY, PALE_GRAY


def measure_fit(context: RunContext) -> Measured:
    """Bytes of V3's weights and the memory of one machine of eight cards."""
    model = PUBLISHED["deepseek-v3"]
    weights = {
        "bf16": memory_footprint(model, "bf16").weights,
        "8 bits": memory_footprint(model, "deepseek-v3").weights,
    }
    machines = {f"8 × {name.upper()}": 8 * ACCELERATORS[name].memory for name in ("h800", "h200")}
    return Measured(
        {
            "reduced": [weights["8 bits"] / weights["bf16"]],
            "h800": [weights["8 bits"] / machines["8 × H800"]],
            "h200": [weights["8 bits"] / machines["8 × H200"]],
            "bf16 on h200": [weights["bf16"] / machines["8 × H200"]],
            "bf16 on h800": [weights["bf16"] / machines["8 × H800"]],
        },
        {"weights": weights, "machines": machines},
        "Bytes of DeepSeek-V3's weights, counted from its configuration, in bf16 and as it keeps them in 8 "
        "bits (with their scales; embedding, output, norms and gates in bf16), against the memory of "
        "machines of eight cards. What a machine needs beside weights (cache, activations) is not counted.",
    )


def draw_fit(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    names = [f"weights in {name}" for name in detail["weights"]]
    bars = axes.barh(
        names, [b / 1e9 for b in detail["weights"].values()], color=[LIGHT_GRAY, BLUE], height=0.5
    )
    axes.bar_label(bars, fmt="%.0f GB", padding=3)
    for (name, size), style in zip(detail["machines"].items(), ("--", ":"), strict=True):
        axes.axvline(size / 1e9, color="black", linestyle=style, label=f"memory of {name}")
    axes.set(xlabel="GB", xlim=(0, 1600), ylim=(-0.6, 2.1))
    axes.legend(loc="upper right")


def measure_mixtral(context: RunContext) -> Measured:
    """The layer by Mixtral's equations in float64 numpy, written apart from ours; the published counts."""
    torch.manual_seed(0)
    layer = preset("mixtral-8x7b", dim=64, expert_dim=96).double()
    x = torch.randn(256, 64, dtype=torch.float64, generator=context.generator())
    y, _ = layer(x)
    gate, up_gate, down = (
        t.detach().numpy() for t in (layer.gate.weight, layer.experts.gate_up_proj, layer.experts.down_proj)
    )
    expected = _mixtral(x.numpy(), gate, up_gate, down, top_k=2)
    error = float(np.abs(y.detach().numpy() - expected).max() / np.abs(expected).max())
    found = count(PUBLISHED["mixtral-8x7b"])
    return Measured(
        {
            "total": [abs(found.total / 1e9 - 46.7)],
            "active": [abs(found.active / 1e9 - 12.9)],
            "layer": [error],
            "parameters": [found.total / 1e9],
            "that work on a token": [found.active / 1e9],
        },
        {"total": found.total, "active": found.active, "routed": found.routed, "idle": found.idle},
        "The layer of this project configured as Mixtral (8 experts, 2 a token, softmax over the chosen, "
        "none shared), 256 tokens in float64, against its equations in numpy; and its parameters counted.",
    )


def _mixtral(
    x: np.ndarray, gate: np.ndarray, gate_up: np.ndarray, down: np.ndarray, top_k: int
) -> np.ndarray:
    """Softmax over the top_k logits; each expert down(silu(gate x) * up x) (arXiv 2401.04088, section 2)."""
    y = np.zeros_like(x)
    for t, token in enumerate(x):
        logits = gate @ token
        chosen = np.argsort(-logits)[:top_k]
        weights = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
        for e, weight in zip(chosen, weights, strict=True):
            a, b = np.split(gate_up[e] @ token, 2)
            y[t] += weight * (down[e] @ (a / (1 + np.exp(-a)) * b))
    return y


def draw_mixtral(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    working = detail["active"] / 1e9
    parts = {"work on a token": working, "experts that wait": detail["idle"] / 1e9}
    left = 0.0
    for (name, value), color, hatch in zip(parts.items(), (BLUE, PALE_GRAY), ("", "//"), strict=True):
        axes.barh(
            [""],
            [value],
            left=left,
            color=color,
            hatch=hatch,
            edgecolor="white",
            label=f"{name}: {value:.1f}",
        )
        left += value
    axes.set(xlabel="billions of parameters", ylim=(-0.6, 1))
    axes.legend(ncols=2, loc="upper center")


MEMORY_FIT = Experiment(
    measure_fit,
    draw_fit,
    seconds=(0.1, 0.1),
)


MIXTRAL = Experiment(
    measure_mixtral,
    draw_mixtral,
    seconds=(0.5, 0.5),
    labels={"parameters": " billion", "that work on a token": " billion"},
)
