"""[portability] An asynchronous all-to-all exchange of rows between processes, with its gradient.

    handle = exchange.start(x, weights, ids)       begins to send, and returns at once
    ...                                            other work, such as the shared expert
    x, weights, ids = exchange.wait(handle)        waits for the rows from the other processes

In the backward pass the gradients are exchanged in the opposite direction: the backward pass of ``wait``
begins to send them, that of ``start`` waits for them. Because autograd visits operations in reverse order,
the backward pass of the work between the two again overlaps with the exchange. To autograd, the exchange is
the handle alone.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.expert_parallel.row_format import RowFormat


class AllToAll:
    """One exchange of rows among the processes of a group, and the exchange of their gradients.

    Args:
        sent_P, received_P: rows to and from each process; the rows to send are ordered by process.
        forward_format, backward_format: of a row, and of its gradient.
        meter: counts what is sent.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        sent_P: list[int],
        received_P: list[int],
        forward_format: RowFormat,
        backward_format: RowFormat,
        meter: Meter | None,
    ) -> None:
        self.group = group
        self.sent_P, self.received_P = sent_P, received_P
        self.forward_format, self.backward_format = forward_format, backward_format
        self.meter = meter
        self._pending: tuple[dist.Work, Tensor, Tensor] | None = None

    def start(self, *tensors: Tensor) -> Tensor:
        """Begin to send the rows; the result is the handle for ``wait``."""
        return _Start.apply(self, *tensors)

    def wait(self, handle: Tensor) -> tuple[Tensor, ...]:
        """The rows received, ordered by process. Integers carry no gradient."""
        return _Wait.apply(self, handle)

    def send(
        self, row_format: RowFormat, tensors: tuple[Tensor, ...], sent_P: list[int], received_P: list[int]
    ) -> None:
        """Begin an exchange, in either direction."""
        outgoing = row_format.pack(tensors)
        incoming = outgoing.new_empty(sum(received_P), row_format.nbytes)
        work = dist.all_to_all_single(incoming, outgoing, received_P, sent_P, self.group, async_op=True)
        assert work is not None
        self._pending = work, incoming, outgoing  # both must live until the exchange is complete
        if self.meter is not None:
            self.meter.count(row_format.name, sent_P, row_format.nbytes, dist.get_rank(self.group))

    def receive(self, row_format: RowFormat) -> tuple[Tensor, ...]:
        """Wait for the exchange in progress, and unpack its rows."""
        assert self._pending is not None
        work, incoming, _ = self._pending
        work.wait()
        self._pending = None
        return row_format.unpack(incoming)


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, exchange, *tensors):
        ctx.exchange, ctx.n_tensors = exchange, len(tensors)
        exchange.send(exchange.forward_format, tensors, exchange.sent_P, exchange.received_P)
        return tensors[0].new_zeros(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, handle):
        grads = ctx.exchange.receive(ctx.exchange.backward_format)
        return None, *grads, *[None] * (ctx.n_tensors - len(grads))


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx, exchange, handle):
        tensors = exchange.receive(exchange.forward_format)
        ctx.exchange = exchange
        ctx.mark_non_differentiable(*[x for x in tensors if not x.is_floating_point()])
        return tensors

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        exchange = ctx.exchange
        grads = grads[: len(exchange.backward_format.columns)]  # integers come last
        exchange.send(exchange.backward_format, grads, exchange.received_P, exchange.sent_P)
        return None, grads[0].new_zeros(1)
