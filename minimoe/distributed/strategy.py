"""The processes that train one model: here a single one, which has nobody to wait for.

``together.DataExpertParallel`` does the same for several. Nothing but these two knows how many there are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from minimoe.data.corpus import Batch
from minimoe.models.gpt import GPT
from minimoe.moe import Routing

T = TypeVar("T")

Network = Callable[[Tensor], tuple[Tensor, list[Routing]]]


class SingleProcess:
    """One process."""

    is_rank0 = True  # whether this process keeps records and checkpoints, and speaks

    def wrap_model(self, model: GPT, batch_size: int) -> Network:
        """Make ready to train a model; what to call in training."""
        return model

    def shard_batch(self, batch: Batch) -> Batch:
        """This process's rows of a batch."""
        return batch

    def shard_batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """This process's of some batches, and whether each counts; all processes get as many."""
        return ((batch, True) for batch in batches)

    def grad_sync(self, last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch: after the last one, gradients are those of all processes."""
        return nullcontext()

    def all_reduce_mean(self, x: Tensor) -> Tensor:
        """Over all processes."""
        return x

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Over all processes."""
        return x

    def clip_grad_norm(self, parameters: Mapping[str, Tensor], limit: float) -> Tensor:
        """The gradient's norm, which is afterwards ``limit`` at most."""
        return torch.nn.utils.clip_grad_norm_(parameters.values(), limit)

    def any_rank(self, stop: bool) -> bool:
        """Whether any process wants to stop."""
        return stop

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Let one process do what only one should; all get its result, or learn of its error."""
        return work()

    def gather_experts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all experts, from those that this process holds."""
        return tensors

    def shard_experts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of ``whole``."""
        return tensors
