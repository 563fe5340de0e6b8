"""Benchmark: the layer, a dense SwiGLU with the same active parameters, and transformers' DeepseekV3MoE.

    pytest benchmarks/test_moe_layer.py --benchmark-enable --benchmark-only -s

One thread, float32, one shared expert. Judging by FLOPs, the mixture takes as long as the dense layer, and
with one token judging by bytes as well; with 16 tokens it must read most experts' weights, several times
those of the dense layer. All layers are timed alternately in the same rounds. The cases with few tokens
represent generation: they run six layers one after another, because in a model a layer's weights come from
memory and not from a cache.

Measured with two settings of the allocator: the default, where the C library returns large freed blocks to
the system and allocates them again; and with freed memory kept (``minimoe.tools.allocator``), as minimoe
trains. transformers gains most from that.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from minimoe.moe import MoE, SwiGLU
from minimoe.tools.memory import saved_activation_bytes
from minimoe.tools.timing import interleaved_seconds

CASES = {  # T, E, K, D, H, backward, layers in a row
    "2048 tokens, forward": (2048, 64, 8, 512, 128, False, 1),
    "2048 tokens, forward+backward": (2048, 64, 8, 512, 128, True, 1),
    "16 tokens, forward": (16, 64, 8, 512, 128, False, 6),
    "1 token, forward": (1, 64, 8, 512, 128, False, 6),
    "512 tokens, small, forward+backward": (512, 16, 2, 256, 128, True, 1),
}
BACKENDS = ("eager", "grouped_mm", "batched_mm")


class TransformersMoE(nn.Module):
    """transformers' DeepseekV3MoE with the weights of an ``MoE``, (T, D) -> (T, D)."""

    def __init__(self, moe: MoE, backend: str) -> None:
        super().__init__()
        deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
        n_experts, dim = moe.gate.weight.shape
        config = deepseek.DeepseekV3Config(
            hidden_size=dim,
            moe_intermediate_size=moe.experts.down_proj.shape[2],
            n_routed_experts=n_experts,
            num_local_experts=n_experts,
            num_experts_per_tok=moe.gate.top_k,
            n_shared_experts=1,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=1.0,
        )
        config._experts_implementation = backend
        self.layer = deepseek.DeepseekV3MoE(config)
        self.layer.load_state_dict(moe.state_dict())

    def forward(self, x):
        return self.layer(x.unsqueeze(0))[0]


class MinimoeMoE(nn.Module):
    """``MoE`` without its routing."""

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x):
        return self.moe(x)[0]


def layers(n_experts, top_k, dim, expert_dim, backends) -> dict[str, nn.Module]:
    moe = MoE(dim, expert_dim, n_experts, top_k)
    others = {f"transformers {backend}": TransformersMoE(moe, backend) for backend in backends}
    return {"dense": SwiGLU(dim, (top_k + 1) * expert_dim), "minimoe": MinimoeMoE(moe), **others}


def task(
    stack: list[nn.Module], x: torch.Tensor, upstream: torch.Tensor, backward: bool
) -> Callable[[], None]:
    def run() -> None:
        with torch.set_grad_enabled(backward):
            for layer in stack:
                layer.zero_grad()
                x.grad = None
                y = layer(x)
                if backward:
                    y.backward(upstream)

    return run


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory", ["given back", "kept"], indirect=True)  # in this order
def test_moe_layer(benchmark, rounds, memory, case):
    tokens, n_experts, top_k, dim, expert_dim, backward, depth = CASES[case]
    timed = rounds > 1
    if not timed:  # only check that it runs, and its result
        tokens, dim, expert_dim, depth = min(tokens, 32), 64, 32, 1
    torch.manual_seed(0)
    backends = BACKENDS if tokens <= 16 else BACKENDS[:2]  # batched_mm copies weights per token: gigabytes
    stacks = [layers(n_experts, top_k, dim, expert_dim, backends) for _ in range(depth)]
    x, upstream = torch.randn(2, tokens, dim)
    for name, layer in stacks[0].items():  # check before timing
        if name.startswith("transformers"):
            torch.testing.assert_close(stacks[0]["minimoe"](x), layer(x), rtol=1e-4, atol=1e-5)
    x.requires_grad_(backward)
    tasks = {name: task([stack[name] for stack in stacks], x, upstream, backward) for name in stacks[0]}
    a, b = torch.randn(2, 1024, 1024)
    rounds *= 4 if timed and tokens < 1000 else 1
    tasks["matmul"] = lambda: a @ b
    seconds = interleaved_seconds(tasks, x.device, rounds=rounds, warmup=2 if timed else 0)

    # Multiplications of the dense layer, which are those of the mixture except for its gate.
    products = 3 * dim * expert_dim * (top_k + 1) * tokens * depth * (3 if backward else 1)
    best = min(backends, key=lambda backend: seconds[f"transformers {backend}"])
    peak = 2 * 1024**3 / seconds["matmul"]
    figures = {
        "ms_dense": seconds["dense"] / depth * 1e3,
        "times_dense": seconds["minimoe"] / seconds["dense"],
        "faster_than_transformers": seconds[f"transformers {best}"] / seconds["minimoe"],
        "transformers_times_dense": seconds[f"transformers {best}"] / seconds["dense"],
        "share_of_peak": 2 * products / seconds["minimoe"] / peak,
        "dense_share_of_peak": 2 * products / seconds["dense"] / peak,
    }
    benchmark.group = f"{case}, one thread, float32, memory {memory}"
    benchmark.extra_info.update(figures | {"transformers_backend": best})
    print(
        f"\n{memory:10}  {case:35}  dense {figures['ms_dense']:6.2f} ms {figures['dense_share_of_peak']:4.0%}"
        f"   minimoe {figures['times_dense']:.2f}x {figures['share_of_peak']:4.0%}"
        f"   {figures['faster_than_transformers']:.2f}x faster than {best}"
    )
    benchmark.pedantic(tasks["minimoe"], rounds=max(rounds // 4, 1), warmup_rounds=0)


@pytest.mark.usefixtures("one_thread")
def test_memory_kept_for_backward(benchmark, rounds):
    """Bytes, not seconds: what autograd saves for the backward pass of 2048 tokens."""
    tokens = 2048 if rounds > 1 else 32
    built = layers(64, 8, 512, 128, BACKENDS[:2])
    x = torch.randn(tokens, 512, requires_grad=True)
    kept = {name: saved_activation_bytes(layer, x) for name, layer in built.items()}
    times = {name: value / kept["dense"] for name, value in kept.items()}
    benchmark.extra_info.update({f"kept_{name}": value for name, value in kept.items()})
    print(
        f"\nkept for backward, {tokens} tokens: dense {kept['dense'] / 1e6:.1f} MB; "
        + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in times.items() if name != "dense")
    )
    benchmark.pedantic(lambda: built["minimoe"](x), rounds=1)
