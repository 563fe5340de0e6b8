"""Data and expert parallelism combined: one model trained by W processes, in groups of P that share experts.

Each group of P processes holds every expert once (expert parallelism, ``moe.parallelize``). The rest is
replicated in all W processes and learns from its share of each batch (torch's DistributedDataParallel). With
W / P groups each expert exists W / P times, and DistributedDataParallel keeps these replicas equal too.
A checkpoint holds the whole model, so any number of processes can resume from it.

Every gradient is that of the mean loss over the whole batch. The experts' gradients arrive as the sum over
the group, because each process sends the gradients of its own mean loss; hence the division by P.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minimoe.data.corpus import Batch
from minimoe.distributed.errors import PeerFailure
from minimoe.distributed.strategy import SingleProcess, T
from minimoe.models.gpt import GPT
from minimoe.moe import MoE
from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.expert_parallel.row_format import DispatchDtype
from minimoe.moe.parallelize import expert_parallel_

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


class DataExpertParallel(SingleProcess):
    """The strategy of one process of torch.distributed's default group.

    Args:
        expert_parallel: P, processes that share the experts of a layer.
        dispatch_dtype: format of dispatched tokens, see ``moe.expert_parallel.row_format``.
        timeout: seconds to wait for an unresponsive process; None for torch's default of half an hour.

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
                f"the number of processes ({self.size}) must be a multiple of expert_parallel "
                f"({expert_parallel}); change one of them"
            )
        self.expert_parallel, self.dispatch_dtype, self.meter = expert_parallel, dispatch_dtype, meter
        ranks = torch.arange(self.size).view(-1, expert_parallel)
        self.expert_group, self.replica_group = _my_group(ranks, timeout), _my_group(ranks.T, timeout)
        self.is_rank0 = self.rank == 0
        self._wrapped: list[DistributedDataParallel] = []

    def wrap_model(self, model: GPT, batch_size: int) -> nn.Module:
        """Shard the experts and wrap the rest in DistributedDataParallel.

        Raises:
            ValueError: the batch is not divisible by W, the experts are not by P, or the router uses jitter,
                whose noise would differ after a restart.
        """
        if batch_size % self.size:
            raise ValueError(
                f"batch_size ({batch_size}) must be divisible by the number of processes ({self.size})"
            )
        if model.config.jitter:
            raise ValueError(
                f"jitter ({model.config.jitter}) is supported in a single process only; set it to 0"
            )
        expert_parallel_(model, self.expert_group, dispatch_dtype=self.dispatch_dtype, meter=self.meter)
        if dist.get_world_size(self.replica_group) > 1:
            for layer in model.modules():
                if isinstance(layer, MoE) and layer.parallel is not None:
                    layer.parallel.replicated = self._wrap(layer.experts, self.replica_group)
        sharded = [name for name, _ in model.named_parameters() if _is_sharded(name)]
        buffers = [name for name, _ in model.named_buffers()]  # equal in all processes without broadcasts
        # torch has no public way to exclude parameters.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded + buffers)
        return self._wrap(model, dist.group.WORLD)

    def _wrap(self, module: nn.Module, group: dist.ProcessGroup | None) -> DistributedDataParallel:
        wrapped = DistributedDataParallel(module, process_group=group)
        self._wrapped.append(wrapped)
        return wrapped

    def shard_batch(self, batch: Batch) -> Batch:
        return Batch(*(x.chunk(self.size)[self.rank] for x in batch))

    def shard_batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Round-robin. Where the last round is not full, the remaining processes run a batch that does not
        count, because the others need their experts."""
        all_batches = list(batches)
        for start in range(0, len(all_batches), self.size):
            index = start + self.rank
            yield all_batches[min(index, len(all_batches) - 1)], index < len(all_batches)

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
        """One norm over the replicated parameters and all of the group's experts."""
        grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        sharded = [grad for name, grad in grads.items() if _is_sharded(name)]
        replicated = [grad for name, grad in grads.items() if not _is_sharded(name)]
        for grad in sharded:
            grad /= self.expert_parallel
        square = torch.nn.utils.get_total_norm(sharded).square()
        dist.all_reduce(square, group=self.expert_group)
        norm = (torch.nn.utils.get_total_norm(replicated).square() + square).sqrt()
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), limit, norm)
        return norm

    def any_rank(self, flag: bool) -> bool:
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def run_on_rank0(self, function: Callable[[], T]) -> T:
        outcome: list[Any] = [None, False]  # the result, and whether there is one
        if self.is_rank0:
            try:
                outcome = [function(), True]
            finally:
                dist.broadcast_object_list(outcome)
        else:
            dist.broadcast_object_list(outcome)
        result, succeeded = outcome
        if not succeeded:
            raise PeerFailure
        return result

    def gather_experts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._gather(t) if _is_sharded(name) and t.ndim else t for name, t in tensors.items()}

    def _gather(self, shard: Tensor) -> Tensor:
        shards = [torch.empty_like(shard) for _ in range(self.expert_parallel)]
        dist.all_gather(shards, shard.contiguous(), group=self.expert_group)
        return torch.cat(shards)

    def shard_experts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        rank = dist.get_rank(self.expert_group)
        return {
            name: t.chunk(self.expert_parallel)[rank].clone() if _is_sharded(name) and t.ndim else t
            for name, t in tensors.items()
        }


def _my_group(ranks: Tensor, timeout: float | None) -> dist.ProcessGroup:
    """One process group per row of ``ranks``; returns the one with this process. (init_device_mesh, which
    would do the same, takes no timeout.)"""
    limit = None if timeout is None else timedelta(seconds=timeout)
    group, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=limit)
    return group


def _is_sharded(name: str) -> bool:
    """Whether a tensor belongs to the routed experts: a parameter, its average or its optimizer state."""
    return name.endswith(EXPERTS)
