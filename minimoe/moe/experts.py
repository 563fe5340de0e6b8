"""The experts: one set of weights, and interchangeable ways to bring tokens to them and back.

    y_t = sum over the K picked experts of  weight * down( silu(gate x_t) * (up x_t) )

``reference`` says just that, token by token, and is the oracle. The others bring the R = T*K (token,
expert) pairs together by expert, so that each expert sees its tokens as one contiguous block:

``loop``      one matmul an expert, from the host (``loop``): the fastest on a CPU
``grouped``   all blocks in one call of torch's grouped matmul (``grouped``): never waits for the device
``capacity``  every expert has the same number of places, and drops what exceeds it (``capacity``)

All but ``reference`` and ``capacity`` have their backward pass written out; it can be taken once, not
differentiated again. There is no dispatcher that copies the weights of each token's experts together:
measured, it lost to ``loop`` at every number of tokens (``benchmarks/test_moe_layer.py``).

Dimensions: T tokens, D model width, H expert width, E experts, K experts a token, R = T*K.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimoe.moe.dispatch.capacity import capacity_experts
from minimoe.moe.dispatch.grouped import grouped_experts, unsupported_reason
from minimoe.moe.dispatch.loop import loop_experts
from minimoe.moe.dispatch.quantized import quantized_experts
from minimoe.moe.router import Routing
from minimoe.precision.linear import held, hold_codes_
from minimoe.precision.recipe import Recipe

Dispatch = Literal["auto", "grouped", "loop", "capacity", "reference"]

DISPATCHES: tuple[str, ...] = ("auto", "grouped", "loop", "capacity", "reference")


class Experts(nn.Module):
    """E SwiGLU networks of width H, their weights stacked: ``gate_up_proj`` (E, 2H, D), the gate's
    rows first, and ``down_proj`` (E, D, H). With a ``recipe`` their matmuls are done under it."""

    def __init__(self, dim: int, expert_dim: int, n_experts: int, recipe: Recipe | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        self.gate_up_proj = nn.Parameter(torch.empty(n_experts, 2 * expert_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(n_experts, dim, expert_dim))
        nn.init.normal_(self.gate_up_proj, std=0.02)
        nn.init.normal_(self.down_proj, std=0.02)

    def forward(
        self, x_TD: Tensor, routing: Routing, dispatch: Dispatch = "auto", capacity: int | None = None
    ) -> Tensor:
        """x_TD (T, D), its routing -> y_TD (T, D), in the dtype the matmuls ran in.

        Args:
            capacity: tokens an expert takes, for ``capacity`` alone; see ``capacity.places``.

        Raises:
            ValueError: ``dispatch`` is unknown, ``grouped`` cannot run these widths or this dtype, or
                ``capacity`` is missing or not positive; or it is not ``auto`` and there is a recipe.
        """
        if dispatch not in DISPATCHES:
            raise ValueError(f"dispatch must be one of {', '.join(DISPATCHES)}, not {dispatch!r}")
        if self.recipe is not None:
            return self._under(self.recipe, x_TD, routing, dispatch)
        gate_up: Tensor = self.gate_up_proj
        down: Tensor = self.down_proj
        if torch.is_autocast_enabled(x_TD.device.type):
            # Autocast knows nn.Linear but not grouped_mm: cast here, so that all ways agree.
            dtype = torch.get_autocast_dtype(x_TD.device.type)
            x_TD, gate_up, down = x_TD.to(dtype), gate_up.to(dtype), down.to(dtype)
        weights_TK, ids_TK = routing.weights_TK, routing.ids_TK

        if dispatch == "reference":
            return _reference(x_TD, gate_up, down, weights_TK, ids_TK)
        if dispatch == "capacity":
            return capacity_experts(x_TD, gate_up, down, weights_TK, ids_TK, capacity)
        if dispatch == "auto":
            dispatch = _fastest(x_TD, weights_TK.shape[1], down.shape[2])
        elif dispatch == "grouped" and (problem := _unsupported_reason(x_TD, down.shape[2])):
            raise ValueError(f"dispatch 'grouped' cannot run here: {problem}; use 'loop' or 'auto'")
        experts = grouped_experts if dispatch == "grouped" else loop_experts
        return experts(x_TD, gate_up, down, weights_TK, ids_TK)

    def _under(self, recipe: Recipe, x_TD: Tensor, routing: Routing, dispatch: Dispatch) -> Tensor:
        if dispatch != "auto":
            raise ValueError(f"dispatch {dispatch!r} knows no recipe ({recipe.name}); use 'auto'")
        gate_up, down = (held(self, name, recipe.weight) for name in ("gate_up_proj", "down_proj"))
        return quantized_experts(x_TD, gate_up, down, routing.weights_TK, routing.ids_TK, recipe)

    def quantize_weights_(self) -> None:
        """Keep the weights as the recipe's codes alone, for inference (``precision.linear``)."""
        if self.recipe is not None:
            hold_codes_(self, "gate_up_proj", self.recipe.weight)
            hold_codes_(self, "down_proj", self.recipe.weight)


def _unsupported_reason(x_TD: Tensor, expert_dim: int) -> str | None:
    """Why ``grouped`` cannot run."""
    return unsupported_reason(x_TD, dim=x_TD.shape[1], expert_dim=expert_dim)


def _fastest(x_TD: Tensor, top_k: int, expert_dim: int) -> Literal["grouped", "loop"]:
    """The rule that ``benchmarks/crossover.py`` and its record (docs/results/crossover-cpu.json) led to.

    On a CPU the loop wins with few tokens and wide experts, where reading weights is all; with one thread in
    float32; and where the (R, D) rows that ``grouped`` makes exceed the 32 MB up to which glibc uses freed
    memory again. PeerFailure the two are so close that a rough rule will do (a test holds it to the record).
    """
    if x_TD.device.type == "cpu" and not torch.compiler.is_compiling():  # a trace cannot ask for the threads
        n_tokens, dim = x_TD.shape
        full = x_TD.dtype == torch.float32
        few = n_tokens == 1 or (full and n_tokens <= 16 and dim >= 256)
        large = n_tokens * top_k * dim * x_TD.itemsize > 1 << 25
        if few or large or (full and torch.get_num_threads() == 1):
            return "loop"
    return "loop" if _unsupported_reason(x_TD, expert_dim) else "grouped"


def _expert(x_D: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One expert: x (D,), gate_up (2H, D), down (D, H) -> (D,)."""
    gate_H, up_H = F.linear(x_D, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate_H) * up_H, down)


def _reference(x_TD: Tensor, gate_up: Tensor, down: Tensor, weights_TK: Tensor, ids_TK: Tensor) -> Tensor:
    """The oracle: the equation, for each token and each of its experts. Slow, and plainly right.
    A token's K results are added up in float32, as everywhere here."""
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    outputs = []
    for x_D, weights_K, ids_K in zip(x_TD, weights_TK, ids_TK, strict=True):
        y_D = torch.zeros_like(x_D, dtype=wide)
        for weight, expert in zip(weights_K, ids_K.tolist(), strict=True):
            y_D = y_D + weight * _expert(x_D, gate_up[expert], down[expert]).to(wide)
        outputs.append(y_D)
    if outputs:
        return torch.stack(outputs).to(x_TD.dtype)
    # No token: still touch all that learns, so that its gradient is zero and not None.
    return x_TD + 0 * (gate_up.sum() + down.sum() + weights_TK.sum()).to(x_TD.dtype)
