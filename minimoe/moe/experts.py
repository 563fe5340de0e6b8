"""The routed experts: one set of stacked weights, and a choice of dispatchers that compute with them.

    y_t = sum over the K picked experts of  weight * down( silu(gate x_t) * (up x_t) )

The ``reference`` dispatcher computes this token by token and is the oracle for the others, which group the
R = T*K (token, expert) pairs by expert, so that each expert sees its tokens as one contiguous block:

``loop``      one matmul per expert, launched from the host: the fastest on a CPU
``grouped``   all blocks in one call of torch's grouped matmul: the host never waits for the device
``capacity``  a fixed number of tokens per expert; the excess is dropped

``auto`` selects ``loop`` or ``grouped`` (``dispatch.select``). Their backward passes are written out, and so
support no double backward. A dispatcher that gathers the weights of each token's experts is not included: it
was slower than ``loop`` at every number of tokens.

Dimensions: T tokens, D model width, H expert width, E experts, K experts per token, R = T*K.
"""

import torch
from torch import Tensor, nn

from minimoe.moe.arguments import Dispatch, check_dispatch
from minimoe.moe.dispatch.capacity import capacity_experts
from minimoe.moe.dispatch.grouped import grouped_experts
from minimoe.moe.dispatch.loop import loop_experts
from minimoe.moe.dispatch.quantized import quantized_experts
from minimoe.moe.dispatch.reference import reference_experts
from minimoe.moe.dispatch.select import check_grouped, fastest
from minimoe.moe.router import Routing
from minimoe.precision.linear import get_weight, store_quantized_
from minimoe.precision.recipe import Recipe


class Experts(nn.Module):
    """E SwiGLU networks of width H with stacked weights: ``gate_up_proj`` (E, 2H, D), the gate's rows first,
    and ``down_proj`` (E, D, H). A ``recipe`` determines the precision of their matmuls."""

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
        """x_TD (T, D) and its routing -> y_TD (T, D), in the dtype of the matmuls.

        Args:
            capacity: tokens per expert, for dispatch ``capacity`` only; see ``capacity.expert_capacity``.

        Raises:
            ValueError: ``dispatch`` is unknown; ``grouped`` does not support these widths or this dtype;
                ``capacity`` is missing or not positive; or there is a recipe and ``dispatch`` is not
                ``auto``.
        """
        check_dispatch(dispatch, self.recipe)
        weights_TK, ids_TK = routing.weights_TK, routing.ids_TK
        if self.recipe is not None:
            gate_up_q = get_weight(self, "gate_up_proj", self.recipe.weight)
            down_q = get_weight(self, "down_proj", self.recipe.weight)
            return quantized_experts(x_TD, gate_up_q, down_q, weights_TK, ids_TK, self.recipe)

        gate_up: Tensor = self.gate_up_proj
        down: Tensor = self.down_proj
        if torch.is_autocast_enabled(x_TD.device.type):
            # Autocast covers nn.Linear but not grouped_mm: cast here, so that all dispatchers agree.
            dtype = torch.get_autocast_dtype(x_TD.device.type)
            x_TD, gate_up, down = x_TD.to(dtype), gate_up.to(dtype), down.to(dtype)
        if dispatch == "capacity":
            return capacity_experts(x_TD, gate_up, down, weights_TK, ids_TK, capacity)
        if dispatch == "auto":
            dispatch = fastest(x_TD, weights_TK.shape[1], expert_dim=down.shape[2])
        elif dispatch == "grouped":
            check_grouped(x_TD, expert_dim=down.shape[2])
        run = {"reference": reference_experts, "loop": loop_experts, "grouped": grouped_experts}[dispatch]
        return run(x_TD, gate_up, down, weights_TK, ids_TK)

    def quantize_weights_(self) -> None:
        """Replace the weights by their quantized form under the recipe, for inference."""
        if self.recipe is not None:
            store_quantized_(self, "gate_up_proj", self.recipe.weight)
            store_quantized_(self, "down_proj", self.recipe.weight)
