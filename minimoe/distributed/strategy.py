"""The distributed strategy: how one training step is spread over processes. Here the case of one process.

``data_expert_parallel.DataExpertParallel`` overrides it for several. Only these two classes depend on the
number of processes; the trainer calls their methods and receives a model that ``wrap_model`` has wrapped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from minimoe.data.corpus import Batch
from minimoe.models.gpt import GPT

T = TypeVar("T")


class SingleProcess:
    """Training in one process: nothing is wrapped, sharded or reduced."""

    is_rank0 = True  # whether this process writes records and checkpoints and prints

    def wrap_model(self, model: GPT, batch_size: int) -> nn.Module:
        """The network to train, from a model that is on its device already; its backward pass synchronizes
        gradients. ``batch_size`` is that of all processes together."""
        return model

    def shard_batch(self, batch: Batch) -> Batch:
        """This process's rows of a batch."""
        return batch

    def shard_batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """This process's share of some batches, the same number in every process, and whether each counts."""
        return ((batch, True) for batch in batches)

    def grad_sync(self, last: bool) -> AbstractContextManager[object]:
        """Context of a micro-batch: gradients are synchronized in the last one of a step only."""
        return nullcontext()

    def all_reduce_mean(self, x: Tensor) -> Tensor:
        """The mean over processes, as a new tensor."""
        return x

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """The sum over processes, as a new tensor."""
        return x

    def clip_grad_norm(self, parameters: Mapping[str, Tensor], limit: float) -> Tensor:
        """Scale the whole model's gradient to a norm of at most ``limit``; returns the norm before."""
        return torch.nn.utils.clip_grad_norm_(parameters.values(), limit)

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag

    def run_on_rank0(self, function: Callable[[], T]) -> T:
        """Run on rank 0 and broadcast the result. If it raises there, the others raise PeerFailure."""
        return function()

    def gather_experts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the whole model, from this process's shard of the experts."""
        return tensors

    def shard_experts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of ``gather_experts``."""
        return tensors
