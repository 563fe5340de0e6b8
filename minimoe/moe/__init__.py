"""Mixture of experts: the newsroom. Specialists, their editor, and the generalist.

    T tokens, D model width, H expert width, E routed experts, K experts a token, G groups, R = T*K.
    A tensor's name ends in its dimensions: x_TD, weights_TK, ids_TK, scores_TE, counts_E.

``routing`` scores and chooses, ``experts`` brings tokens to the experts and back, ``balance`` keeps
all experts at work, ``layer`` puts them together, ``presets`` are the layers of published models and
``upcycling`` makes one from a dense network; ``parallel`` spreads the experts over processes, ``placement``
evens what they have to do. Nothing in here knows of data, loops or files.
"""

from minimoe.moe.eplb import Placement, rebalance_experts
from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.experts import Experts
from minimoe.moe.feed_forward import SwiGLU
from minimoe.moe.layer import MoE
from minimoe.moe.load_balancing import (
    count_by,
    max_violation,
    router_z_loss,
    sequence_loss,
    statistics,
    switch_loss,
    top_tokens,
    update_bias_,
)
from minimoe.moe.parallelize import expert_parallel_
from minimoe.moe.presets import PRESETS, moe_from_config, preset
from minimoe.moe.router import Router, Routing, expert_choice, route
from minimoe.moe.upcycling import upcycle

__all__ = [
    "PRESETS",
    "Experts",
    "Meter",
    "MoE",
    "Placement",
    "Router",
    "Routing",
    "SwiGLU",
    "count_by",
    "expert_choice",
    "expert_parallel_",
    "max_violation",
    "moe_from_config",
    "preset",
    "rebalance_experts",
    "route",
    "router_z_loss",
    "sequence_loss",
    "statistics",
    "switch_loss",
    "top_tokens",
    "upcycle",
    "update_bias_",
]
