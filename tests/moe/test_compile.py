"""torch.compile takes the whole model as one graph, and changes neither values nor gradients."""

import shutil

import pytest
import torch

from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.moe import MoE
from minimoe.training.trainer import cross_entropy

pytestmark = pytest.mark.compile

needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


@needs_compiler
def test_compiled_model_equals_eager():
    """A dense and a mixture-of-experts block in one model, because compilation takes most of the time."""
    config = ModelConfig(
        dim=16, n_layers=2, n_heads=2, context=16, hidden_dim=32, first_dense=1,
        n_experts=8, top_k=2, expert_dim=8,
    )  # fmt: skip
    model = GPT(config)
    compiled = torch.compile(model, fullgraph=True)
    tokens = torch.randint(256, (2, 16))
    results = []
    for run in (model, compiled):
        model.zero_grad()
        logits, routings = run(tokens)
        cross_entropy(logits, tokens).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append((logits, [routing.ids_TK for routing in routings], gradients))
    (logits, ids, gradients), (compiled_logits, compiled_ids, compiled_gradients) = results
    torch.testing.assert_close(compiled_logits, logits, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(ids, compiled_ids, strict=True))
    for name in gradients:
        torch.testing.assert_close(compiled_gradients[name], gradients[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("dispatch", "dtype"),
    [
        ("grouped", torch.float32),
        ("grouped", torch.bfloat16),
        ("loop", torch.float32),
        ("loop", torch.bfloat16),
        ("loop", torch.float64),
        ("capacity", torch.float32),
    ],
)
def test_each_dispatcher_is_one_graph(dispatch, dtype):
    """Traced forward and backward, without the compiler behind it: quick, and enough to find a graph
    break."""
    moe = MoE(16, 8, 8, 2, dispatch=dispatch).to(dtype)
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    x = torch.randn(24, 16, dtype=dtype)
    gradients = []
    for run in (moe, compiled):
        moe.zero_grad()
        y, _ = run(x)
        y.square().sum().backward()
        gradients.append([y.detach(), *(p.grad.clone() for p in moe.parameters())])
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(traced, eager)
