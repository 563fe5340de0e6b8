"""The parts of the GPT against independent implementations, in float64 where possible."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minimoe.cost import dense_width, flops_per_token, parameters
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT, Attention, KVCache, rotary_table, rotate
from minimoe.training.trainer import cross_entropy


def test_rotary_equals_complex_multiplication():
    x = torch.randn(2, 3, 10, 8, dtype=torch.float64)
    cos, sin = rotary_table(10, 8, 10_000.0)
    pairs = torch.complex(*x.chunk(2, dim=-1))
    frequency = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = pairs * torch.exp(1j * torch.outer(torch.arange(10, dtype=torch.float64), frequency))
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotate(x, cos.double(), sin.double()), expected, rtol=1e-6, atol=1e-6)


def test_rotary_attention_depends_on_distance_only():
    cos, sin = rotary_table(40, 16, 10_000.0)
    q, k = torch.randn(2, 16)

    def score(i, j):
        return rotate(q, cos[i], sin[i]) @ rotate(k, cos[j], sin[j])

    torch.testing.assert_close(score(5, 2), score(35, 32), rtol=1e-4, atol=1e-5)
    assert (score(5, 2) - score(5, 3)).abs() > 1e-3


def test_attention_equals_explicit_softmax(tiny_dense):
    attention = Attention(tiny_dense).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    cos, sin = (table[:9].double() for table in rotary_table(9, 8, 10_000.0))
    q, k, v = (x @ attention.qkv_proj.weight.T).chunk(3, dim=-1)
    heads = []
    for head in range(2):
        columns = slice(8 * head, 8 * head + 8)
        scores = rotate(q[..., columns], cos, sin) @ rotate(k[..., columns], cos, sin).mT / math.sqrt(8)
        for i in range(9):
            scores[:, i, i + 1 :] = -math.inf
        heads.append(scores.softmax(-1) @ v[..., columns])
    expected = torch.cat(heads, dim=-1) @ attention.out_proj.weight.T
    torch.testing.assert_close(attention(x, (cos, sin), None, 0), expected, rtol=1e-10, atol=1e-12)


def test_no_position_sees_the_future(tiny):
    model = GPT(tiny)
    tokens = torch.randint(256, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = torch.randint(256, (2, 7))
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=1e-5, atol=1e-6)
    assert (before[:, 9:] - after[:, 9:]).abs().max() > 1e-3


def test_a_sequence_does_not_depend_on_the_others(tiny):
    model = GPT(tiny)
    tokens = torch.randint(256, (5, 16))
    together = model(tokens)[0]
    alone = torch.cat([model(row[None])[0] for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    losses = torch.stack([cross_entropy(model(row[None])[0], row[None]) for row in tokens])
    torch.testing.assert_close(cross_entropy(together, tokens), losses.mean())


def test_the_model_equals_one_with_the_reference_dispatcher(tiny_moe):
    model = GPT(tiny_moe)
    oracle = GPT(replace(tiny_moe, dispatch="reference"))
    oracle.load_state_dict(model.state_dict())
    tokens = torch.randint(256, (2, 16))
    for m in (model, oracle):
        logits, routings = m(tokens)
        cross_entropy(logits, tokens).backward()
        assert len(routings) == 2
    for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_cached_logits_equal_full_ones(tiny):
    model = GPT(tiny).eval()
    tokens = torch.randint(256, (3, 16))
    cache, parts = KVCache(tiny, 3), []
    for part in tokens.split([5, 1, 1, 4, 5], dim=1):  # a prompt, single steps, and chunks
        parts.append(model(part, cache)[0])
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens)[0], rtol=1e-5, atol=1e-6)


def test_initial_residual_stream_does_not_grow_with_depth():
    def deviation(n_layers):
        model = GPT(ModelConfig(dim=64, n_layers=n_layers, hidden_dim=128))
        model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].std().item()))
        seen = []
        model(torch.randint(256, (2, 64)))
        return seen[0]

    assert deviation(16) < 1.3 * deviation(2)


def test_initial_loss_is_near_uniform(tiny):
    tokens = torch.randint(256, (8, 16))
    loss = cross_entropy(GPT(tiny)(tokens)[0], torch.randint(256, (8, 16)))
    assert abs(loss.item() - math.log(256)) < 0.3


@pytest.mark.parametrize("n_experts", [0, 8])
def test_parameters_are_counted_exactly(n_experts):
    config = ModelConfig(dim=32, n_layers=3, hidden_dim=80, n_experts=n_experts, top_k=2, expert_dim=24)
    model = GPT(config)
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    idle = (n_experts - 2) * 3 * 24 * 32 * 3 if n_experts else 0
    assert parameters(config, active=True) == parameters(config) - idle


def test_noise_and_capacity_reach_the_layer(tiny_moe):
    layer = GPT(replace(tiny_moe, jitter=0.25, capacity_factor=3.0)).blocks[0].feed_forward
    assert (layer.gate.jitter, layer.capacity_factor) == (0.25, 3.0)


def test_the_first_layers_can_be_dense():
    config = ModelConfig(
        dim=32, n_layers=3, hidden_dim=80, n_experts=8, top_k=2, expert_dim=24, first_dense=2
    )  # fmt: skip
    model = GPT(config)
    assert [type(block.feed_forward).__name__ for block in model.blocks] == ["SwiGLU", "SwiGLU", "MoE"]
    assert len(model(torch.randint(256, (1, 8)))[1]) == 1
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    idle = (8 - 2) * 3 * 24 * 32  # of one layer
    assert parameters(config, active=True) == parameters(config) - idle


@pytest.mark.parametrize(("n_experts", "dispatch"), [(0, "auto"), (8, "loop"), (8, "grouped")])
def test_flops_equal_torchs_counter(n_experts, dispatch):
    config = ModelConfig(
        dim=64, n_layers=2, context=128, hidden_dim=80, n_experts=n_experts, top_k=2, expert_dim=24,
        dispatch=dispatch,
    )  # fmt: skip
    model = GPT(config)
    tokens = torch.randint(256, (2, 128))
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(tokens)[0], tokens).backward()
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    matmuls = sum(n for op, n in counts.items() if "attention" not in op)
    # torch does not count causal attention, which is 2 products of (L + 1) / 2 rows of width D per layer,
    # three times. The embedding's gradient is an addition; the first layer's input gradient is computed.
    attention = 3 * 2 * 2 * 2 * 64 * (128 + 1) / 2
    expected = flops_per_token(config) - attention
    assert matmuls / tokens.numel() == pytest.approx(expected, rel=0.01)


def test_dense_baselines_match_the_mixtures_parameters():
    moe = ModelConfig(dim=64, n_experts=32, top_k=4, expert_dim=32)
    for active, working in ((True, moe.top_k), (False, moe.n_experts)):
        width = dense_width(moe.expert_dim, moe.n_experts, working + moe.n_shared)
        dense = replace(moe, n_experts=0, hidden_dim=width)
        ratio = parameters(dense) / parameters(moe, active=active)
        assert 1 <= ratio < 1.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, r"dim \(0\) must be at least 1"),
        ({"dim": 30, "n_heads": 4}, r"dim \(30\) must be n_heads \(4\) times an even width"),
        ({"dim": 12, "n_heads": 4}, r"dim \(12\).*even width"),
        ({"n_experts": 4, "top_k": 5}, r"top_k \(5\).*n_experts \(4\)"),
        ({"n_experts": -1}, r"n_experts \(-1\)"),
        ({"n_experts": 4, "expert_dim": 0}, r"expert_dim \(0\)"),
        ({"jitter": -0.1}, r"jitter \(-0.1\)"),
        ({"capacity_factor": 0.0}, r"capacity_factor \(0.0\)"),
        ({"n_experts": 8, "first_dense": 5}, r"first_dense \(5\).*n_layers \(4\)"),
        ({"norm_eps": 0.0}, r"norm_eps \(0.0\)"),
    ],
)
def test_invalid_configurations_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)


def test_sequences_beyond_the_context_are_rejected(tiny):
    with pytest.raises(ValueError, match=r"17 tokens exceed the model's context \(16\)"):
        GPT(tiny)(torch.zeros(1, 17, dtype=torch.int64))
