"""Mixture of experts: the newsroom. Specialists, their editor, and the generalist.

    T tokens, D model width, H expert width, E routed experts, K experts a token, G groups, R = T*K.
    A tensor's name ends in its dimensions: x_TD, weights_TK, ids_TK, scores_TE, counts_E.

``routing`` scores and chooses, ``experts`` brings tokens to the experts and back, ``balance`` keeps
all experts at work, ``layer`` puts them together. Nothing in here knows of data, loops or files.
"""

from minimoe.moe.balance import max_violation, update_bias_
from minimoe.moe.experts import Experts
from minimoe.moe.layer import MoE, SwiGLU
from minimoe.moe.routing import Router, Routing, expert_choice, route

__all__ = [
    "Experts",
    "MoE",
    "Router",
    "Routing",
    "SwiGLU",
    "expert_choice",
    "max_violation",
    "route",
    "update_bias_",
]
