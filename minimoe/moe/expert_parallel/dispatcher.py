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

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimoe.moe.expert_parallel.all_to_all import AllToAll, depart, land
from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.expert_parallel.row_format import DispatchDtype, row_formats
from minimoe.moe.experts import Dispatch, Experts
from minimoe.moe.router import Routing


class ExpertParallel:
    """How a layer whose experts are spread over a group reaches them. Held by the layer, no part of its
    state."""

    def __init__(self, group: dist.ProcessGroup, dispatch_dtype: DispatchDtype, meter: Meter | None) -> None:
        self.group, self.dispatch_dtype, self.meter = group, dispatch_dtype, meter
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.replicated: nn.Module | None = (
            None  # the experts, where copies of them elsewhere must stay alike
        )

    def __call__(
        self,
        experts: Experts,
        x_TD: Tensor,
        routing: Routing,
        mask_T: Tensor | None,
        dispatch: Dispatch,
        meanwhile: Callable[[], Tensor | None],
    ) -> tuple[Tensor, Tensor | None]:
        """x_TD, its routing -> y_TD of the routed experts, and what ``meanwhile`` returns: work of one's own,
        done while tokens travel. Padding (mask_T False) stays at home."""
        n_local = len(experts.gate_up_proj)
        process_TK = routing.ids_TK // n_local
        visits_TP = torch.zeros(len(x_TD), self.size, dtype=torch.bool, device=x_TD.device)
        visits_TP.scatter_(1, process_TK, True)
        if mask_T is not None:
            visits_TP &= mask_T.unsqueeze(1)
        process_N, token_N = visits_TP.T.nonzero(as_tuple=True)  # by process, then by token
        sent_P, received_P = self._counts(visits_TP.sum(0))

        here_NK = process_TK[token_N] == process_N.unsqueeze(1)
        ids_NK = (routing.ids_TK[token_N] % n_local).where(here_NK, -1).to(torch.int16)
        weights_NK = routing.weights_TK[token_N].where(here_NK, 0)
        dtype = x_TD.dtype  # of what the experts say
        if experts.recipe is None and torch.is_autocast_enabled(x_TD.device.type):
            dtype = torch.get_autocast_dtype(x_TD.device.type)
        leg = row_formats(
            self.dispatch_dtype, x_TD.shape[1], ids_NK.shape[1], x_TD.dtype, dtype, weights_NK.dtype
        )
        there = AllToAll(
            self.group, sent_P, received_P, leg["dispatch"], leg["dispatch backward"], self.meter
        )
        back = AllToAll(self.group, received_P, sent_P, leg["combine"], leg["combine backward"], self.meter)

        ticket = depart(there, _wide(x_TD).index_select(0, token_N), weights_NK, ids_NK)
        other = meanwhile()
        x_MD, weights_MK, ids_MK = land(there, ticket)
        y_MD = self._work(experts, x_MD, x_TD.dtype, weights_MK, ids_MK, dispatch)
        (y_ND,) = land(back, depart(back, y_MD))
        return y_ND.new_zeros(x_TD.shape).index_add(0, token_N, y_ND).to(dtype), other

    def _counts(self, sent_P: Tensor) -> tuple[list[int], list[int]]:
        """How many rows go to each process, and come from it."""
        received_P = torch.empty_like(sent_P)
        dist.all_to_all_single(received_P, sent_P, group=self.group)
        if self.meter is not None:
            self.meter.count("counts", [1] * self.size, sent_P.itemsize, self.rank)
        sent, received = torch.stack((sent_P, received_P)).tolist()
        return sent, received

    def _work(
        self,
        experts: Experts,
        x_MD: Tensor,
        dtype: torch.dtype,
        weights_MK: Tensor,
        ids_MK: Tensor,
        dispatch: Dispatch,
    ) -> Tensor:
        """Each row's experts here, given it in ``dtype``, weighted and added up. Rows have different numbers
        of them, so each (row, expert) pair becomes a row with one expert."""
        row_R, slot_R = (ids_MK >= 0).nonzero(as_tuple=True)
        weights_R1 = weights_MK[row_R, slot_R].unsqueeze(1)
        ids_R1 = ids_MK[row_R, slot_R].long().unsqueeze(1)
        pairs = Routing(
            weights_R1, ids_R1, weights_R1, ids_R1
        )  # scores and counts are nobody's business here
        if dispatch == "grouped" and not len(row_R):
            dispatch = "loop"  # the grouped matmul knows no empty one
        work = self.replicated if self.replicated is not None and torch.is_grad_enabled() else experts
        y_RD = work(x_MD.index_select(0, row_R).to(dtype), pairs, dispatch)
        y_RD = _wide(y_RD)
        return y_RD.new_zeros(x_MD.shape).index_add(0, row_R, y_RD)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: what a token's rows are added up in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
