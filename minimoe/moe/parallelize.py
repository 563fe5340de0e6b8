"""[portability] Applies expert parallelism to a model: divides its experts among processes, in place."""

from typing import TypeVar

import torch.distributed as dist
from torch import nn

from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.expert_parallel.dispatcher import ExpertParallel
from minimoe.moe.expert_parallel.row_format import DispatchDtype, check_dispatch_dtype
from minimoe.moe.layer import MoE

Module = TypeVar("Module", bound=nn.Module)


def expert_parallel_(
    module: Module,
    group: dist.ProcessGroup | None = None,
    *,
    dispatch_dtype: DispatchDtype = "full",
    meter: Meter | None = None,
) -> Module:
    """Divide the experts of every ``MoE`` in ``module`` among a group's processes, in place; returns it.

    Every process calls it with the same module (same weights), before it creates an optimizer. Each then
    holds E/P experts per layer and its own tokens, and runs forward and backward passes together with the
    others. Gradients of the experts are those of the sum of all processes' losses; parameters other than
    experts are left to data parallelism.

    Args:
        group: of torch.distributed; None is the default group.
        dispatch_dtype: ``full``, ``bf16`` or ``fp8``; see ``expert_parallel.row_format``.
        meter: counts what is sent by all layers.

    Raises:
        ValueError: there is no process group, E is not divisible by P, a layer's experts are already divided,
            or a layer drops tokens by a rule that would need to compare those of all processes.
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
            all_experts = getattr(layer.experts, name)
            local = all_experts.detach().chunk(size)[rank].clone()
            setattr(layer.experts, name, nn.Parameter(local, all_experts.requires_grad))
        layer.parallel = ExpertParallel(group, dispatch_dtype, meter)
    return module


def _check(layer: MoE, size: int) -> None:
    n_experts = len(layer.gate.weight)
    if layer.parallel is not None:
        raise ValueError("the layer's experts are already divided among processes; build a new layer instead")
    if n_experts % size:
        raise ValueError(f"n_experts ({n_experts}) must be divisible by the number of processes ({size})")
    if layer.dispatch == "capacity" or layer.gate.choice == "expert":
        raise ValueError(
            f"dispatch {layer.dispatch!r} with choice {layer.gate.choice!r} drops tokens by comparing all of "
            "them, but each process sees only its own; use choice 'token' and another dispatch"
        )
    if not isinstance(layer.experts.gate_up_proj, nn.Parameter):
        raise ValueError(
            "the experts are quantized for inference (quantize_weights_); call expert_parallel_ before it"
        )
