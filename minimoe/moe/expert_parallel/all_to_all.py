"""A journey between processes that autograd can follow: rows depart, other work is done, rows land.

    ticket = depart(journey, x, weights, ids)      begins to send, and returns at once
    ...                                            the shared expert, say
    x, weights, ids = land(journey, ticket)        waits for what the others sent

Backward the gradients travel the other way round: they begin to travel in ``land``'s backward pass and have
arrived by ``depart``'s; autograd runs what was done between the two in between again, because it takes nodes
in the reverse of their order. The ticket is all that autograd sees of the way.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.expert_parallel.row_format import RowFormat


class AllToAll:
    """One exchange of rows with each process of a group, and of their gradients.

    Args:
        sent_P, received_P: rows to and from each process; those sent stand in the order of the processes.
        there, back: what a row and its gradient consist of.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        sent_P: list[int],
        received_P: list[int],
        there: RowFormat,
        back: RowFormat,
        meter: Meter | None,
    ) -> None:
        self.group = group
        self.sent_P, self.received_P = sent_P, received_P
        self.there, self.back = there, back
        self.meter = meter
        self._flying: tuple[dist.Work, Tensor, Tensor] | None = None

    def start(
        self, leg: RowFormat, tensors: tuple[Tensor, ...], sent_P: list[int], received_P: list[int]
    ) -> None:
        """Begin to send; the rows must be there until ``finish``."""
        outgoing = leg.pack(tensors)
        incoming = outgoing.new_empty(sum(received_P), leg.nbytes)
        work = dist.all_to_all_single(incoming, outgoing, received_P, sent_P, self.group, async_op=True)
        assert work is not None
        self._flying = work, incoming, outgoing
        if self.meter is not None:
            self.meter.count(leg.name, sent_P, leg.nbytes, dist.get_rank(self.group))

    def finish(self, leg: RowFormat) -> tuple[Tensor, ...]:
        """Wait, and unpack."""
        assert self._flying is not None
        work, incoming, _ = self._flying
        work.wait()
        self._flying = None
        return leg.unpack(incoming)


def depart(journey: AllToAll, *tensors: Tensor) -> Tensor:
    """Begin to send; the ticket is for ``land``."""
    return _Depart.apply(journey, *tensors)


def land(journey: AllToAll, ticket: Tensor) -> tuple[Tensor, ...]:
    """What the others sent, in the order of the processes; integers carry no gradient."""
    return _Land.apply(journey, ticket)


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, journey, *tensors):
        ctx.journey, ctx.n = journey, len(tensors)
        journey.start(journey.there, tensors, journey.sent_P, journey.received_P)
        return tensors[0].new_zeros(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, ticket):
        grads = ctx.journey.finish(ctx.journey.back)
        return None, *grads, *[None] * (ctx.n - len(grads))


class _Land(torch.autograd.Function):
    @staticmethod
    def forward(ctx, journey, ticket):
        tensors = journey.finish(journey.there)
        ctx.journey = journey
        ctx.mark_non_differentiable(*[x for x in tensors if not x.is_floating_point()])
        return tensors

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        journey = ctx.journey
        wanted = grads[: len(journey.back.columns)]  # integers come last
        journey.start(journey.back, wanted, journey.received_P, journey.sent_P)
        return None, wanted[0].new_zeros(1)
