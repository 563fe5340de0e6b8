"""What the two processes of *Moving data* run. A new process can import a file, but not a notebook cell."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minimoe.moe import Meter, MoE, expert_parallel_
from minimoe.moe.expert_parallel.row_format import DispatchDtype

SIZES = {"dim": 128, "expert_dim": 32, "n_experts": 16, "top_k": 4}
TOKENS = 256  # of each process


def make_layer(top_groups: int | None = None) -> MoE:
    """The same weights in every process; two groups of experts, one for each."""
    torch.manual_seed(0)
    layer = MoE(**SIZES, n_groups=2, top_groups=top_groups)  # type: ignore[arg-type]
    torch.nn.init.normal_(layer.gate.weight)
    return layer


def make_tokens(rank: int) -> Tensor:
    """Every process has tokens of its own."""
    return torch.randn(TOKENS, SIZES["dim"], generator=torch.Generator().manual_seed(1 + rank))


def one_step(top_groups: int | None, dispatch_dtype: DispatchDtype) -> dict[str, Any]:
    """Forward and backward; runs in each process."""
    layer, meter = make_layer(top_groups), Meter()
    expert_parallel_(layer, dispatch_dtype=dispatch_dtype, meter=meter)  # keeps half of the experts here
    x_TD = make_tokens(dist.get_rank()).requires_grad_()
    y_TD, routing = layer(x_TD)
    y_TD.square().sum().backward()
    held = len(layer.experts.down_proj)
    return {"y": y_TD.detach(), "ids": routing.ids_TK, "bytes": dict(meter.bytes), "held": held}
