"""What a model costs, counted from its configuration: against published figures and against real modules."""

import json
from dataclasses import replace

import pytest
import torch
import transformers

from minimoe import GPT, ModelConfig, cli
from minimoe.cost import (
    PUBLISHED,
    Architecture,
    bill,
    count,
    forward_flops,
    kept,
    of,
    training_flops,
    utilisation,
)
from minimoe.model import KVCache

# Billions, as published: total, and what works on a token, with the digits that were printed.
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
    elif name == "llama-3.1-405b":  # 405.9B: cut off, not rounded
        assert int(found) == total
    else:
        assert round(found, digits(total)) == total


@pytest.mark.parametrize("name", [name for name, (_, active) in FIGURES.items() if active])
def test_the_published_active_parameters(name):
    """Those of V3 without its embedding, which is only looked up; the others' with it, Qwen3's cut off."""
    active, found = FIGURES[name][1], count(PUBLISHED[name])
    working = (found.active - (found.embedding if name == "deepseek-v3" else 0)) / 1e9
    if name == "qwen3-30b-a3b":
        assert int(working * 10) / 10 == active
    else:
        assert round(working, digits(active)) == active


def module(name: str) -> torch.nn.Module:
    """The same model in transformers, without memory for its weights."""
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
def test_the_module_of_transformers_has_as_many(name):
    assert sum(p.numel() for p in module(name).parameters()) == count(PUBLISHED[name]).total


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(dim=64, n_heads=2),
        ModelConfig(dim=64, n_heads=2, n_experts=8, top_k=2, first_dense=1),
        ModelConfig(dim=64, n_heads=2, n_experts=8, n_shared=0),
    ],
)
def test_our_own_modules_have_as_many(config):
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == count(of(config)).total


def test_latent_attention_costs_what_its_matrices_do():
    """V3's layer by hand: 7168·1536 + 1536·128·192 + 7168·576 + 512·128·256 + 128·128·7168."""
    a = PUBLISHED["deepseek-v3"]
    assert count(a).attention == 61 * (11_010_048 + 37_748_736 + 4_128_768 + 16_777_216 + 117_440_512)


def test_v3s_hours_imply_its_utilisation():
    """2.664M H800-hours for 14.8T tokens (V3, table 1) are about two fifths of the bf16 peak."""
    a = PUBLISHED["deepseek-v3"]
    share = utilisation(a, 14.8e12, 2.664e6, 989.4e12)
    assert 0.3 < share < 0.45
    back = bill(a, 14.8e12, peak=989.4e12, utilisation=share, price=2.0)
    assert back.hours == pytest.approx(2.664e6)
    assert back.dollars == pytest.approx(5.328e6)
    assert back.days(2048) == pytest.approx(54.2, abs=0.1)


def test_what_cannot_be_is_refused():
    a = PUBLISHED["gpt-2"]
    with pytest.raises(ValueError, match=r"utilisation \(0\) must be above 0"):
        bill(a, 1e9, peak=1e12, utilisation=0, price=1)
    with pytest.raises(ValueError, match=r"tokens \(0\) must be above 0"):
        bill(a, 0, peak=1e12, utilisation=0.5, price=1)
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


def test_bytes_by_how_numbers_are_kept():
    """V3's weights in 8 bits are about half of bf16's; its cache has 576 numbers a layer (V2, table 1)."""
    a = PUBLISHED["deepseek-v3"]
    n = count(a)
    whole, low = kept(a, "bf16"), kept(a, "deepseek-v3")
    assert whole.weights == 2 * n.total
    assert 0.5 < low.weights / whole.weights < 0.502
    assert whole.training == (2 + 4 + 4 + 8) * n.total
    assert low.training == low.weights + (4 + 4 + 4) * n.total
    assert whole.cache_per_token == 61 * (512 + 64) * 2
    assert kept(PUBLISHED["llama-3.1-405b"]).cache_per_token == 126 * 2 * 8 * 128 * 2
    with pytest.raises(ValueError, match="keeping must be one of float32, bf16, deepseek-v3, not 'int4'"):
        kept(a, "int4")


def test_bytes_of_our_own_models_are_those_of_their_tensors():
    config = ModelConfig(dim=64, n_heads=2, n_experts=8, top_k=2)
    model, predicted = GPT(config), kept(of(config), "float32")
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


def test_the_command_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "cost.json"
    assert cli.main(["cost", "gpt-2", "--beside", "olmoe", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "124.44 M" in printed
    assert "6.92 G" in printed
    first, second = json.loads(out.read_text())
    assert (first["name"], second["name"]) == ("gpt-2", "olmoe")
    assert first["parameters"]["total"] == 124_439_808
    assert {"parameters", "flops_per_token", "bytes", "training", "assumed"} <= first.keys()
    assert cli.main(["cost", "gpt-2", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["parameters"]["active"] == 124_439_808


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-3"], "there is no model 'gpt-3'; choose one of deepseek-v3"),
        (["--beside", "gpt-3"], "there is no model 'gpt-3'"),
        (["--keeping", "int4"], "keeping must be one of"),
        (["--accelerator", "abacus"], "accelerator must be one of h100"),
        (["--utilisation", "2"], "utilisation (2.0) must be above 0 and at most 1"),
        (["--json", "nowhere/cost.json"], "there is no folder nowhere; make it first"),
    ],
)
def test_what_the_command_cannot_is_told_in_one_line(capsys, arguments, message):
    assert cli.main(["cost", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
