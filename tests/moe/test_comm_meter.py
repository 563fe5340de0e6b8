"""What expert parallelism sends, and when: the meter, the number of messages, and the overlap with
computation.

The meter is compared with what torch.distributed was given, and with a closed form from the experts' ids
alone.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.distributed as dist
from expert_parallel_cases import DIM, DISPATCH_DTYPES, EXCHANGES, build, visits
from process_group import run
from torch import Tensor

from minimoe.moe import Meter, Routing, expert_parallel_

pytestmark = pytest.mark.distributed


@dataclass
class Recording:
    """Calls of torch.distributed.all_to_all_single, in order."""

    sent: list[tuple[int, int, int]] = field(default_factory=list)  # bytes, messages and rows sent to others
    events: list[str] = field(default_factory=list)


class RecordedWork:
    """A Work that records when it is waited for."""

    def __init__(self, work: dist.Work, name: str, events: list[str]) -> None:
        self._work, self._name, self._events = work, name, events

    def wait(self) -> bool:
        self._events.append(f"{self._name} waited for")
        return self._work.wait()


@contextlib.contextmanager
def recorded() -> Iterator[Recording]:
    recording, all_to_all_single = Recording(), dist.all_to_all_single

    def record(output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False):
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        split = [len(input) // size] * size if input_split_sizes is None else input_split_sizes
        sent = [n for process, n in enumerate(split) if process != rank]
        name = EXCHANGES[len(recording.sent) % len(EXCHANGES)]
        recording.sent.append(
            (sum(sent) * input.shape[1:].numel() * input.itemsize, np.count_nonzero(sent), sum(sent))
        )
        recording.events.append(f"{name} started")
        work = all_to_all_single(output, input, output_split_sizes, input_split_sizes, group, async_op)
        return RecordedWork(work, name, recording.events) if async_op else work

    dist.all_to_all_single = record
    try:
        yield recording
    finally:
        dist.all_to_all_single = all_to_all_single


ROUTES = {
    "free": {},
    "groups": {"n_groups": 4, "top_groups": 2, "top_k": 4},
    "one": {"top_k": 1, "normalize": False},
}


def run_metered(
    dim: int, counts: list[int]
) -> dict[tuple[str, str], tuple[Meter, Recording, Routing, Tensor]]:
    """The meter, the calls it should have counted, the routing, and (E/P,) the rows that each expert
    received."""
    done = {}
    for dispatch_dtype in DISPATCH_DTYPES:
        for name, route in ROUTES.items():
            meter = Meter()
            moe = expert_parallel_(
                build(torch.float32, dim=dim, **route), dispatch_dtype=dispatch_dtype, meter=meter
            )
            given = []
            moe.experts.register_forward_pre_hook(lambda _, inputs, g=given: g.append(inputs[1].ids_TK))
            torch.manual_seed(dist.get_rank())
            with recorded() as recording:
                y, routing = moe(torch.randn(counts[dist.get_rank()], dim, requires_grad=True))
                y.sum().backward()
            n_local = len(moe.experts.down_proj)
            given_E = torch.cat(given).flatten().bincount(minlength=n_local)
            done[dispatch_dtype, name] = (
                meter,
                recording,
                Routing(*(part.detach() for part in routing)),
                given_E,
            )
    return done


def traffic(
    routings: list[Routing], rank: int, dispatch_dtype: str, dim: int
) -> dict[str, tuple[int, int, int]]:
    """Bytes, messages and rows that process ``rank`` sends to others in each exchange, from the ids alone."""
    size, top_k = len(routings), routings[0].ids_TK.shape[1]
    rows_PP = np.array([visits(routing, size).sum(0) for routing in routings])  # sender, receiver
    others = np.arange(size) != rank
    dispatched, combined = rows_PP[rank, others], rows_PP[others, rank]
    activation = {"full": 4 * dim, "bf16": 2 * dim, "fp8": dim + -(-dim // 128)}[dispatch_dtype]
    returned = 4 * dim if dispatch_dtype == "full" else 2 * dim
    exchanges = {
        "counts": (np.ones(size - 1, int), 8),
        "dispatch": (dispatched, activation + top_k * (4 + 2)),
        "combine": (combined, returned),
        "combine backward": (dispatched, activation),
        "dispatch backward": (combined, returned + 4 * top_k),
    }
    return {name: (n.sum() * nbytes, np.count_nonzero(n), n.sum()) for name, (n, nbytes) in exchanges.items()}


@pytest.mark.parametrize(("dim", "counts"), [(16, [5]), (16, [6, 9]), (192, [0, 1, 5, 12])])
def test_the_meter_counts_everything_sent(dim, counts):
    processes = run(run_metered, len(counts), dim, counts)
    for dispatch_dtype in DISPATCH_DTYPES:
        for route in ROUTES:
            routings = [process[dispatch_dtype, route][2] for process in processes]
            for rank, process in enumerate(processes):
                meter, recording, _, _ = process[dispatch_dtype, route]
                counted = {
                    name: (meter.bytes[name], meter.messages[name], meter.rows[name]) for name in EXCHANGES
                }
                assert counted == dict(zip(EXCHANGES, recording.sent, strict=True)), (
                    dispatch_dtype,
                    route,
                    rank,
                )
                assert counted == traffic(routings, rank, dispatch_dtype, dim), (dispatch_dtype, route, rank)
                for counter in (meter.bytes, meter.messages, meter.rows):
                    assert counter.keys() == set(EXCHANGES)
                    assert len(counts) > 1 or counter.total() == 0
            given_E = torch.cat(
                [process[dispatch_dtype, route][3] for process in processes]
            )  # no row is sent needlessly
            assert torch.equal(given_E, sum(routing.counts_E for routing in routings))


def event_order() -> list[str]:
    moe = expert_parallel_(build())
    with recorded() as recording:
        for part, module in (("shared", moe.shared_experts), ("experts", moe.experts)):
            module.register_forward_pre_hook(lambda *_, p=part: recording.events.append(f"{p} begins"))
            module.register_forward_hook(lambda *_, p=part: recording.events.append(f"{p} ends"))
        moe.shared_experts.register_full_backward_pre_hook(
            lambda *_: recording.events.append("shared begins backward")
        )
        for name, parameter in moe.shared_experts.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, n=name: recording.events.append(n))
        moe.shared_experts.register_full_backward_hook(
            lambda *_: recording.events.append("shared ends backward")
        )
        y, _ = moe(torch.randn(5, DIM, dtype=torch.float64, requires_grad=True))
        recording.events.append("backward")
        y.sum().backward()
    return recording.events


def test_the_shared_expert_overlaps_with_communication():
    for events in run(event_order, 2):
        forward, backward = events[: events.index("backward")], events[events.index("backward") + 1 :]
        assert forward == [
            "counts started",
            "dispatch started",
            "shared begins",
            "shared ends",
            "dispatch waited for",
            "experts begins",
            "experts ends",
            "combine started",
            "combine waited for",
        ]
        start, *shared, end = backward[2:]
        assert backward[:2] == ["combine backward started", "combine backward waited for"]
        assert (start, end) == ("dispatch backward started", "dispatch backward waited for")
        assert (shared[0], shared[-1]) == ("shared begins backward", "shared ends backward")
        assert set(shared[1:-1]) == {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}
