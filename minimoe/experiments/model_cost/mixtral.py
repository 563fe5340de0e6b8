"""[evidence] Mixtral 8x7B: the layer against its equations in NumPy, and its published parameter counts."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from minimoe.cost import PUBLISHED, count
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured
from minimoe.moe import preset
from minimoe.reporting.figures import BLUE, PALE_GRAY


def measure(context: RunContext) -> Measured:
    torch.manual_seed(0)
    layer = preset("mixtral-8x7b", dim=64, expert_dim=96).double()
    x = torch.randn(256, 64, dtype=torch.float64, generator=context.generator())
    y, _ = layer(x)
    weights = (layer.gate.weight, layer.experts.gate_up_proj, layer.experts.down_proj)
    gate, gate_up, down = (weight.detach().numpy() for weight in weights)
    expected = mixtral_layer(x.numpy(), gate, gate_up, down, top_k=2)
    error = float(np.abs(y.detach().numpy() - expected).max() / np.abs(expected).max())
    parameters = count(PUBLISHED["mixtral-8x7b"])
    return Measured(
        {
            "total": [abs(parameters.total / 1e9 - 46.7)],
            "active": [abs(parameters.active / 1e9 - 12.9)],
            "layer": [error],
            "parameters": [parameters.total / 1e9],
            "active parameters": [parameters.active / 1e9],
        },
        {key: getattr(parameters, key) for key in ("total", "active", "routed", "inactive")},
        "This project's layer configured as Mixtral (8 experts, 2 per token, softmax over the chosen "
        "experts, no shared expert), 256 tokens in float64, against its equations in NumPy; and its "
        "parameters counted.",
    )


def mixtral_layer(
    x_TD: np.ndarray, gate_ED: np.ndarray, gate_up_EFD: np.ndarray, down_EDH: np.ndarray, top_k: int
) -> np.ndarray:
    """Softmax over the top_k logits; each expert down(silu(gate x) * up x) (arXiv 2401.04088, section 2).

    Dimensions: T tokens, D width, E experts, H expert width, F = 2 H.
    """
    y_TD = np.zeros_like(x_TD)
    for t, token_D in enumerate(x_TD):
        logits_E = gate_ED @ token_D
        chosen = np.argsort(-logits_E)[:top_k]
        weights = np.exp(logits_E[chosen]) / np.exp(logits_E[chosen]).sum()
        for e, weight in zip(chosen, weights, strict=True):
            a_H, b_H = np.split(gate_up_EFD[e] @ token_D, 2)
            y_TD[t] += weight * (down_EDH[e] @ (a_H / (1 + np.exp(-a_H)) * b_H))
    return y_TD


def draw(figure: Figure, detail: Detail) -> None:
    axes = figure.subplots()
    active, inactive = detail["active"] / 1e9, detail["inactive"] / 1e9
    axes.barh([""], active, color=BLUE, edgecolor="white", label=f"active per token: {active:.1f}")
    style: dict[str, Any] = {"color": PALE_GRAY, "hatch": "//", "edgecolor": "white"}
    axes.barh([""], inactive, left=active, label=f"inactive experts: {inactive:.1f}", **style)
    axes.set(xlabel="billions of parameters", ylim=(-0.6, 1))
    axes.legend(ncols=2, loc="upper center")


MIXTRAL = Experiment(
    measure, draw, seconds=(0.5, 0.5), units={"parameters": " billion", "active parameters": " billion"}
)
