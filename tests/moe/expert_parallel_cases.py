"""Cases and comparisons for the tests of expert parallelism.

Layers use dispatch ``reference`` where the dispatcher is not what is tested: it needs no custom operators,
which take seconds to load.

Dimensions: T tokens, D model width, E experts, H expert width, K experts per token, P processes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minimoe.moe import MoE, Routing

DIM, WIDTH, N_EXPERTS, TOP_K = 16, 8, 8, 3
SIZES = (1, 2, 4)
DISPATCH_DTYPES = ("full", "bf16", "fp8")
EXCHANGES = ("counts", "dispatch", "combine", "combine backward", "dispatch backward")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


def build(dtype: torch.dtype = torch.float64, seed: int = 1, **arguments: Any) -> MoE:
    """The same layer in every process. Its weights are large, so that the experts are far from linear, but
    not larger in a wide layer, whose scores would all be 1."""
    torch.manual_seed(seed)
    sizes = {"dim": DIM, "expert_dim": WIDTH, "n_experts": N_EXPERTS, "top_k": TOP_K}
    moe = MoE(**{**sizes, "dispatch": "reference", **arguments})
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=1.2 * moe.dim**-0.5)
    return moe.to(dtype)


@dataclass(frozen=True)
class Case:
    layer: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    counts: Callable[[int], list[int]] = lambda size: [9 + 2 * (rank % 2) for rank in range(size)]
    groups: bool = False  # one per process
    mask: bool = False
    bias: Callable[[int], Tensor] | None = None  # (E,) for a number of processes
    autocast: bool = False
    checkpointed: bool = False  # recomputes the forward pass, so tokens are sent twice
    frozen: tuple[str, ...] = ()

    def build(self, size: int) -> MoE:
        layer = dict(self.layer)
        if self.groups:
            layer |= {"n_groups": size, "top_groups": -(-size // 2), "top_k": 2}
        moe = build(self.dtype, **layer)
        if self.bias is not None:
            moe.gate.e_score_correction_bias.copy_(self.bias(size))
        for name, parameter in moe.named_parameters():
            parameter.requires_grad_(not name.startswith(self.frozen or ("nothing",)))
        return moe

    def tokens(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of all processes: x (T, D), the upstream gradient, and the mask (T,) of real tokens."""
        torch.manual_seed(2)
        x_TD, upstream_TD = torch.randn(2, sum(self.counts(size)), DIM, dtype=torch.float64)
        mask_T = torch.rand(len(x_TD)) < 0.6 if self.mask else torch.ones(len(x_TD), dtype=torch.bool)
        x_TD[~mask_T] = torch.nan  # must not affect the result
        return x_TD.to(self.dtype), upstream_TD.to(self.dtype), mask_T

    def step(self, moe: nn.Module, x: Tensor, upstream: Tensor, mask: Tensor) -> "Step":
        x = x.clone().requires_grad_("x" not in self.frozen)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            inputs = (x, mask if self.mask else None)
            y, routing = checkpoint(moe, *inputs, use_reentrant=False) if self.checkpointed else moe(*inputs)
        y.backward(upstream.to(y.dtype))
        grads = {name: parameter.grad for name, parameter in moe.named_parameters()}
        return Step(y.detach(), Routing(*(part.detach() for part in routing)), {"x": x.grad, **grads})


@dataclass
class Step:
    """The result of a training step on one process, or of all processes merged."""

    y: Tensor
    routing: Routing
    grads: dict[str, Tensor | None]


def uneven(size: int) -> list[int]:
    """Process 0 has no tokens, unless it is the only one."""
    return [3 * rank for rank in range(size)] if size > 1 else [3]


def idle(size: int) -> Tensor:
    """A bias with which no token picks the experts of the last process (with one process, the last expert),
    because scores are between 0 and 1."""
    n_idle = N_EXPERTS // size if size > 1 else 1
    return torch.zeros(N_EXPERTS).index_fill(0, torch.arange(N_EXPERTS - n_idle, N_EXPERTS), -10)


CASES = {
    "float64": Case(),
    "float32": Case(dtype=torch.float32),
    "softmax": Case({"score": "softmax"}),
    "not normalized": Case({"normalize": False, "scale": 2.5}),
    "softmax, not normalized": Case({"score": "softmax", "normalize": False}),
    "one expert per token": Case({"top_k": 1, "normalize": False}),
    "all experts": Case({"top_k": N_EXPERTS}),
    "groups": Case(groups=True),
    "no shared expert": Case({"n_shared": 0}),
    "two shared experts": Case({"n_shared": 2}),
    "mask": Case(mask=True),
    "bias": Case(bias=lambda size: torch.linspace(-1, 1, N_EXPERTS)[torch.randperm(N_EXPERTS)]),
    "uneven": Case(counts=uneven),
    "uneven, float32": Case(dtype=torch.float32, counts=uneven),
    # One process receives a single row, the others none; or some receive a single row each.
    "a single token": Case({"top_k": 1, "normalize": False}, counts=lambda size: [1, *[0] * (size - 1)]),
    "a single token, float32": Case(dtype=torch.float32, counts=lambda size: [*[0] * (size - 1), 1]),
    "no token": Case(counts=lambda size: [0] * size),
    "an idle process": Case(bias=idle),
    "frozen experts": Case(frozen=("experts",)),
    "frozen gate": Case(frozen=("gate",)),
    "frozen gate and x": Case(frozen=("gate", "x")),
    "x without gradient": Case(frozen=("x",)),
    "checkpointed": Case(checkpointed=True),
    "loop": Case({"dispatch": "loop"}),
    "loop, an idle process": Case({"dispatch": "loop"}, bias=idle),
    "loop, float32": Case({"dispatch": "loop"}, torch.float32),
    "grouped": Case({"dispatch": "grouped"}, torch.float32),
    "grouped, an idle process": Case({"dispatch": "grouped"}, torch.float32, bias=idle),
    "auto": Case({"dispatch": "auto"}, torch.float32),
    "auto, float64, everything combined": Case(
        {"dispatch": "auto", "n_shared": 2, "score": "softmax", "scale": 2.5},
        counts=uneven,
        mask=True,
        bias=idle,
    ),
    "bfloat16": Case({"dispatch": "loop"}, torch.bfloat16),
    "bfloat16, grouped": Case({"dispatch": "grouped"}, torch.bfloat16),
    "autocast": Case({"dispatch": "auto"}, torch.float32, autocast=True),
    "autocast, no shared expert": Case({"dispatch": "loop", "n_shared": 0}, torch.float32, autocast=True),
    # Without the shared expert: in its weight gradient tokens share scales, which differ by process.
    "recipe": Case({"dispatch": "auto", "recipe": "deepseek-v3", "n_shared": 0}, torch.float32),
    "recipe and autocast": Case(
        {"dispatch": "auto", "recipe": "deepseek-v3", "n_shared": 0}, torch.float32, autocast=True
    ),
}


def merged(steps: list[Step]) -> Step:
    """One step from those of all processes: tokens and experts concatenated, replicated gradients summed."""
    grads: dict[str, Tensor | None] = {}
    for name in steps[0].grads:
        parts = [step.grads[name] for step in steps]
        assert len({part is None for part in parts}) == 1, f"only some processes have a gradient of {name}"
        if parts[0] is None:
            grads[name] = None
        elif name in ("x", *EXPERTS):
            grads[name] = torch.cat(parts)
        else:
            grads[name] = torch.stack(parts).double().sum(0)
    *fields, counts = zip(*(step.routing for step in steps), strict=True)
    routing = Routing(*map(torch.cat, fields), torch.stack(counts).sum(0))
    return Step(torch.cat([step.y for step in steps]), routing, grads)


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest absolute error, relative to the largest expected number."""
    assert actual.shape == expected.shape
    if not expected.numel():
        return 0.0
    difference, largest = (actual.double() - expected.double()).abs().max(), expected.double().abs().max()
    return float(difference / largest) if largest else float(difference)


def assert_same(actual: Step, expected: Step, limit: float) -> None:
    """Compare the values and every gradient."""
    assert actual.y.dtype == expected.y.dtype
    assert error(actual.y, expected.y) <= limit
    assert actual.grads.keys() == expected.grads.keys()
    for name, grad in expected.grads.items():
        if grad is None:
            assert actual.grads[name] is None, name
        else:
            assert error(actual.grads[name], grad) <= limit, name


def visits(routing: Routing, size: int, mask: Tensor | None = None) -> np.ndarray:
    """(T, P) bool, from the ids alone: the processes that have any of a token's experts."""
    process_TK = routing.ids_TK.numpy() // (routing.scores_TE.shape[1] // size)
    visits_TP = (process_TK[:, :, None] == np.arange(size)).any(1)
    return visits_TP if mask is None else visits_TP & mask.numpy()[:, None]
