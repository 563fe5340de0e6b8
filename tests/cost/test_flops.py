"""FLOPs of our own models, from their configurations, against torch's counter over a real step.

The counter has no formula for a CPU's fused attention (it would count nothing), so attention is computed here
as two plain matmuls, which it counts in full: every token attends to all L tokens of its context, not just to
earlier ones. A causal context of 2L - 1 has the same mean of L. The experts' operators are the project's own
and so are their formulas (``moe.dispatch``); with dispatch ``reference`` every matmul is torch's, counted
without them.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minimoe import GPT, ModelConfig
from minimoe.cost import flops_per_token, forward_flops, from_config, training_flops

DENSE = ModelConfig(dim=64, n_layers=2, n_heads=2, context=16, hidden_dim=80)
MIXTURE = replace(DENSE, n_experts=8, top_k=2, expert_dim=24)
MODELS = {
    "dense": DENSE,
    "mixture": MIXTURE,
    "first layer dense": replace(MIXTURE, n_layers=3, first_dense=1),
    "none shared": replace(MIXTURE, n_shared=0),
    "two shared": replace(MIXTURE, n_shared=2),
}


def counted(
    config: ModelConfig, backend: SDPBackend = SDPBackend.MATH
) -> tuple[float, float, dict[str, int]]:
    """FLOPs per token, forward and training; and FLOPs by operator."""
    model, tokens = GPT(config), torch.randint(config.vocab_size, (2, config.context))
    with sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
        logits, _ = model(tokens)
        forward = counter.get_total_flops()
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    by_operator = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    return forward / tokens.numel(), counter.get_total_flops() / tokens.numel(), by_operator


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dispatch", ["loop", "grouped", "reference"])
def test_flops_equal_torchs_counter(name, dispatch):
    config = replace(MODELS[name], dispatch=dispatch)
    if not config.n_experts and dispatch != "loop":
        pytest.skip("a dense model dispatches nothing")
    forward, training, by_operator = counted(config)
    full = 2 * config.context - 1
    assert forward == pytest.approx(forward_flops(from_config(config), full), rel=0.01)
    assert training == pytest.approx(training_flops(from_config(config), full), rel=0.01)
    ours = {operator for operator in by_operator if operator.startswith("minimoe.")}
    assert bool(ours) == (config.n_experts > 0 and dispatch != "reference")


def test_the_counter_misses_a_cpus_fused_attention():
    """It misses attention's two matmuls, three times."""
    _, whole, _ = counted(DENSE)
    _, without, by_operator = counted(DENSE, SDPBackend.FLASH_ATTENTION)
    assert not any("attention" in operator for operator in by_operator)
    assert whole - without == 3 * 2 * 2 * DENSE.n_layers * DENSE.dim * DENSE.context


def test_half_of_attention_is_causal():
    full = forward_flops(from_config(DENSE), 2 * DENSE.context - 1) - forward_flops(from_config(DENSE))
    assert full == 2 * 2 * DENSE.n_layers * DENSE.dim * (DENSE.context - (DENSE.context + 1) / 2)
    assert flops_per_token(DENSE) == training_flops(from_config(DENSE))
