"""[portability] Expert parallelism: the forward pass of a layer whose experts are divided among processes.

Process p of a group of P holds experts p * E/P to (p + 1) * E/P - 1. Dispatch sends a token once to each
process that has any of its experts, with their weights; combine returns the weighted sum over the experts
there, and the token's own process adds up the sums. (One row per process and not per expert, as DeepSeek-V3
sends one per node; arXiv 2412.19437, section 3.2.2.) The shared expert computes while tokens are sent, and
its backward pass runs while their gradients are.

The number of rows to receive must be known before memory for them can be allocated: hence a small exchange of
counts first, which the host waits for. Sums over a token's rows use ``index_add``, whose order on a GPU is
nondeterministic unless ``torch.use_deterministic_algorithms(True)`` is set.

Dimensions: T tokens, D model width, E experts, K experts per token, P processes, N rows sent, M rows
received, R (row, expert) pairs among the received.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimoe.moe.arguments import Dispatch
from minimoe.moe.expert_parallel.all_to_all import AllToAll
from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.expert_parallel.row_format import DispatchDtype, row_formats
from minimoe.moe.experts import Experts
from minimoe.moe.router import Routing


class ExpertParallel:
    """Dispatch and combine for a layer whose experts are divided among a group. The layer holds it; it is not
    part of the layer's state."""

    def __init__(self, group: dist.ProcessGroup, dispatch_dtype: DispatchDtype, meter: Meter | None) -> None:
        self.group, self.dispatch_dtype, self.meter = group, dispatch_dtype, meter
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        # The experts wrapped in data parallelism, where other groups hold copies of them to keep in sync.
        self.replicated: nn.Module | None = None

    def __call__(
        self,
        experts: Experts,
        x_TD: Tensor,
        routing: Routing,
        mask_T: Tensor | None,
        dispatch: Dispatch,
        overlapped: Callable[[], Tensor | None],
    ) -> tuple[Tensor, Tensor | None]:
        """x_TD and its routing -> y_TD of the routed experts, and the result of ``overlapped``, local work
        done while tokens are sent. Padding (mask_T False) is not sent."""
        n_local = len(experts.gate_up_proj)
        process_TK = routing.ids_TK // n_local
        visits_TP = torch.zeros(len(x_TD), self.size, dtype=torch.bool, device=x_TD.device)
        visits_TP.scatter_(1, process_TK, True)
        if mask_T is not None:
            visits_TP &= mask_T.unsqueeze(1)
        process_N, token_N = visits_TP.T.nonzero(as_tuple=True)  # ordered by process, then by token
        sent_P, received_P = self._exchange_counts(visits_TP.sum(0))

        local_NK = process_TK[token_N] == process_N.unsqueeze(1)
        ids_NK = (routing.ids_TK[token_N] % n_local).where(local_NK, -1).to(torch.int16)
        weights_NK = routing.weights_TK[token_N].where(local_NK, 0)
        y_dtype = x_TD.dtype
        if experts.recipe is None and torch.is_autocast_enabled(x_TD.device.type):
            y_dtype = torch.get_autocast_dtype(x_TD.device.type)
        dim, top_k = x_TD.shape[1], ids_NK.shape[1]
        formats = row_formats(self.dispatch_dtype, dim, top_k, x_TD.dtype, y_dtype, weights_NK.dtype)

        def exchange(name: str, sent_P: list[int], received_P: list[int]) -> AllToAll:
            both = formats[name], formats[f"{name} backward"]
            return AllToAll(self.group, sent_P, received_P, *both, self.meter)

        dispatched = exchange("dispatch", sent_P, received_P)
        handle = dispatched.start(_wide(x_TD).index_select(0, token_N), weights_NK, ids_NK)
        other = overlapped()
        x_MD, weights_MK, ids_MK = dispatched.wait(handle)
        y_MD = self._run_experts(experts, x_MD, x_TD.dtype, weights_MK, ids_MK, dispatch)
        combined = exchange("combine", received_P, sent_P)
        (y_ND,) = combined.wait(combined.start(y_MD))
        return y_ND.new_zeros(x_TD.shape).index_add(0, token_N, y_ND).to(y_dtype), other

    def _exchange_counts(self, sent_P: Tensor) -> tuple[list[int], list[int]]:
        """The number of rows to send to each process, and to receive from it."""
        received_P = torch.empty_like(sent_P)
        dist.all_to_all_single(received_P, sent_P, group=self.group)
        if self.meter is not None:
            self.meter.count("counts", [1] * self.size, sent_P.itemsize, self.rank)
        sent, received = torch.stack((sent_P, received_P)).tolist()
        return sent, received

    def _run_experts(
        self,
        experts: Experts,
        x_MD: Tensor,
        dtype: torch.dtype,
        weights_MK: Tensor,
        ids_MK: Tensor,
        dispatch: Dispatch,
    ) -> Tensor:
        """The weighted sum over each row's experts on this process, which see the row in ``dtype``. Rows have
        different numbers of experts here, so each (row, expert) pair becomes a row with one expert."""
        row_R, slot_R = (ids_MK >= 0).nonzero(as_tuple=True)
        weights_R1 = weights_MK[row_R, slot_R].unsqueeze(1)
        ids_R1 = ids_MK[row_R, slot_R].long().unsqueeze(1)
        pairs = Routing(weights_R1, ids_R1, weights_R1, ids_R1)  # experts do not use scores and counts
        if dispatch == "grouped" and not len(row_R):
            dispatch = "loop"  # grouped_mm rejects empty input
        module = self.replicated if self.replicated is not None and torch.is_grad_enabled() else experts
        y_RD = _wide(module(x_MD.index_select(0, row_R).to(dtype), pairs, dispatch))
        return y_RD.new_zeros(x_MD.shape).index_add(0, row_R, y_RD)


def _wide(x: Tensor) -> Tensor:
    """x in at least float32, the precision in which a token's rows are summed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
