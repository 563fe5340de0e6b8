"""The layer alone: a mixture against dense networks of its active and its total parameters, and the ways of
bringing tokens to experts against each other.

Dimensions: T tokens, D model width, H expert width, E experts, K experts a token.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from minimoe.bench.case import Built, Case, Cost, WrongResult
from minimoe.bench.checks import require_same_layer
from minimoe.moe import Experts, MoE, Routing, SwiGLU, route
from minimoe.moe.dispatch.capacity import places
from minimoe.moe.experts import Dispatch
from minimoe.tools.memory import bytes_kept_for_backward
from minimoe.tools.timing import Task

FORWARD, BOTH = "forward", "forward+backward"

DENSE_ACTIVE, DENSE_TOTAL, MIXTURE = "dense-active", "dense-total", "moe"

LAYERS = (DENSE_ACTIVE, DENSE_TOTAL, MIXTURE)

CAPACITY_FACTOR = 1.25  # Switch's; what exceeds it is dropped


def layer(case: Case, device: torch.device) -> Built:
    """A mixture with one shared expert, and the dense networks; weights and x as they are in training."""
    T, D, H, E, K = (case.shape[letter] for letter in "TDHEK")
    dtype = getattr(torch, case.dtype)
    moe = MoE(D, H, E, K).to(device, dtype)
    networks: dict[str, MoE | SwiGLU] = {
        DENSE_ACTIVE: SwiGLU(D, matching_width(D, H, E, K + 1)).to(device, dtype),
        DENSE_TOTAL: SwiGLU(D, matching_width(D, H, E, E + 1)).to(device, dtype),
        MIXTURE: moe,
    }
    x_TD = torch.randn(T, D, device=device, dtype=dtype)
    backward = case.group.endswith(BOTH)

    def check() -> None:
        require_same_parameters(networks, E, K)
        require_same_layer("the mixture", fast, oracle, x_TD, list(moe.parameters()), case.dtype)

    def fast(x: Tensor, few_n: Tensor) -> Tensor:
        return moe(x)[0][few_n]

    def oracle(x: Tensor, few_n: Tensor) -> Tensor:
        moe.dispatch, usual = "reference", moe.dispatch
        y_nD = moe(x[few_n])[0]
        moe.dispatch = usual
        return y_nD

    def memory() -> dict[str, int]:
        wanted = x_TD.detach().requires_grad_()
        return {name: bytes_kept_for_backward(network, wanted) for name, network in networks.items()}

    costs = {name: layer_cost(network, T, K, backward) for name, network in networks.items()}
    tasks = {name: as_task(network, x_TD, backward) for name, network in networks.items()}
    return Built(check, tasks, costs, memory if backward else dict)


def matching_width(D: int, H: int, E: int, experts: int) -> int:
    """Of a dense SwiGLU with the parameters of so many experts and the gate, as ``cost.dense_width``."""
    return 16 * math.ceil((experts * H + E / 3) / 16)


def require_same_parameters(networks: Mapping[str, nn.Module], E: int, K: int) -> None:
    """Counted, not computed. The dense networks may exceed by what rounds their width up."""
    counted = {name: count(network) for name, network in networks.items()}
    moe = networks[MIXTURE]
    assert isinstance(moe, MoE)
    routed, column = count(moe.experts), 3 * moe.dim
    total = counted[MIXTURE]
    for name, wanted in ((DENSE_ACTIVE, total - routed + routed * K // E), (DENSE_TOTAL, total)):
        if not 0 <= counted[name] - wanted < 16 * column:
            raise WrongResult(f"{name} has {counted[name]:,} parameters, the mixture {wanted:,}")


def layer_cost(network: MoE | SwiGLU, T: int, K: int, backward: bool) -> Cost:
    """Arithmetic of the matmuls, thrice with backward; every weight that a token needs read once, and with
    backward read again and all gradients written; x read and y written, and their gradients."""
    weights = count(network)
    per_token = needed = float(weights)
    width = network.dim if isinstance(network, MoE) else network.gate_proj.in_features
    if isinstance(network, MoE):
        routed = count(network.experts)
        E = len(network.gate.weight)
        per_token = weights - routed * (1 - K / E)
        needed = weights - routed * (1 - touched(E, K, T) / E)
    parameter = next(network.parameters())
    flops = 2 * per_token * T * (3 if backward else 1)
    numbers = 2 * needed + weights + 5 * T * width if backward else needed + 2 * T * width
    return Cost(flops, numbers * parameter.itemsize, str(parameter.dtype).removeprefix("torch."))


def count(network: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in network.parameters())


def touched(E: int, K: int, T: int) -> float:
    """Experts that get a token, on average, if each of T tokens picks K of E evenly."""
    return E * (1 - (1 - K / E) ** T)


def as_task(network: nn.Module, x_TD: Tensor, backward: bool) -> Task:
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


def dispatchers(case: Case, device: torch.device) -> Built:
    """The experts alone, the routing given. ``capacity`` drops what exceeds its places: it does less."""
    T, D, H, E, K = (case.shape[letter] for letter in "TDHEK")
    dtype = getattr(torch, case.dtype)
    experts = Experts(D, H, E).to(device, dtype)
    x_TD = torch.randn(T, D, device=device, dtype=dtype)
    routing = route(torch.randn(T, E, device=device), K)
    backward = case.group.endswith(BOTH)
    enough = {"capacity": places(T, E, K, CAPACITY_FACTOR)}

    def check() -> None:
        weights_TK = routing.weights_TK.requires_grad_()
        inputs = [weights_TK, *experts.parameters()]
        for name in case.tasks:
            room = int(routing.counts_E.max()) if name == "capacity" else None  # so it drops nothing
            fast = _on_few(experts, routing, name, room)
            require_same_layer(f"dispatch {name!r}", fast, oracle, x_TD, inputs, case.dtype)
        weights_TK.requires_grad_(False)

    def oracle(x: Tensor, few_n: Tensor) -> Tensor:
        few = routing._replace(weights_TK=routing.weights_TK[few_n], ids_TK=routing.ids_TK[few_n])
        return experts(x[few_n], few, "reference")

    flops = 6 * T * K * D * H * (3 if backward else 1)
    weights, rows = 3 * D * H, T * D
    numbers = weights * touched(E, K, T) + 2 * rows
    if backward:
        numbers = 2 * numbers + weights * E + rows
    cost = Cost(flops, numbers * x_TD.itemsize, case.dtype)
    tasks = {
        name: as_task(_Dispatched(experts, routing, name, enough.get(name)), x_TD, backward)
        for name in case.tasks
    }
    return Built(check, tasks, dict.fromkeys(case.tasks, cost))


def _on_few(
    experts: Experts, routing: Routing, dispatch: str, capacity: int | None
) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, few_n: experts(x, routing, dispatch, capacity)[few_n]  # type: ignore[arg-type]


class _Dispatched(nn.Module):
    """Experts with a routing and a way of their own."""

    def __init__(self, experts: Experts, routing: Routing, dispatch: str, capacity: int | None) -> None:
        super().__init__()
        self.experts = experts
        self.routing, self.capacity = routing, capacity
        self.dispatch: Dispatch = dispatch  # type: ignore[assignment]

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.experts(x_TD, self.routing, self.dispatch, self.capacity)
