"""Communication of expert parallelism: bytes predicted from a configuration against bytes that are sent."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from process_group import run
from torch.nn.functional import one_hot

from minimoe import ModelConfig
from minimoe.cost import PUBLISHED, processes_visited, traffic
from minimoe.experiments.expert_parallel.communication import PROCESSES
from minimoe.moe import Meter, MoE, expert_parallel_, route
from minimoe.moe.expert_parallel.row_format import row_formats

CONFIG = ModelConfig(dim=136, n_experts=12, top_k=4, expert_dim=16)
DTYPES = ("full", "bf16", "fp8")
STEPS = list(itertools.product((None, 2), DTYPES, (True, False)))  # top_groups, dispatch_dtype, training
RECORD = Path(__file__).parents[2] / "docs" / "results" / "parallel.json"


@pytest.mark.parametrize(("n_experts", "top_k", "n_processes"), [(6, 2, 3), (8, 3, 2), (8, 1, 4), (9, 4, 9)])
def test_processes_visited_by_enumeration(n_experts, top_k, n_processes):
    config = replace(CONFIG, n_experts=n_experts, top_k=top_k)
    each = n_experts // n_processes
    choices = list(itertools.combinations(range(n_experts), top_k))
    visited = sum(len({expert // each for expert in choice}) for choice in choices) / len(choices)
    assert processes_visited(config, n_processes) == pytest.approx(visited, rel=1e-12)


def test_processes_visited_under_group_limited_routing():
    limited = replace(CONFIG, n_groups=4, top_groups=2)
    choices = list(itertools.combinations(range(6), 4))  # of two processes with three experts each
    visited = sum(len({expert // 3 for expert in choice}) for choice in choices) / len(choices)
    assert processes_visited(limited, 4) == pytest.approx(visited, rel=1e-12)
    assert processes_visited(replace(limited, top_groups=4), 4) == processes_visited(CONFIG, 4)  # no limit
    assert processes_visited(replace(limited, top_k=3, top_groups=1), 4) == 1


def test_v3_visits_more_nodes_than_the_lower_bound():
    """Routing prefers groups that hold several of a token's best experts; these figures are documented."""
    a = PUBLISHED["deepseek-v3"]
    torch.manual_seed(0)
    logits = torch.randn(20_000, a.n_experts)
    ids_TK = route(logits, a.top_k, score="sigmoid", n_groups=a.n_groups, top_groups=a.top_groups).ids_TK
    visited = one_hot(ids_TK // (a.n_experts // 8), 8).amax(1).sum(1).double().mean().item()
    assert visited == pytest.approx(3.96, abs=0.01)
    assert processes_visited(a, 8) == pytest.approx(3.63, abs=0.005)
    assert visited * 7 / 8 == pytest.approx(3.47, abs=0.01)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"n_experts \(12\) must be divisible by the processes \(5\)"):
        processes_visited(CONFIG, 5)
    with pytest.raises(ValueError, match=r"n_groups \(6\) must be the number of processes \(4\)"):
        processes_visited(replace(CONFIG, n_groups=6, top_groups=2), 4)


@pytest.mark.parametrize("dim", [128, 136, 7168])
@pytest.mark.parametrize("dispatch_dtype", DTYPES)
def test_a_row_has_the_predicted_bytes(dim, dispatch_dtype):
    predicted = traffic(replace(CONFIG, dim=dim, n_heads=4), dispatch_dtype)
    formats = row_formats(dispatch_dtype, dim, CONFIG.top_k, torch.float32, torch.float32, torch.float32)
    assert {name: row_format.nbytes for name, row_format in formats.items()} == {
        "dispatch": predicted.dispatch,
        "combine": predicted.combine,
        "combine backward": predicted.combine_backward,
        "dispatch backward": predicted.dispatch_backward,
    }


def one_step(top_groups, dispatch_dtype, training):
    torch.manual_seed(0)
    layer = MoE(
        CONFIG.dim, CONFIG.expert_dim, CONFIG.n_experts, CONFIG.top_k, n_groups=4, top_groups=top_groups
    )
    torch.nn.init.normal_(layer.gate.weight)
    meter = Meter()
    expert_parallel_(layer, dispatch_dtype=dispatch_dtype, meter=meter)
    x = torch.randn(20 + dist.get_rank(), CONFIG.dim, requires_grad=True)
    y, routing = layer(x)
    if training:
        y.sum().backward()
    return routing.ids_TK.tolist(), meter


def all_steps():
    """In every process: the chosen experts and the meter of each step."""
    return {step: one_step(*step) for step in STEPS}


@pytest.fixture(scope="module")
def measured():
    return run(all_steps, PROCESSES)


def pairs_and_bytes(measured, step, n_experts):
    """(token, other process) pairs by the routing, and bytes by the meters, of all processes."""
    each = n_experts // PROCESSES
    pairs = sum(
        len({expert // each for expert in experts} - {rank})
        for rank, process in enumerate(measured)
        for experts in process[step][0]
    )
    return pairs, sum(process[step][1].bytes.total() for process in measured)


@pytest.mark.distributed
@pytest.mark.parametrize(("top_groups", "dispatch_dtype", "training"), STEPS)
def test_the_bytes_sent_are_those_predicted(measured, dispatch_dtype, top_groups, training):
    pairs, sent = pairs_and_bytes(measured, (top_groups, dispatch_dtype, training), CONFIG.n_experts)
    assert pairs > 0
    assert sent == traffic(CONFIG, dispatch_dtype).total(pairs, PROCESSES, training=training)


def test_the_recorded_bytes_are_those_predicted():
    """Nine rows, each to the byte, and the expected number of pairs within 3 %."""
    rows = json.loads(RECORD.read_text())["bytes"]
    assert len(rows) == 9
    for row in rows:
        assert row["bytes"] == row["predicted"]
        assert row["pairs"] == pytest.approx(row["chance"], rel=0.03)
