"""What a model costs, computed from its configuration, against published figures and real modules."""

import math
from dataclasses import replace

import pytest
import torch
import transformers

from minimoe import GPT, ModelConfig
from minimoe.cost import (
    PUBLISHED,
    PUBLISHED_RUNS,
    Architecture,
    all_to_all,
    count,
    forward_flops,
    from_config,
    memory_footprint,
    mfu,
    nvlink_forwards,
    processes_visited,
    traffic,
    training_cost,
    training_flops,
)
from minimoe.models.gpt import KVCache

# Billions, as published: total and active parameters, with the digits that were printed.
FIGURES = {
    "deepseek-v3": (671, 37),
    "mixtral-8x7b": (46.7, 12.9),
    "deepseekmoe-16b": (16.4, 2.8),
    "olmoe": (6.9, 1.3),
    "qwen3-30b-a3b": (30.5, 3.3),
    "llama-3.1-405b": (405, None),
    "llama-2-70b": (70, None),
    "gpt-2": (0.124, None),
}


def digits(value: float) -> int:
    return len(str(value).partition(".")[2])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_totals(name):
    total, _ = FIGURES[name]
    found = count(PUBLISHED[name]).total / 1e9
    if name == "llama-2-70b":  # 69.0B, rounded up in its name
        assert found == pytest.approx(69.0, abs=0.05)
    elif name == "llama-3.1-405b":  # 405.9B: truncated, not rounded
        assert int(found) == total
    else:
        assert round(found, digits(total)) == total


@pytest.mark.parametrize("name", [name for name, (_, active) in FIGURES.items() if active])
def test_the_published_active_parameters(name):
    """V3's without the embedding, which is a lookup; the others' with it; Qwen3's truncated."""
    active, found = FIGURES[name][1], count(PUBLISHED[name])
    working = (found.active - (found.embedding if name == "deepseek-v3" else 0)) / 1e9
    if name == "qwen3-30b-a3b":
        assert int(working * 10) / 10 == active
    else:
        assert round(working, digits(active)) == active


def module(name: str) -> torch.nn.Module:
    """The same model in transformers, on the meta device."""
    a = PUBLISHED[name]
    common = {
        "vocab_size": a.vocab_size, "hidden_size": a.dim, "num_hidden_layers": a.n_layers,
        "num_attention_heads": a.n_heads, "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim,
    }  # fmt: skip
    configs = {
        "mixtral-8x7b": lambda: transformers.MixtralConfig(
            **common, intermediate_size=a.expert_dim, num_local_experts=8, num_experts_per_tok=2
        ),
        "olmoe": lambda: transformers.OlmoeConfig(
            **common, intermediate_size=a.expert_dim, num_experts=64, num_experts_per_tok=8
        ),
        "qwen3-30b-a3b": lambda: transformers.Qwen3MoeConfig(
            **common, moe_intermediate_size=a.expert_dim, num_experts=128, num_experts_per_tok=8
        ),
        "llama-3.1-405b": lambda: transformers.LlamaConfig(**common, intermediate_size=a.hidden_dim),
        "llama-2-70b": lambda: transformers.LlamaConfig(**common, intermediate_size=a.hidden_dim),
        "gpt-2": lambda: transformers.GPT2Config(),
        "deepseek-v3": lambda: transformers.DeepseekV3Config(),
    }
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(configs[name]())


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "deepseekmoe-16b"])
def test_transformers_module_has_as_many_parameters(name):
    assert sum(p.numel() for p in module(name).parameters()) == count(PUBLISHED[name]).total


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(dim=64, n_heads=2),
        ModelConfig(dim=64, n_heads=2, n_experts=8, top_k=2, first_dense=1),
        ModelConfig(dim=64, n_heads=2, n_experts=8, n_shared=0),
    ],
)
def test_our_own_modules_have_as_many_parameters(config):
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == count(from_config(config)).total


def test_parameters_of_latent_attention_by_hand():
    """V3's layer by hand: 7168·1536 + 1536·128·192 + 7168·576 + 512·128·256 + 128·128·7168."""
    a = PUBLISHED["deepseek-v3"]
    assert count(a).attention == 61 * (11_010_048 + 37_748_736 + 4_128_768 + 16_777_216 + 117_440_512)


def test_v3s_hours_imply_its_mfu():
    """2.664M H800-hours for 14.8T tokens (V3, table 1) are about two fifths of the bf16 peak."""
    a = PUBLISHED["deepseek-v3"]
    share = mfu(a, 14.8e12, 2.664e6, 989.4e12)
    assert 0.3 < share < 0.45
    back = training_cost(a, 14.8e12, peak=989.4e12, mfu=share, price=2.0)
    assert back.hours == pytest.approx(2.664e6)
    assert back.dollars == pytest.approx(5.328e6)
    assert back.days(2048) == pytest.approx(54.2, abs=0.1)


def test_v3s_training_cost_is_the_published_one():
    """Table 1: 2.788M hours, $5.576M, pre-training in 54 days on 2,048 cards ("less than two months")."""
    run = PUBLISHED_RUNS["deepseek-v3"]
    assert run.total_hours == pytest.approx(2.788e6)
    assert run.dollars == pytest.approx(5.576e6)
    assert round(run.days) == 54
    share = run.mfu(PUBLISHED["deepseek-v3"])
    assert share == mfu(PUBLISHED["deepseek-v3"], 14.8e12, 2.664e6, 989.4e12)
    assert round(share, 2) == 0.39
    # Six FLOPs per active parameter per token, without attention: 6 * 37B * 14.8T, within 15 %.
    by_hand = 6 * 37e9 * 14.8e12 / (2.664e6 * 3600 * 989.4e12)
    assert share == pytest.approx(by_hand, rel=0.15)


def test_llamas_flops_and_hours_are_the_published_ones():
    """3.8e25 (arXiv 2407.21783); the report states an MFU of 38 to 43 % while everything runs."""
    run, a = PUBLISHED_RUNS["llama-3.1-405b"], PUBLISHED["llama-3.1-405b"]
    assert run.flops == 3.8e25
    assert training_flops(a) * run.tokens == pytest.approx(run.flops, rel=0.05)
    assert run.total_hours == 30.84e6
    assert round(run.days) == 78
    assert 0.33 < run.mfu(a) < 0.38


def test_v3s_all_to_all_by_hand():
    """To 3.18 other nodes: of 4 nodes, each its own with probability 1/8 and missed if all 8 experts are
    among the other 96 of 128. In bf16 four transfers of 2 * 7168 and the routing; in fp8 two of them are 7168
    and 56 scales."""
    a = PUBLISHED["deepseek-v3"]
    missed = math.prod((96 - i) / (128 - i) for i in range(8))
    for dispatch_dtype, row in (
        ("bf16", 4 * 14_336 + 48 + 32),
        ("fp8", 2 * 14_336 + 2 * (7168 + 56) + 48 + 32),
    ):
        sent = all_to_all(a, dispatch_dtype)
        assert (sent.link, sent.row) == ("InfiniBand", row)
        assert sent.destinations == pytest.approx(4 * (1 - missed) * 7 / 8)
        assert sent.bytes == sent.destinations * row
        assert sent.microseconds == pytest.approx(1e6 * sent.bytes / 50e9)
    free = all_to_all(replace(a, top_groups=None), "bf16")
    assert free.destinations > all_to_all(a, "bf16").destinations
    inside = all_to_all(a, "bf16", n_nodes=1)  # no limit: all experts are on one node
    assert (inside.link, inside.destinations) == ("NVLink", free.destinations)
    assert inside.microseconds == pytest.approx(1e6 * inside.bytes / 160e9)


def test_nvlink_forwards_by_simulation():
    """8 experts drawn from those of 4 random nodes of 8, with 8 GPUs of 4 experts each; the GPU with the
    token's own index needs no forward."""
    generator, met = torch.Generator().manual_seed(0), 0
    draws = 4000
    for _ in range(draws):
        nodes = torch.randperm(8, generator=generator)[:4]
        chosen = torch.randperm(128, generator=generator)[:8]
        gpus = {(nodes[c // 32].item(), c % 32 // 4) for c in chosen.tolist()}
        met += sum(number != 3 for _, number in gpus)
    assert nvlink_forwards(PUBLISHED["deepseek-v3"]) == pytest.approx(met / draws, rel=0.01)


def test_communication_of_an_architecture_is_that_of_its_configuration():
    config = ModelConfig(dim=256, n_experts=64, top_k=8, expert_dim=64, n_groups=4, top_groups=2)
    assert processes_visited(from_config(config), 4) == processes_visited(config, 4)
    assert traffic(from_config(config), "fp8") == traffic(config, "fp8")
    with pytest.raises(ValueError, match=r"n_experts \(0\) must be at least 1"):
        processes_visited(PUBLISHED["gpt-2"], 4)
    with pytest.raises(ValueError, match=r"n_experts \(8\) must be divisible by the GPUs \(64\)"):
        nvlink_forwards(PUBLISHED["mixtral-8x7b"])
    with pytest.raises(ValueError, match=r"n_groups \(8\) must be the number of nodes \(4\)"):
        nvlink_forwards(PUBLISHED["deepseek-v3"], n_nodes=4)
    with pytest.raises(ValueError, match=r"top_groups \(9\) must be between 1 and n_groups \(8\)"):
        replace(PUBLISHED["deepseek-v3"], top_groups=9)


def test_invalid_arguments_are_refused():
    a = PUBLISHED["gpt-2"]
    with pytest.raises(ValueError, match=r"mfu \(0\) must be above 0"):
        training_cost(a, 1e9, peak=1e12, mfu=0, price=1)
    with pytest.raises(ValueError, match=r"price \(inf\) must be above 0 and finite"):
        training_cost(a, 1e9, peak=1e12, mfu=0.5, price=math.inf)
    with pytest.raises(ValueError, match=r"tokens \(0\) must be above 0"):
        training_cost(a, 0, peak=1e12, mfu=0.5, price=1)
    with pytest.raises(ValueError, match=r"n_heads \(12\) must be divisible by kv_heads \(5\)"):
        replace(a, kv_heads=5)
    with pytest.raises(ValueError, match=r"top_k \(9\) must be between 1 and n_experts \(8\)"):
        replace(PUBLISHED["mixtral-8x7b"], top_k=9)
    with pytest.raises(ValueError, match="hidden_dim"):
        Architecture("none", 8, 1, 8, 1, 8, 1, 8)


def test_training_is_three_times_forward():
    a = PUBLISHED["olmoe"]
    assert training_flops(a) == 3 * forward_flops(a)
    assert forward_flops(a, context=1) < forward_flops(a)


def test_bytes_by_storage_precision():
    """V3's weights in 8 bits are about half of bf16's; its KV cache has 576 numbers per token per layer (V2,
    table 1)."""
    a = PUBLISHED["deepseek-v3"]
    n = count(a)
    bf16, fp8 = memory_footprint(a, "bf16"), memory_footprint(a, "deepseek-v3")
    assert bf16.weights == 2 * n.total
    assert 0.5 < fp8.weights / bf16.weights < 0.502
    assert bf16.training == (2 + 4 + 4 + 8) * n.total
    assert fp8.training == fp8.weights + (4 + 4 + 4) * n.total
    assert bf16.cache_per_token == 61 * (512 + 64) * 2
    assert memory_footprint(PUBLISHED["llama-3.1-405b"]).cache_per_token == 126 * 2 * 8 * 128 * 2
    with pytest.raises(
        ValueError, match="storage precision must be one of float32, bf16, deepseek-v3, not 'int4'"
    ):
        memory_footprint(a, "int4")


def test_bytes_of_our_own_models_are_those_of_their_tensors():
    config = ModelConfig(dim=64, n_heads=2, n_experts=8, top_k=2)
    model, predicted = GPT(config), memory_footprint(from_config(config), "float32")
    assert predicted.weights == sum(p.nbytes for p in model.parameters())
    cache = KVCache(config, batch=3)
    assert predicted.cache_per_token == cache.layers.nbytes / (3 * config.context)
    optimizer = torch.optim.AdamW(model.parameters())
    logits, _ = model(torch.zeros(1, 4, dtype=torch.long))
    logits.sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    assert predicted.optimizer == sum(t.nbytes for t in moments)
    assert predicted.gradients == sum(p.grad.nbytes for p in model.parameters())
