"""What travels between processes, predicted from a configuration and metered on the way."""

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
from minimoe.experiments.expert_parallel import LAYER, PROCESSES, metered_step
from minimoe.moe import Meter, MoE, expert_parallel_, route
from minimoe.moe.expert_parallel.row_format import row_formats

CONFIG = ModelConfig(dim=136, n_experts=12, top_k=4, expert_dim=16)
RECORD = Path(__file__).parents[2] / "docs" / "results" / "parallel.json"


@pytest.mark.parametrize(("n_experts", "top_k", "n_processes"), [(6, 2, 3), (8, 3, 2), (8, 1, 4), (9, 4, 9)])
def test_visits_by_trying_every_choice(n_experts, top_k, n_processes):
    config = replace(CONFIG, n_experts=n_experts, top_k=top_k)
    each = n_experts // n_processes
    choices = list(itertools.combinations(range(n_experts), top_k))
    visited = sum(len({expert // each for expert in choice}) for choice in choices) / len(choices)
    assert processes_visited(config, n_processes) == pytest.approx(visited, rel=1e-12)


def test_visits_where_a_limit_holds():
    limited = replace(CONFIG, n_groups=4, top_groups=2)
    choices = list(itertools.combinations(range(6), 4))  # of two processes with three experts each
    visited = sum(len({expert // 3 for expert in choice}) for choice in choices) / len(choices)
    assert processes_visited(limited, 4) == pytest.approx(visited, rel=1e-12)
    assert processes_visited(replace(limited, top_groups=4), 4) == processes_visited(CONFIG, 4)  # no limit
    assert processes_visited(replace(limited, top_k=3, top_groups=1), 4) == 1


def test_v3_meets_more_of_the_nodes_that_its_limit_leaves():
    """It prefers groups of a token's best experts; the figures of the docstring and the README."""
    a = PUBLISHED["deepseek-v3"]
    torch.manual_seed(0)
    logits = torch.randn(20_000, a.n_experts)
    ids_TK = route(logits, a.top_k, score="sigmoid", n_groups=a.n_groups, top_groups=a.top_groups).ids_TK
    met = one_hot(ids_TK // (a.n_experts // 8), 8).amax(1).sum(1).double().mean().item()
    assert met == pytest.approx(3.96, abs=0.01)
    assert processes_visited(a, 8) == pytest.approx(3.63, abs=0.005)
    assert met * 7 / 8 == pytest.approx(3.47, abs=0.01)


def test_what_cannot_be_predicted_is_refused():
    with pytest.raises(ValueError, match=r"n_experts \(12\) must be divisible by the processes \(5\)"):
        processes_visited(CONFIG, 5)
    with pytest.raises(ValueError, match=r"n_groups \(6\) must be the number of processes \(4\)"):
        processes_visited(replace(CONFIG, n_groups=6, top_groups=2), 4)


@pytest.mark.parametrize("dim", [128, 136, 7168])
@pytest.mark.parametrize("dispatch_dtype", ["full", "bf16", "fp8"])
def test_a_row_has_the_bytes_that_were_predicted(dim, dispatch_dtype):
    predicted = traffic(replace(CONFIG, dim=dim, n_heads=4), dispatch_dtype)
    found = row_formats(dispatch_dtype, dim, CONFIG.top_k, torch.float32, torch.float32, torch.float32)
    assert {name: leg.nbytes for name, leg in found.items()} == {
        "dispatch": predicted.dispatch,
        "combine": predicted.combine,
        "combine backward": predicted.combine_backward,
        "dispatch backward": predicted.dispatch_backward,
    }


def one_step(config, dispatch_dtype, training):
    torch.manual_seed(0)
    layer = MoE(
        config.dim,
        config.expert_dim,
        config.n_experts,
        config.top_k,
        n_groups=config.n_groups,
        top_groups=config.top_groups,
    )
    torch.nn.init.normal_(layer.gate.weight)
    meter = Meter()
    expert_parallel_(layer, dispatch_dtype=dispatch_dtype, meter=meter)
    x = torch.randn(20 + dist.get_rank(), config.dim, requires_grad=True)
    y, routing = layer(x)
    if training:
        y.sum().backward()
    return meter, routing.ids_TK.tolist()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dispatch_dtype", ["full", "bf16", "fp8"])
@pytest.mark.parametrize("top_groups", [None, 2])
def test_the_bytes_sent_are_those_predicted(tmp_path, dispatch_dtype, top_groups, training):
    config = replace(CONFIG, n_groups=4, top_groups=top_groups)
    found = run(one_step, 4, tmp_path, config, dispatch_dtype, training)
    pairs = sum(
        len({expert // 3 for expert in experts} - {rank})
        for rank, (_, ids_TK) in enumerate(found)
        for experts in ids_TK
    )
    assert pairs > 0
    sent = sum(meter.bytes.total() for meter, _ in found)
    assert sent == traffic(config, dispatch_dtype).total(pairs, 4, training=training)


def metered(dispatch_dtype):
    step, meter = metered_step(LAYER, dispatch_dtype)
    return step().ids_TK.tolist(), meter


def test_the_claims_step_sends_what_its_routing_says(tmp_path):
    found = run(metered, PROCESSES, tmp_path, "fp8")
    each = LAYER.n_experts // PROCESSES
    pairs = sum(
        len({expert // each for expert in experts} - {rank})
        for rank, (ids_TK, _) in enumerate(found)
        for experts in ids_TK
    )
    sent = sum(meter.bytes.total() for _, meter in found)
    assert sent == traffic(LAYER, "fp8").total(pairs, PROCESSES)


def test_the_recorded_bytes_are_those_predicted():
    """The table that the README shows: nine rows, each to the byte, and chance within 3 %."""
    rows = json.loads(RECORD.read_text())["bytes"]
    assert len(rows) == 9
    for row in rows:
        assert row["bytes"] == row["predicted"]
        assert row["pairs"] == pytest.approx(row["chance"], rel=0.03)
