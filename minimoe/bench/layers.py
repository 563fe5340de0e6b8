"""[evidence] Benchmark of the layer alone: an MoE layer against dense networks with its active and its total
parameters, and the dispatchers against each other.

Dimensions: T tokens, D model width, H expert width, E experts, K experts per token.
"""

import copy

import torch
from torch import Tensor, nn

from minimoe.bench.case import BuiltCase, Case, Work
from minimoe.bench.checks import require_dense_size, require_same_layer
from minimoe.cost import dense_width, expected_active_experts
from minimoe.moe import Experts, MoE, Routing, SwiGLU, route
from minimoe.moe.arguments import Dispatch
from minimoe.moe.dispatch.capacity import expert_capacity
from minimoe.tools.memory import saved_activation_bytes
from minimoe.tools.timing import Task

DIRECTIONS = FORWARD, FORWARD_BACKWARD = "forward", "forward+backward"

DENSE_ACTIVE, DENSE_TOTAL, MOE = "dense-active", "dense-total", "moe"

LAYERS = (DENSE_ACTIVE, DENSE_TOTAL, MOE)

CAPACITY_FACTOR = 1.25  # Switch Transformer's; tokens beyond it are dropped


def build_layers(case: Case, device: torch.device) -> BuiltCase:
    """An MoE layer with one shared expert, and the dense networks."""
    T, D, H, E, K = (case.shape[letter] for letter in "TDHEK")
    dtype, backward = getattr(torch, case.dtype), case.group.endswith(FORWARD_BACKWARD)
    moe = MoE(D, H, E, K).to(device, dtype)
    networks: dict[str, MoE | SwiGLU] = {
        DENSE_ACTIVE: SwiGLU(D, dense_width(H, E, K + 1)).to(device, dtype),
        DENSE_TOTAL: SwiGLU(D, dense_width(H, E, E + 1)).to(device, dtype),
        MOE: moe,
    }
    x_TD = torch.randn(T, D, device=device, dtype=dtype)
    weights = {name: n_parameters(network) for name, network in networks.items()}
    routed = n_parameters(moe.experts)
    active = weights[MOE] - routed + routed * K // E

    def check() -> None:
        require_dense_size(DENSE_ACTIVE, weights[DENSE_ACTIVE], active, D)
        require_dense_size(DENSE_TOTAL, weights[DENSE_TOTAL], weights[MOE], D)
        reference = copy.copy(moe)  # with the same parameters
        reference.dispatch = "reference"
        require_same_layer(
            "MoE layer",
            lambda x, few_n: moe(x)[0][few_n],
            lambda x, few_n: reference(x[few_n])[0],
            x_TD,
            list(moe.parameters()),
            case.dtype,
        )

    def memory() -> dict[str, int]:
        x = x_TD.detach().requires_grad_()
        return {name: saved_activation_bytes(network, x) for name, network in networks.items()}

    read = weights[MOE] - routed * (1 - expected_active_experts(E, K, T) / E)
    work = {name: layer_work(case, weights[name], weights[name], weights[name]) for name in networks}
    work[MOE] = layer_work(case, active, read, weights[MOE])
    tasks = {name: layer_task(network, x_TD, backward) for name, network in networks.items()}
    return BuiltCase(check, tasks, work, memory if backward else dict)


def layer_work(case: Case, active: float, read: float, weights: float) -> Work:
    """FLOPs of the matmuls with the ``active`` weights, three times with backward; all weights that any token
    needs ``read`` once, with backward read again and all gradients written; x read and y written, and their
    gradients."""
    T, D, backward = case.shape["T"], case.shape["D"], case.group.endswith(FORWARD_BACKWARD)
    numbers = 2 * read + weights + 5 * T * D if backward else read + 2 * T * D
    flops = 2.0 * active * T * (3 if backward else 1)
    return Work(flops, numbers * getattr(torch, case.dtype).itemsize, case.dtype)


def n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def layer_task(network: nn.Module, x_TD: Tensor, backward: bool, *, input_gradient: bool = True) -> Task:
    """Forward without gradients, or both passes with the gradient of x, as within a model."""
    x_TD = x_TD.detach().requires_grad_(backward and input_gradient)
    upstream_TD = torch.randn_like(x_TD)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            y = network(x_TD)
        if backward:
            network.zero_grad()
            x_TD.grad = None
            (y[0] if isinstance(y, tuple) else y).backward(upstream_TD)

    return run


def build_dispatchers(case: Case, device: torch.device) -> BuiltCase:
    """The experts alone with given routing. ``capacity`` drops tokens beyond its capacity: it does less."""
    T, D, H, E, K = (case.shape[letter] for letter in "TDHEK")
    dtype, backward = getattr(torch, case.dtype), case.group.endswith(FORWARD_BACKWARD)
    experts = Experts(D, H, E).to(device, dtype)
    x_TD = torch.randn(T, D, device=device, dtype=dtype)
    routing = route(torch.randn(T, E, device=device), K)
    capacities = {"capacity": expert_capacity(T, E, K, CAPACITY_FACTOR)}

    def check() -> None:
        weights_TK = routing.weights_TK.requires_grad_()
        for name in case.tasks:
            capacity = int(routing.counts_E.max()) if name == "capacity" else None  # so it drops nothing
            layer = FixedRouting(experts, routing, name, capacity)
            inputs = [weights_TK, *experts.parameters()]
            require_same_layer(f"dispatch {name!r}", layer.rows, reference, x_TD, inputs, case.dtype)
        weights_TK.requires_grad_(False)

    def reference(x: Tensor, few_n: Tensor) -> Tensor:
        few = routing._replace(weights_TK=routing.weights_TK[few_n], ids_TK=routing.ids_TK[few_n])
        return experts(x[few_n], few, "reference")

    per_expert = 3 * D * H
    work = layer_work(case, per_expert * K, per_expert * expected_active_experts(E, K, T), per_expert * E)
    layers = {name: FixedRouting(experts, routing, name, capacities.get(name)) for name in case.tasks}
    tasks = {name: layer_task(layer, x_TD, backward) for name, layer in layers.items()}
    return BuiltCase(check, tasks, dict.fromkeys(case.tasks, work))


class FixedRouting(nn.Module):
    """Experts with a given routing and dispatch."""

    def __init__(
        self, experts: Experts, routing: Routing, dispatch: str, capacity: int | None = None
    ) -> None:
        super().__init__()
        self.experts, self.routing, self.capacity = experts, routing, capacity
        self.dispatch: Dispatch = dispatch  # type: ignore[assignment]

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.experts(x_TD, self.routing, self.dispatch, self.capacity)

    def rows(self, x_TD: Tensor, few_n: Tensor) -> Tensor:
        """Results of a few tokens, computed with all others."""
        return self(x_TD)[few_n]
