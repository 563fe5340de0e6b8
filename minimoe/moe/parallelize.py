"""The same layer across processes: each holds some of the experts, and tokens travel to theirs and back.

Process p of a group of P holds experts p * E/P and those after it. A token is sent once to each process
that has any of its experts, with their weights; what comes back is the weighted sum over the experts there,
and at home the processes' sums are added up. (One row a process and not one an expert, as DeepSeek-V3 sends
one a node; arXiv 2412.19437, section 3.2.2.) The shared expert works while the tokens travel, and its
backward pass while their gradients do.

How many rows will come must be known before there is a place for them: one small exchange of counts, which
the host waits for. Sums over a token's rows use index_add, which on a GPU adds in an order of its own unless
``torch.use_deterministic_algorithms(True)`` is set.

Dimensions: T tokens, D model width, E experts, K experts a token, P processes, N rows sent, M rows received,
R (row, expert) pairs among those.
"""

from typing import TypeVar

import torch.distributed as dist
from torch import nn

from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.expert_parallel.dispatcher import ExpertParallel
from minimoe.moe.expert_parallel.row_format import DispatchDtype, check_dispatch_dtype
from minimoe.moe.layer import MoE

Layers = TypeVar("Layers", bound=nn.Module)


def expert_parallel_(
    module: Layers,
    group: dist.ProcessGroup | None = None,
    *,
    dispatch_dtype: DispatchDtype = "full",
    meter: Meter | None = None,
) -> Layers:
    """Spread the experts of every ``MoE`` in ``module`` over a group's processes, in place; returns it.

    Every process calls it with the same module (same weights), before it makes an optimizer. Each then holds
    E/P experts a layer, brings tokens of its own, and must run forward and backward together with the
    others. Gradients of the experts are those of the sum of all processes' losses; what is not an expert is
    left to data parallelism.

    Args:
        group: of torch.distributed; None is the default group.
        dispatch_dtype: ``full``, ``bf16`` or ``fp8``, see ``dispatch_dtype``.
        meter: counts what is sent, all layers together.

    Raises:
        ValueError: there is no process group, the experts do not divide, the layer is parallel already, or it
            drops tokens by a rule that would need to see those of all processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "expert parallelism needs a process group: call torch.distributed.init_process_group first, "
            "or start the program with torchrun"
        )
    check_dispatch_dtype(dispatch_dtype)
    group = dist.group.WORLD if group is None else group
    assert group is not None
    layers = [layer for layer in module.modules() if isinstance(layer, MoE)]
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    for layer in layers:
        _check(layer, size)
    for layer in layers:
        for name in ("gate_up_proj", "down_proj"):
            whole = getattr(layer.experts, name)
            mine = whole.detach().chunk(size)[rank].clone()
            setattr(layer.experts, name, nn.Parameter(mine, whole.requires_grad))
        layer.parallel = ExpertParallel(group, dispatch_dtype, meter)
    return module


def _check(layer: MoE, size: int) -> None:
    n_experts = len(layer.gate.weight)
    if layer.parallel is not None:
        raise ValueError("the layer's experts are spread already; build a new layer to spread them anew")
    if n_experts % size:
        raise ValueError(f"n_experts ({n_experts}) must be divisible by the number of processes ({size})")
    if layer.dispatch == "capacity" or layer.gate.choice == "expert":
        raise ValueError(
            f"dispatch {layer.dispatch!r} with choice {layer.gate.choice!r} drops tokens by comparing all of "
            "them, and each process sees its own; use choice 'token' and another dispatch"
        )
    if not isinstance(layer.experts.gate_up_proj, nn.Parameter):
        raise ValueError("the experts hold codes for inference (quantize_weights_); spread them before that")
