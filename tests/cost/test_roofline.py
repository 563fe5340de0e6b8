"""The roofline of each part of a model, against numbers computed by hand."""

import statistics
from dataclasses import replace

import pytest
import torch

from minimoe import ModelConfig
from minimoe.cost import ACCELERATORS, PUBLISHED, count, forward_flops, from_config, roofline
from minimoe.cost.roofline import expected_active_experts, peaks_of, total
from minimoe.tools.timing import Peaks

H800 = ACCELERATORS["h800"]
SLOW = Peaks({"float32": 1e9, "bfloat16": 4e9}, bandwidth=1e8, threads=1)


def parts(a, tokens, machine=H800, **options):
    return {part.name: part for part in roofline(a, tokens, machine, **options)}


def test_a_dense_layer_by_hand():
    """Width 64, 2 heads of 32, hidden 80, 16 of context, 256 bytes of vocabulary; 10 tokens in float32."""
    a = from_config(ModelConfig(dim=64, n_layers=2, n_heads=2, context=16, hidden_dim=80))
    found = parts(a, 10, SLOW, storage_precision="float32")
    weights, through = 4 * 64 * 64, 64 + 3 * 64 + 64 + 64
    assert found["projections"].flops == 2 * weights * 10
    assert found["projections"].bytes == 4 * (weights + 10 * through)
    assert found["scores"].flops == 2 * 10 * (64 + 64) * 8.5
    assert found["scores"].bytes == 4 * 10 * 4 * 64
    assert found["dense"].flops == 2 * 3 * 64 * 80 * 10
    assert found["dense"].bytes == 4 * (3 * 64 * 80 + 10 * (2 * 64 + 3 * 80))
    assert found["embedding"].bytes == 4 * 2 * 10 * 64
    assert found["output"].flops == 2 * 64 * 256 * 10
    assert found["output"].bytes == 4 * (64 * 256 + 10 * (64 + 256))
    assert [part.layers for part in found.values()] == [2, 2, 2, 1, 1]
    dense = found["dense"]
    assert dense.seconds == max(307_200 / 1e9, dense.bytes / 1e8) == dense.bytes / 1e8
    assert dense.bound == "memory"
    assert found["projections"].bound == "memory"
    assert replace(dense, memory_seconds=1e-9).bound == "compute"


def test_only_active_experts_are_read():
    """V3: one token activates 8 of 256 experts, 4096 tokens all; an expert is 3 matrices of 7168 by 2048."""
    a, one = PUBLISHED["deepseek-v3"], 3 * 7168 * 2048
    assert expected_active_experts(256, 8, 1) == 8
    assert expected_active_experts(256, 8, 2) == pytest.approx(16 - 8 * 8 / 256)
    assert expected_active_experts(256, 8, 4096) == pytest.approx(256)
    alone, many = parts(a, 1)["routed"], parts(a, 4096)["routed"]
    rows = 2 * 7168 + 3 * 2048
    assert alone.bytes == pytest.approx(2 * (8 * one + 8 * rows))
    assert many.bytes == pytest.approx(2 * (256 * one + 4096 * 8 * rows))
    assert alone.flops == 2 * 8 * one
    assert alone.seconds == pytest.approx(2 * 8 * (one + rows) / 3.35e12)
    assert many.compute_seconds == pytest.approx(2 * 4096 * 8 * one / 989.4e12)
    router = parts(a, 4096)["router"]
    assert router.bytes == 2 * 256 * 7168 + 4 * 4096 * (7168 + 256)
    assert router.flops == 2 * 256 * 7168 * 4096
    eight = parts(a, 1, storage_precision="deepseek-v3")["routed"]
    assert eight.bytes == pytest.approx((1 + 4 / 128**2) * 8 * one + 2 * 8 * rows)
    assert eight.compute_seconds == pytest.approx(2 * 8 * one / 1978.9e12)


def test_expected_active_experts_by_simulation():
    assert expected_active_experts(8, 2, 1) == pytest.approx(2)
    draws = torch.rand(4000, 3, 8, generator=torch.Generator().manual_seed(0)).topk(2).indices.flatten(1)
    active = statistics.fmean(len(set(row)) for row in draws.tolist())
    assert expected_active_experts(8, 2, 3) == pytest.approx(active, rel=0.01)


def test_one_token_is_memory_bound_and_many_are_compute_bound():
    """Except V3's routed experts on one GPU: 4096 tokens are 128 per expert, too few; 32,768 are enough."""
    a = PUBLISHED["deepseek-v3"]
    assert {part.bound for part in roofline(a, 1, H800)} == {"memory"}
    many = parts(a, 4096)
    assert {name for name, part in many.items() if part.bound == "memory"} == {"embedding", "routed"}
    assert parts(a, 32_768)["routed"].bound == "compute"
    found = parts(PUBLISHED["llama-3.1-405b"], 4096)
    assert {name for name, part in found.items() if part.bound == "memory"} == {"embedding"}
    found = parts(PUBLISHED["mixtral-8x7b"], 4096)  # whose router has 8 columns
    assert {name for name, part in found.items() if part.bound == "memory"} == {"embedding", "router"}
    llama = PUBLISHED["llama-2-70b"]
    everything = count(llama).total - count(llama).embedding - count(llama).norms
    assert total(roofline(llama, 1, H800)) == pytest.approx(2 * everything / 3.35e12, rel=0.01)


@pytest.mark.parametrize("name", ["deepseek-v3", "olmoe", "gpt-2"])
def test_the_parts_flops_add_up_to_the_models(name):
    a = PUBLISHED[name]
    found = sum(part.layers * part.flops for part in roofline(a, 100, H800))
    assert found == pytest.approx(100 * forward_flops(a), rel=1e-9)


def test_training_is_three_times_forward():
    a = PUBLISHED["olmoe"]
    for forward, training in zip(roofline(a, 512, H800), roofline(a, 512, H800, training=True), strict=True):
        assert training.seconds == pytest.approx(3 * forward.seconds)
        assert (training.flops, training.bytes) == (3 * forward.flops, 3 * forward.bytes)


def test_peaks_by_storage_precision():
    """V3: linear layers in 8 bits if the GPU has a peak for them, attention scores and output in bf16, the
    router in float32."""
    a = PUBLISHED["deepseek-v3"]
    for card, linear in ((H800, 1978.9e12), (ACCELERATORS["a100"], 312e12), (SLOW, 4e9)):
        found = parts(a, 4096, card, storage_precision="deepseek-v3")
        peaks = (card if isinstance(card, Peaks) else peaks_of(card)).flops
        for name, peak in (
            ("projections", linear),
            ("shared", linear),
            ("scores", peaks["bfloat16"]),
            ("output", peaks["bfloat16"]),
            ("router", peaks["float32"]),
        ):
            assert found[name].compute_seconds == pytest.approx(found[name].flops / peak)


def test_measured_peaks_replace_an_accelerators():
    """The roofline of ``timing.Peaks``, part by part."""
    for part in roofline(from_config(ModelConfig(n_experts=8)), 64, SLOW, storage_precision="float32"):
        assert part.seconds == SLOW.seconds(part.flops, part.bytes)


@pytest.mark.parametrize(
    ("name", "bandwidth"), [("a100", 2.039e12), ("h100", 3.35e12), ("h800", 3.35e12), ("h200", 4.8e12)]
)
def test_the_bandwidths_of_the_datasheets(name, bandwidth):
    assert ACCELERATORS[name].bandwidth == bandwidth


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"tokens \(0\) must be at least 1"):
        roofline(PUBLISHED["gpt-2"], 0, H800)
    with pytest.raises(ValueError, match="storage precision must be one of"):
        roofline(PUBLISHED["gpt-2"], 1, H800, storage_precision="int4")
