"""[evidence] Benchmark of the layer alone: an MoE layer against dense networks with its active and its total
parameters, and the dispatchers against each other.

Dimensions: T tokens, D model width, H expert width, E experts, K experts per token.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from minimoe.bench.case import BuiltCase, Case, Work, WrongResult
from minimoe.bench.checks import require_same_layer
from minimoe.cost import dense_width, expected_active_experts
from minimoe.moe import Experts, MoE, Routing, SwiGLU, route
from minimoe.moe.arguments import Dispatch
from minimoe.moe.dispatch.capacity import expert_capacity
from minimoe.tools.memory import bytes_kept_for_backward
from minimoe.tools.timing import Task

FORWARD, FORWARD_BACKWARD = "forward", "forward+backward"

DENSE_ACTIVE, DENSE_TOTAL, MOE = "dense-active", "dense-total", "moe"

LAYERS = (DENSE_ACTIVE, DENSE_TOTAL, MOE)

CAPACITY_FACTOR = 1.25  # Switch Transformer's; tokens beyond it are dropped


def build_layers(case: Case, device: torch.device) -> BuiltCase:
    """An MoE layer with one shared expert, and the dense networks."""
    T, D, H, E, K = (case.shape[letter] for letter in "TDHEK")
    dtype = getattr(torch, case.dtype)
    moe = MoE(D, H, E, K).to(device, dtype)
    networks: dict[str, MoE | SwiGLU] = {
        DENSE_ACTIVE: SwiGLU(D, dense_width(H, E, K + 1)).to(device, dtype),
        DENSE_TOTAL: SwiGLU(D, dense_width(H, E, E + 1)).to(device, dtype),
        MOE: moe,
    }
    x_TD = torch.randn(T, D, device=device, dtype=dtype)
    backward = case.group.endswith(FORWARD_BACKWARD)

    def check() -> None:
        require_matching_parameters(networks, E, K)
        require_same_layer("MoE layer", fast, reference, x_TD, list(moe.parameters()), case.dtype)

    def fast(x: Tensor, few_n: Tensor) -> Tensor:
        return moe(x)[0][few_n]

    def reference(x: Tensor, few_n: Tensor) -> Tensor:
        moe.dispatch, dispatch = "reference", moe.dispatch
        y_nD = moe(x[few_n])[0]
        moe.dispatch = dispatch
        return y_nD

    def memory() -> dict[str, int]:
        x = x_TD.detach().requires_grad_()
        return {name: bytes_kept_for_backward(network, x) for name, network in networks.items()}

    work = {name: layer_work(network, T, K, backward) for name, network in networks.items()}
    tasks = {name: layer_task(network, x_TD, backward) for name, network in networks.items()}
    return BuiltCase(check, tasks, work, memory if backward else dict)


def require_matching_parameters(networks: Mapping[str, nn.Module], E: int, K: int) -> None:
    """Compare the modules' parameters; the dense networks may have more by rounding up their width."""
    counts = {name: n_parameters(network) for name, network in networks.items()}
    moe = networks[MOE]
    assert isinstance(moe, MoE)
    routed, per_column = n_parameters(moe.experts), 3 * moe.dim
    total = counts[MOE]
    for name, expected in ((DENSE_ACTIVE, total - routed + routed * K // E), (DENSE_TOTAL, total)):
        if not 0 <= counts[name] - expected < 16 * per_column:
            raise WrongResult(f"{name} has {counts[name]:,} parameters, the MoE {expected:,}")


def layer_work(network: MoE | SwiGLU, T: int, K: int, backward: bool) -> Work:
    """FLOPs of the matmuls, three times with backward; all weights that any token needs read once, with
    backward read again and all gradients written; x read and y written, and their gradients."""
    weights = n_parameters(network)
    per_token = read = float(weights)
    width = network.dim if isinstance(network, MoE) else network.gate_proj.in_features
    if isinstance(network, MoE):
        routed = n_parameters(network.experts)
        E = len(network.gate.weight)
        per_token = weights - routed * (1 - K / E)
        read = weights - routed * (1 - expected_active_experts(E, K, T) / E)
    parameter = next(network.parameters())
    flops = 2 * per_token * T * (3 if backward else 1)
    numbers = 2 * read + weights + 5 * T * width if backward else read + 2 * T * width
    return Work(flops, numbers * parameter.itemsize, str(parameter.dtype).removeprefix("torch."))


def n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def layer_task(network: nn.Module, x_TD: Tensor, backward: bool) -> Task:
    """Forward without gradients, or both passes with the gradient of x, as within a model."""
    x_TD = x_TD.detach().requires_grad_(backward)
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
    dtype = getattr(torch, case.dtype)
    experts = Experts(D, H, E).to(device, dtype)
    x_TD = torch.randn(T, D, device=device, dtype=dtype)
    routing = route(torch.randn(T, E, device=device), K)
    backward = case.group.endswith(FORWARD_BACKWARD)
    capacities = {"capacity": expert_capacity(T, E, K, CAPACITY_FACTOR)}

    def check() -> None:
        weights_TK = routing.weights_TK.requires_grad_()
        inputs = [weights_TK, *experts.parameters()]
        for name in case.tasks:
            capacity = int(routing.counts_E.max()) if name == "capacity" else None  # so it drops nothing
            fast = _few_rows(experts, routing, name, capacity)
            require_same_layer(f"dispatch {name!r}", fast, reference, x_TD, inputs, case.dtype)
        weights_TK.requires_grad_(False)

    def reference(x: Tensor, few_n: Tensor) -> Tensor:
        few = routing._replace(weights_TK=routing.weights_TK[few_n], ids_TK=routing.ids_TK[few_n])
        return experts(x[few_n], few, "reference")

    flops = 6 * T * K * D * H * (3 if backward else 1)
    per_expert, rows = 3 * D * H, T * D
    numbers = per_expert * expected_active_experts(E, K, T) + 2 * rows
    if backward:
        numbers = 2 * numbers + per_expert * E + rows
    work = Work(flops, numbers * x_TD.itemsize, case.dtype)
    tasks = {
        name: layer_task(_FixedRouting(experts, routing, name, capacities.get(name)), x_TD, backward)
        for name in case.tasks
    }
    return BuiltCase(check, tasks, dict.fromkeys(case.tasks, work))


def _few_rows(
    experts: Experts, routing: Routing, dispatch: str, capacity: int | None
) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, few_n: experts(x, routing, dispatch, capacity)[few_n]  # type: ignore[arg-type]


class _FixedRouting(nn.Module):
    """Experts with a given routing and dispatch."""

    def __init__(self, experts: Experts, routing: Routing, dispatch: str, capacity: int | None) -> None:
        super().__init__()
        self.experts = experts
        self.routing, self.capacity = routing, capacity
        self.dispatch: Dispatch = dispatch  # type: ignore[assignment]

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.experts(x_TD, self.routing, self.dispatch, self.capacity)
