"""Linear layers, experts and a GPT under low-precision recipes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.moe import MoE, route
from minimoe.moe.dispatch.quantized import composed_experts, quantized_experts
from minimoe.precision import (
    DEEPSEEK_V3,
    E5M2,
    MXFP8,
    RECIPES,
    Accumulator,
    Cast,
    Linear,
    matmul,
    quantize_weights_,
)
from minimoe.training.config import TrainConfig
from minimoe.training.trainer import Trainer

LOW = [name for name in RECIPES if name != "full"]


@pytest.mark.parametrize("name", LOW)
def test_linear_is_matmul_with_its_weight(name):
    layer = Linear(200, 130, recipe=name)
    assert layer.weight.dtype == torch.float32
    x = torch.randn(3, 5, 200, requires_grad=True)
    g = torch.randn(3, 5, 130)
    expected = matmul(x, layer.weight.T, name) + layer.bias
    assert torch.equal(layer(x), expected)
    leaves = (x, layer.weight, layer.bias)
    for one, other in zip(
        torch.autograd.grad(layer(x), leaves, g), torch.autograd.grad(expected, leaves, g), strict=True
    ):
        assert torch.equal(one, other)
    assert Linear(8, 4, bias=False).bias is None
    assert "recipe=deepseek-v3" in repr(Linear(8, 4))


def test_linear_takes_torchs_weights():
    ours, torchs = Linear(64, 32, recipe="full"), nn.Linear(64, 32)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(7, 64)
    torch.testing.assert_close(ours(x), torchs(x))


@pytest.mark.parametrize("name", LOW)
def test_quantized_weights_compute_the_same_in_a_quarter_of_the_memory(name):
    layer = Linear(256, 384, recipe=name)
    x = torch.randn(5, 256)
    before, bytes_before = layer(x).detach(), layer.weight.nbytes
    layer.quantize_weights_()
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
    assert "weight" not in dict(layer.named_parameters())
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert layer.weight.nbytes + layer.weight_scale_inv.nbytes < 0.27 * bytes_before
    layer.quantize_weights_()  # idempotent
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
    other = Linear(256, 384, recipe=name)
    other.quantize_weights_()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def experts_by_hand(x, gate_up, down, weights, ids, recipe):
    """Expert by expert with ``matmul``; a token's results are summed in float32."""
    y = torch.zeros_like(x)
    for e in range(len(gate_up)):
        tokens, slots = (ids == e).nonzero(as_tuple=True)
        h = matmul(x[tokens], gate_up[e].T, recipe)
        gate, up = h.chunk(2, -1)
        h = F.silu(gate) * up * weights[tokens, slots].unsqueeze(1)
        y = y.index_add(0, tokens, matmul(h, down[e].T, recipe))
    return y


E5M2_GRADIENTS = replace(DEEPSEEK_V3, name="E5M2 gradients", gradient=Cast(E5M2, (1, 128)))


@pytest.mark.parametrize("recipe", [*RECIPES.values(), E5M2_GRADIENTS], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize(("dim", "width", "n_experts", "tokens"), [(64, 32, 8, 100), (192, 160, 5, 300)])
def test_experts_equal_matmuls_expert_by_expert(recipe, dim, width, n_experts, tokens):
    """Forward and every gradient, from a random upstream gradient. The written-out backward pass rounds the
    activation's derivative differently from autograd, which can change a few codes by one."""
    x = torch.randn(tokens, dim, requires_grad=True)
    gate_up = (torch.randn(n_experts, 2 * width, dim) / dim**0.5).requires_grad_()
    down = (torch.randn(n_experts, dim, width) / width**0.5).requires_grad_()
    routing = route(torch.randn(tokens, n_experts - 1), 2)  # no token picks the last expert
    weights = routing.weights_TK.clone().requires_grad_()
    leaves, g = (x, gate_up, down, weights), torch.randn(tokens, dim)
    implementations = []
    for run in (quantized_experts, composed_experts, experts_by_hand):
        y = run(x, gate_up, down, weights, routing.ids_TK, recipe)
        implementations.append((y, *torch.autograd.grad(y, leaves, g)))
    for results in zip(*implementations, strict=True):
        size = results[2].norm()
        assert ((results[0] - results[1]).norm() / size).item() < 2e-3
        assert ((results[0] - results[2]).norm() / size).item() < 4e-3


def test_experts_under_a_slow_recipe_equal_the_definition():
    recipe = MXFP8.with_(accumulator=Accumulator.tensor_core(10))
    x, ids = torch.randn(20, 64), torch.randint(0, 4, (20, 2))
    gate_up, down, weights = torch.randn(4, 64, 64), torch.randn(4, 64, 32), torch.rand(20, 2)
    y = quantized_experts(x, gate_up, down, weights, ids, recipe)
    torch.testing.assert_close(
        y, experts_by_hand(x, gate_up, down, weights, ids, recipe), rtol=1e-4, atol=1e-3
    )


def test_a_layer_under_a_recipe_keeps_its_gate_and_names():
    torch.manual_seed(1)
    full = MoE(64, 32, 8, 2)
    low = MoE(64, 32, 8, 2, recipe="deepseek-v3")
    low.load_state_dict(full.state_dict())
    x = torch.randn(50, 64)
    (y, routing), (y_full, routing_full) = low(x), full(x)
    assert torch.equal(routing.scores_TE, routing_full.scores_TE)  # the gate is not quantized
    assert 0.01 < ((y - y_full).norm() / y_full.norm()).item() < 0.1
    mask = torch.arange(50) < 40
    assert (low(x, mask)[0][40:] == 0).all()
    before = y.detach()
    quantize_weights_(low)
    torch.testing.assert_close(low(x)[0], before, rtol=1e-4, atol=1e-5)
    assert low.experts.gate_up_proj.dtype == torch.float8_e4m3fn
    assert low.experts.gate_up_proj_scale_inv.shape == (8, 1, 1)


def test_autocast_does_not_affect_recipes():
    """It would run the matmul of dequantized values in BF16."""
    moe, layer, x = MoE(64, 32, 8, 2, recipe="deepseek-v3"), Linear(64, 32), torch.randn(50, 64)
    routing = moe.gate(x)
    plain = layer(x), moe.experts(x, routing)
    with torch.autocast("cpu", torch.bfloat16):
        cast = layer(x), moe.experts(x, routing)
    for one, other in zip(plain, cast, strict=True):
        assert torch.equal(one, other)


def test_a_batch_without_tokens():
    low = MoE(64, 32, 8, 2, recipe="deepseek-v3")
    x = torch.zeros(0, 64, requires_grad=True)
    y, _ = low(x)
    y.sum().backward()
    assert y.shape == (0, 64)
    assert (low.experts.down_proj.grad == 0).all()


@pytest.mark.parametrize("precision", LOW)
def test_a_gpt_keeps_in_high_precision_what_v3_keeps(precision, tiny):
    """Section 3.3.1: embedding, head, norms, gate and attention between the projections."""
    model = GPT(replace(tiny, precision=precision))
    quantized = {name for name, module in model.named_modules() if isinstance(module, Linear)}
    assert {"blocks.0.attention.qkv_proj", "blocks.1.attention.out_proj"} <= quantized
    if tiny.n_experts:
        assert model.blocks[0].feed_forward.experts.recipe.name == precision
        assert "blocks.0.feed_forward.shared_experts.up_proj" in quantized
        assert type(model.blocks[0].feed_forward.gate).__name__ == "Router"
    else:
        assert "blocks.1.feed_forward.down_proj" in quantized
    others = [m for name, m in model.named_modules() if name not in quantized and isinstance(m, nn.Linear)]
    assert not others
    full = GPT(tiny)
    assert full.state_dict().keys() == model.state_dict().keys()
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_gpt_trains_in_8_bits_almost_as_in_32(tiny, corpus):
    losses = {}
    for precision in ("full", "deepseek-v3", "naive"):
        torch.manual_seed(0)
        config = replace(tiny, dim=32, precision=precision)
        trainer = Trainer(GPT(config), corpus, TrainConfig(steps=60, warmup=5, eval_sequences=8))
        for _ in range(60):
            trainer.train_step()
        losses[precision] = trainer.evaluate().bits_per_byte
    assert losses["full"] < 4.5  # of 8: it learns
    assert abs(losses["deepseek-v3"] / losses["full"] - 1) < 0.05
    assert losses["naive"] > 1.1 * losses["full"]


def test_a_quantized_model_computes_the_same_from_a_quarter_of_the_bytes():
    config = ModelConfig(
        dim=128, n_layers=2, n_heads=2, n_experts=4, top_k=2, expert_dim=128, precision="deepseek-v3"
    )
    model = GPT(config).eval()
    tokens = torch.randint(0, 256, (2, 20))
    before = model(tokens)[0].detach()

    def size() -> int:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        kept = ("embedding.weight", "norm.weight", "gate.weight", "correction_bias", "cos", "sin")
        return sum(t.nbytes for name, t in tensors.items() if not name.endswith(kept))

    bytes_before = size()
    quantize_weights_(model)
    torch.testing.assert_close(model(tokens)[0], before, rtol=1e-3, atol=1e-3)
    assert size() < 0.26 * bytes_before


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match="unknown recipe 'fp4'"):
        Linear(8, 8, recipe="fp4")
    with pytest.raises(ValueError, match="unknown recipe 'fp4'"):
        ModelConfig(precision="fp4")
    with pytest.raises(
        ValueError, match=r"dispatch 'loop' does not support recipes \(deepseek-v3\); use 'auto'"
    ):
        ModelConfig(n_experts=8, dispatch="loop", precision="deepseek-v3")
    with pytest.raises(
        ValueError, match=r"dispatch 'grouped' does not support recipes \(deepseek-v3\); use 'auto'"
    ):
        MoE(8, 8, 4, 2, dispatch="grouped", recipe=DEEPSEEK_V3)
    with pytest.raises(
        ValueError, match=r"choice 'expert' does not support recipes \(deepseek-v3\); use 'token'"
    ):
        MoE(8, 8, 4, 2, choice="expert", recipe=DEEPSEEK_V3)
    layer = Linear(8, 8)
    layer.quantize_weights_()
    with pytest.raises(TypeError, match="codes of E4M3 are"):
        layer.bfloat16()(torch.ones(2, 8))
