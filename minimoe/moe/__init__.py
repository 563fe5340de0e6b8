"""Mixture of experts: layers in which each token uses a few of many expert networks.

Dimensions, which end the names of tensors (x_TD, weights_TK, ids_TK, scores_TE, counts_E): T tokens, D model
width, H expert width, E routed experts, K experts per token, G groups of experts, R = T*K (token, expert)
pairs.

The core, in reading order: ``feed_forward`` (SwiGLU, one expert), ``router`` (scores, choice, weights),
``dispatch.reference`` (the equation, token by token), ``experts`` (stacked weights and their dispatchers),
``layer`` (router, experts and shared expert together) and ``load_balancing`` (auxiliary losses and the
balancing bias).

Around it: ``arguments`` (their types and validation), ``dispatch`` (faster dispatchers), ``expert_choice``,
``load_statistics``, ``presets`` (layers of published models), ``upcycling`` (a mixture made from a dense
network), ``parallelize`` with ``expert_parallel`` (experts divided among processes) and ``eplb`` (which rank
holds which expert).
"""

from typing import TYPE_CHECKING, Any

from minimoe.moe.eplb import Placement, rebalance_experts
from minimoe.moe.expert_choice import expert_choice
from minimoe.moe.experts import Experts
from minimoe.moe.feed_forward import SwiGLU
from minimoe.moe.layer import MoE
from minimoe.moe.load_balancing import router_z_loss, sequence_loss, switch_loss, update_bias_
from minimoe.moe.load_statistics import count_by, max_violation, statistics, top_tokens
from minimoe.moe.presets import PRESETS, moe_from_config, preset
from minimoe.moe.router import Router, Routing, route
from minimoe.moe.upcycling import upcycle

if TYPE_CHECKING:
    from minimoe.moe.expert_parallel.comm_meter import Meter
    from minimoe.moe.parallelize import expert_parallel_

__all__ = [
    "PRESETS", "Experts", "Meter", "MoE", "Placement", "Router", "Routing", "SwiGLU", "count_by",
    "expert_choice", "expert_parallel_", "max_violation", "moe_from_config", "preset", "rebalance_experts",
    "route", "router_z_loss", "sequence_loss", "statistics", "switch_loss", "top_tokens", "upcycle",
    "update_bias_",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load expert parallelism on first use: a single process does not need it."""
    if name == "expert_parallel_":
        from minimoe.moe.parallelize import expert_parallel_

        return expert_parallel_
    if name == "Meter":
        from minimoe.moe.expert_parallel.comm_meter import Meter

        return Meter
    raise AttributeError(f"module 'minimoe.moe' has no attribute {name!r}")
