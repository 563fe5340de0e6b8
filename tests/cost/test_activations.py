"""Activation memory predicted from a configuration, against torch's profiler and autograd's hooks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from minimoe import GPT, ModelConfig
from minimoe.cost import PUBLISHED, STORAGE_PRECISIONS, activations, from_config
from minimoe.cost.activations import feed_forward, network
from minimoe.moe import MoE, SwiGLU
from minimoe.tools.memory import saved_activation_bytes

FLOAT32 = STORAGE_PRECISIONS["float32"]
NORM = 3 * 128 + 1  # numbers that the norm before a layer of width 128 keeps: x, x / rms, the result, 1 / rms


@pytest.fixture(autouse=True)
def one_thread():
    """With several, dispatch auto would choose differently at some sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def changes(function) -> list[tuple[int, int]]:
    """Address and size (negative: freed) of each allocation of torch while the function runs, in order."""

    def walk(events):
        for event in events:
            yield event
            yield from walk(event.children)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    events = sorted(
        walk(found.profiler.kineto_results.experimental_event_tree()), key=lambda e: e.start_time_ns
    )
    fields = [e.typed[1] for e in events if e.typed[0].name == "Allocation"]
    return [(f.ptr, f.alloc_size) for f in fields]


def peak(found: list[tuple[int, int]], without: set[int] = frozenset()) -> int:
    """Most bytes live at once, without the blocks that are at the addresses ``without`` at the end."""
    last = {address: i for i, (address, size) in enumerate(found) if size > 0}
    live = most = 0
    for i, (address, size) in enumerate(found):
        if not (address in without and i == last[address]):
            live += size
        most = max(most, live)
    return most


def test_the_profiler_agrees_with_a_count_by_hand():
    def by_hand():
        a = torch.empty(1_000_000)  # 4 MB
        b = torch.empty(500_000)  # 6 MB
        del a  # 2 MB
        c = torch.empty(750_000)  # 5 MB
        del b, c

    assert peak(changes(by_hand)) == 6_000_000
    w, x = torch.randn(1000, 1000, requires_grad=True), torch.randn(10, 1000)

    def with_gradient():
        F.linear(x, w).exp().sum().backward()

    # The product and its exponential, 40 kB each; then the exponential and its gradient; a number or two.
    # The gradient of w, which makes 4 MB of it, does not count.
    found = changes(with_gradient)
    assert peak(found, {w.grad.data_ptr()}) == pytest.approx(80_000, abs=64)
    assert peak(found) == pytest.approx(4_040_000, abs=64)


def measured(config: ModelConfig, batch: int) -> tuple[int, float]:
    """Peak of a step without parameters, gradients and inputs; and the largest load ratio of an expert."""
    torch.manual_seed(0)
    model, load_ratios = GPT(config), [1.0]
    inputs, targets = torch.randint(config.vocab_size, (2, batch, config.context))

    def step():
        logits, routings = model(inputs)
        load_ratios.extend((r.counts_E.max() / r.counts_E.float().mean()).item() for r in routings)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()

    step()  # what is allocated only once
    model.zero_grad()
    found = changes(step)
    return peak(found, {p.grad.data_ptr() for p in model.parameters()}), max(load_ratios)


BASE = ModelConfig(dim=128, n_layers=2, vocab_size=64)
MIXTURE = replace(BASE, n_experts=8, top_k=2, expert_dim=192)
MODELS = {  # the model, its batch, and where the peak is
    "dense": (replace(BASE, vocab_size=256), 16, "loss"),
    "large vocabulary": (ModelConfig(dim=64, n_layers=2, n_heads=2, vocab_size=4096), 4, "loss"),
    "wide": (replace(BASE, hidden_dim=512), 16, "network"),
    "narrow": (replace(BASE, hidden_dim=64), 16, "last norm"),
    "deep": (ModelConfig(dim=64, n_layers=6, n_heads=4), 16, "loss"),
    "mixture": (MIXTURE, 32, "experts"),
    "fine-grained": (replace(BASE, n_experts=32, top_k=4, expert_dim=64, vocab_size=256), 16, "loss"),
    "none shared": (replace(MIXTURE, n_shared=0), 32, "experts"),
    "three shared, one dense": (replace(MIXTURE, n_layers=3, n_shared=3, first_dense=1), 16, "network"),
    "two experts": (
        replace(MIXTURE, n_layers=1, n_experts=2, top_k=1, expert_dim=384, n_shared=0),
        16,
        "experts",
    ),
    "many small blocks": (
        replace(MIXTURE, n_layers=1, n_experts=32, expert_dim=512, n_shared=0),
        8,
        "experts",
    ),
    "four wide experts": (
        ModelConfig(dim=64, n_layers=1, n_heads=2, n_experts=4, top_k=1, expert_dim=512, n_shared=0),
        32,
        "experts",
    ),
    "grouped": (replace(MIXTURE, dispatch="grouped"), 16, "experts"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_peak_of_a_training_step(name):
    """Dense models to 0.1 %; MoE models to 2 % given the measured load ratio, and to 12 % assuming a balanced
    load, which a new gate's is not. If an expert fills most of a block, the grouping of experts does not
    follow from the load ratio: 8 %."""
    config, batch, where = MODELS[name]
    found, max_load = measured(config, batch)
    tokens = batch * config.context
    dispatch = "grouped" if config.dispatch == "grouped" else "loop"
    predicted = activations(from_config(config), tokens, dispatch=dispatch, max_load_ratio=max_load)
    tolerance = 0.001 if not config.n_experts else 0.08 if name == "four wide experts" else 0.02
    assert predicted.peak_at == where
    assert predicted.peak == pytest.approx(found, rel=tolerance)
    assert activations(from_config(config), tokens, dispatch=dispatch).peak == pytest.approx(found, rel=0.12)


@pytest.mark.parametrize("width", [96, 336])
def test_activations_of_a_dense_network_are_exact(width):
    x = torch.randn(50, 128, requires_grad=True)
    a = from_config(replace(BASE, hidden_dim=width))
    assert saved_activation_bytes(SwiGLU(128, width), x) == 50 * network(a, FLOAT32, width) == 50 * 16 * width
    assert feed_forward(a, FLOAT32, is_moe=False) == 4 * NORM + 16 * width


@pytest.mark.parametrize("n_shared", [0, 1, 2])
@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 2), (16, 4)])
def test_activations_of_an_moe_layer_are_exact(n_experts, top_k, n_shared):
    """The layer's input is the norm's result, which the prediction includes and the hooks do not."""
    config = replace(MIXTURE, n_experts=n_experts, top_k=top_k, n_shared=n_shared)
    layer = MoE(128, 192, n_experts, top_k, n_shared=n_shared)
    x = torch.randn(50, 128, requires_grad=True)
    predicted = feed_forward(from_config(config), FLOAT32, is_moe=True) - 4 * NORM
    assert saved_activation_bytes(layer, x) == 50 * predicted


def test_activations_of_a_model_add_up():
    """Twice the layers, twice the bytes before the head; and everything is proportional to tokens."""
    a = from_config(BASE)
    once, twice = activations(a, 100), activations(replace(a, n_layers=4), 100)
    assert twice.layers == 2 * once.layers
    assert activations(a, 300).peak == 3 * once.peak
    assert activations(a, 300, "bf16").layers == pytest.approx(activations(a, 300).layers / 2, rel=0.01)


def test_eight_bits_by_hand():
    """OLMoE's layer, stored as in V3's report: inputs of linear layers and the experts' gate and up in 8 bits
    with a scale per 128, attention's output in 12, the rest in 16; the router in float32 and int64."""
    a = replace(PUBLISHED["olmoe"], qk_norm="none")
    eight, d, h = 1 + 4 / 128, 2048, 1024
    norms = 2 * (2 * 2 * d + 4 + eight * d)
    attention = 2 * (3 * d + 2 * d) + (2 + 1.5 + 4 / 128) * d + 4 * 16
    router = 64 * 8 + 8 * (8 + 12 + 8)
    experts = 8 * 2 * h * eight
    assert activations(a, 1, "deepseek-v3").layers == 16 * (norms + attention + router + experts)


def test_latent_attention_by_hand():
    """V3's layer in bf16: latents with what their norms keep, concatenated queries and keys, projected keys
    and values, the output twice, a log-sum-exp per head."""
    a = PUBLISHED["deepseek-v3"]
    latents = 2 * (3 * 1536 + 3 * 512 + 64) + 8
    heads = 2 * 128 * (192 + 192 + 256 + 128 + 128) + 4 * 128
    norm = 2 * 3 * 7168 + 4
    dense = replace(a, n_layers=1, first_dense=1)
    assert activations(dense, 1, "bf16").layers == latents + heads + 2 * norm + 2 * 4 * 18_432


def test_invalid_arguments_are_refused():
    a = PUBLISHED["gpt-2"]
    with pytest.raises(
        ValueError, match="storage precision must be one of float32, bf16, deepseek-v3, not 'int4'"
    ):
        activations(a, 1, "int4")
    with pytest.raises(ValueError, match=r"tokens \(0\) and max_load_ratio \(1.0\) must be at least 1"):
        activations(a, 0)
    with pytest.raises(ValueError, match=r"max_load_ratio \(0.5\)"):
        activations(a, 1, max_load_ratio=0.5)
