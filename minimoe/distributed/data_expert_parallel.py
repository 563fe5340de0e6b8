"""Several processes that train one model: experts spread over some of them, the rest of the model copied.

Started by ``torchrun``. Of W processes, groups of P hold the experts of each layer between them (expert
parallelism, ``moe.parallel``); everything else stands in every process and learns from its share of each
batch (torch's DistributedDataParallel). With W / P groups each expert stands W / P times, and its copies are
kept alike by DistributedDataParallel too. A checkpoint holds the whole model, and any number of processes can
go on from it.

Every gradient is that of the mean loss over the whole batch. Those of the experts come as the sum over the
group, because each process sends in the gradients of its own mean; hence a division by P.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from minimoe.data.corpus import Batch
from minimoe.distributed.errors import PeerFailure
from minimoe.distributed.strategy import Network, SingleProcess, T
from minimoe.models.gpt import GPT
from minimoe.moe import MoE
from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.expert_parallel.row_format import DispatchDtype
from minimoe.moe.parallelize import expert_parallel_

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


class DataExpertParallel(SingleProcess):
    """One of the processes of torch.distributed's default group.

    Args:
        expert_parallel: P, the processes that hold a layer's experts between them.
        dispatch_dtype: how tokens travel, see ``moe.expert_parallel.row_format``.
        timeout: seconds to wait for a process that does not answer; None for torch's half an hour.

    Raises:
        ValueError: there is no group, or its size is not a multiple of P.
    """

    def __init__(
        self,
        expert_parallel: int = 1,
        dispatch_dtype: DispatchDtype = "full",
        meter: Meter | None = None,
        timeout: float | None = None,
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"expert parallelism over {expert_parallel} processes needs as many processes: start with "
                f"torchrun --nproc-per-node {expert_parallel} -m minimoe train --expert-parallel ..."
            )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if expert_parallel < 1 or self.size % expert_parallel:
            raise ValueError(
                f"{self.size} processes cannot be split into groups of expert_parallel ({expert_parallel}); "
                "make their number a multiple of it"
            )
        self.expert_parallel, self.dispatch_dtype, self.meter = expert_parallel, dispatch_dtype, meter
        self.mesh = _mesh(self.size, expert_parallel, timeout)
        self.copies, self.experts = self.mesh.get_group("copies"), self.mesh.get_group("experts")
        self.is_rank0 = self.rank == 0
        self._wrapped: list[DistributedDataParallel] = []

    def wrap_model(self, model: GPT, batch_size: int) -> Network:
        """Spread the experts, wrap the rest.

        Raises:
            ValueError: the batch does not divide by the processes, the experts do not by P, or the gate has
                jitter, whose noise each process would draw anew after a restart.
        """
        if batch_size % self.size:
            raise ValueError(
                f"batch_size ({batch_size}) must be divisible by the number of processes ({self.size})"
            )
        if model.config.jitter:
            raise ValueError(f"jitter ({model.config.jitter}) goes with one process alone; make it 0")
        expert_parallel_(model, self.experts, dispatch_dtype=self.dispatch_dtype, meter=self.meter)
        for layer in model.modules():
            if isinstance(layer, MoE) and layer.parallel is not None and dist.get_world_size(self.copies) > 1:
                layer.parallel.replicated = self._wrap(layer.experts, self.copies)
        spread = [name for name, _ in model.named_parameters() if _is_spread(name)]
        buffers = [name for name, _ in model.named_buffers()]  # alike everywhere already
        # torch has no public way to leave some parameters out.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, spread + buffers)
        return self._wrap(model, dist.group.WORLD)

    def _wrap(self, module: nn.Module, group: dist.ProcessGroup | None) -> DistributedDataParallel:
        wrapped = DistributedDataParallel(module, process_group=group)
        self._wrapped.append(wrapped)
        return wrapped

    def shard_batch(self, batch: Batch) -> Batch:
        return Batch(*(x.chunk(self.size)[self.rank] for x in batch))

    def shard_batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Batch 0 to process 0, 1 to 1, …. Where the last round is not full, some run a batch that does not
        count: the others need them, for their experts."""
        dealt = list(batches)
        for start in range(0, len(dealt), self.size):
            mine = start + self.rank
            yield dealt[min(mine, len(dealt) - 1)], mine < len(dealt)

    @contextmanager
    def grad_sync(self, last: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for wrapped in () if last else self._wrapped:
                stack.enter_context(wrapped.no_sync())
            yield

    def all_reduce_mean(self, x: Tensor) -> Tensor:
        return self.all_reduce_sum(x) / self.size

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        x = x.detach().clone()
        dist.all_reduce(x)
        return x

    def clip_grad_norm(self, parameters: Mapping[str, Tensor], limit: float) -> Tensor:
        """One norm over what all have and over the experts of the whole group."""
        grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        spread = [grad for name, grad in grads.items() if _is_spread(name)]
        common = [grad for name, grad in grads.items() if not _is_spread(name)]
        for grad in spread:
            grad /= self.expert_parallel
        square = torch.nn.utils.get_total_norm(spread).square()
        dist.all_reduce(square, group=self.experts)
        norm = (torch.nn.utils.get_total_norm(common).square() + square).sqrt()
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), limit, norm)
        return norm

    def any_rank(self, stop: bool) -> bool:
        wants = torch.tensor(int(stop))
        dist.all_reduce(wants, dist.ReduceOp.MAX)
        return bool(wants)

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        told: list[Any] = [None, False]
        if self.is_rank0:
            try:
                told = [work(), True]
            finally:
                dist.broadcast_object_list(told)
        else:
            dist.broadcast_object_list(told)
        result, well = told
        if not well:
            raise PeerFailure
        return result

    def gather_experts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._gather(t) if _is_spread(name) and t.ndim else t for name, t in tensors.items()}

    def _gather(self, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(self.expert_parallel)]
        dist.all_gather(parts, mine.contiguous(), group=self.experts)
        return torch.cat(parts)

    def shard_experts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        place = dist.get_rank(self.experts)
        return {
            name: t.chunk(self.expert_parallel)[place].clone() if _is_spread(name) and t.ndim else t
            for name, t in tensors.items()
        }


def _mesh(size: int, expert_parallel: int, timeout: float | None) -> DeviceMesh:
    """Rows share a layer's experts, columns hold the same ones. Its groups are made first, because
    init_device_mesh knows no timeout, and would wait half an hour in each."""
    layout = torch.arange(size).view(-1, expert_parallel)
    limit = None if timeout is None else timedelta(seconds=timeout)
    copies, experts = (
        dist.new_subgroups_by_enumeration(groups.tolist(), timeout=limit)[0] for groups in (layout.T, layout)
    )
    names = ("copies", "experts")
    return DeviceMesh.from_group([copies, experts], "cpu", layout, mesh_dim_names=names)


def _is_spread(name: str) -> bool:
    """Whether a tensor is of the routed experts: a parameter, its average or its moments."""
    return name.endswith(EXPERTS)
