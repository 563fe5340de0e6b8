"""[evidence] Benchmarks of FP8 against float32 and bf16: quantize, decode, matmul, linear layer, weights.

Recipes receive float32 operands, and their quantization is timed; bf16 operands are in bf16 already, as they
are in bf16 training.

Dimensions: M, N, K of a matmul, K contracted; T tokens, D widths in and out.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from minimoe.bench.case import BuiltCase, Case, Work
from minimoe.bench.checks import require_close
from minimoe.bench.layers import layer_task
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.precision import (
    BF16,
    E4M3,
    Accumulator,
    Linear,
    Recipe,
    as_recipe,
    decode,
    fake_quantize,
    matmul,
    quantize,
    quantize_weights_,
)
from minimoe.precision.analysis import BoundKind
from minimoe.precision.arguments import Block
from minimoe.precision.backends import multiplies_bf16_fast
from minimoe.testing.bounds import assert_within_bound
from minimoe.tools.memory import weight_bytes
from minimoe.tools.timing import Task

BLOCKS: dict[str, Block | None] = {"1x128": (1, 128), "128x128": (128, 128), "tensor": None}

RECIPES = ("deepseek-v3", "deepseek-v3-pow2", "tensorwise", "rowwise", "mxfp8")

FLOAT32, HALF, CODES = "float32", "bf16", "codes"

BOUND: BoundKind = "probabilistic"  # tighter, and valid for random operands


def build_quantize(case: Case, device: torch.device) -> BuiltCase:
    """Quantizing a matrix to codes and scales, against copying it; memory is that of the result."""
    x_MK = torch.randn(case.shape["M"], case.shape["K"], device=device)
    out_MK = torch.empty_like(x_MK)

    def check() -> None:
        for name, block in BLOCKS.items():
            quantized = quantize(x_MK, E4M3, block).dequantize()
            require_close(f"{name} codes", quantized, fake_quantize(x_MK, E4M3, block), 0.0)
            require_close(f"{name} in 8 bits", quantized, x_MK, 2.0**-4)  # half an ulp of 3 mantissa bits

    def memory() -> dict[str, int]:
        sizes = {name: quantize(x_MK, E4M3, block).nbytes for name, block in BLOCKS.items()}
        return {"copy": x_MK.nbytes, HALF: x_MK.bfloat16().nbytes, **sizes}

    tasks: dict[str, Task] = {"copy": partial(out_MK.copy_, x_MK), HALF: x_MK.bfloat16}
    tasks |= {name: partial(quantize, x_MK, E4M3, block) for name, block in BLOCKS.items()}
    moved = {"copy": 8, HALF: 6} | dict.fromkeys(BLOCKS, 5)
    work = {name: Work(0, each * x_MK.numel()) for name, each in moved.items()}
    return BuiltCase(check, tasks, work, memory)


def build_decode(case: Case, device: torch.device) -> BuiltCase:
    """Decoding codes to float32, against torch's cast."""
    codes = torch.randn(case.shape["M"], case.shape["K"], device=device).to(torch.float8_e4m3fn)

    def check() -> None:
        require_close("decode", decode(codes, E4M3), codes.float(), 0.0)

    tasks: dict[str, Task] = {"cast": codes.float, "decode": partial(decode, codes, E4M3)}
    return BuiltCase(check, tasks, dict.fromkeys(tasks, Work(0, 5 * codes.numel())))


def build_matmul(case: Case, device: torch.device) -> BuiltCase:
    """a @ b in float32, in bf16, and under every recipe."""
    M, N, K = (case.shape[letter] for letter in "MNK")
    a_MK, b_KN = torch.randn(M, K, device=device), torch.randn(K, N, device=device)
    a_half, b_half = a_MK.bfloat16(), b_KN.bfloat16()

    def check() -> None:
        for name in RECIPES:
            assert_within_bound(matmul(a_MK, b_KN, name), a_MK, b_KN, _bounded_recipe(name, device), BOUND)
        require_close("bf16 matmul", a_half @ b_half, a_half.double() @ b_half.double(), 2.0**-8)

    tasks = {FLOAT32: partial(torch.matmul, a_MK, b_KN), HALF: partial(torch.matmul, a_half, b_half)}
    tasks |= {name: partial(matmul, a_MK, b_KN, name) for name in RECIPES}
    operands, result, flops = M * K + K * N, M * N, 2.0 * M * N * K
    work = {FLOAT32: Work(flops, 4 * (operands + result))}
    work[HALF] = Work(flops, 2 * (operands + result), "bfloat16")
    for name in RECIPES:  # operands read; their quantized values written and read
        dtype = _matmul_dtype(name, device)
        work[name] = Work(flops, (4 + 2 * getattr(torch, dtype).itemsize) * operands + 4 * result, dtype)
    return BuiltCase(check, tasks, work)


def _matmul_dtype(name: str, device: torch.device) -> str:
    """The dtype in which a recipe multiplies: on a GPU bfloat16, or 8 bits, whose peak is not measured."""
    recipe = as_recipe(name)
    exact = recipe.weight is not None and recipe.weight.exact_in_bf16
    fast = exact and recipe.output == BF16 and multiplies_bf16_fast(device)
    return "bfloat16" if fast or device.type == "cuda" else "float32"


def _bounded_recipe(name: str, device: torch.device) -> Recipe:
    """The recipe whose bound applies: a GPU's 8-bit tensor cores accumulate with fewer bits."""
    recipe = as_recipe(name)
    return recipe if device.type == "cpu" else recipe.with_(accumulator=Accumulator.tensor_core())


def build_linear(case: Case, device: torch.device) -> BuiltCase:
    """A linear layer of width D, forward and backward: three matmuls."""
    T, D = case.shape["T"], case.shape["D"]
    plain = nn.Linear(D, D, bias=False, device=device)
    low = {name: Linear(D, D, bias=False, recipe=name, device=device) for name in case.tasks[1:]}
    for layer in low.values():
        layer.load_state_dict(plain.state_dict())
    x_TD = torch.randn(T, D, device=device)

    def check() -> None:
        g_TD = torch.randn_like(x_TD)
        for name, layer in low.items():
            _require_three_matmuls_within_bounds(layer, x_TD, g_TD, _bounded_recipe(name, device))

    flops, bytes_ = 6 * T * D * D, 4 * 3 * (2 * T * D + D * D)
    work = {FLOAT32: Work(flops, bytes_)}
    work |= {name: Work(flops, bytes_, _matmul_dtype(name, device)) for name in low}
    tasks = {name: layer_task(layer, x_TD, True) for name, layer in {FLOAT32: plain, **low}.items()}
    return BuiltCase(check, tasks, work)


def _require_three_matmuls_within_bounds(layer: Linear, x_TD: Tensor, g_TD: Tensor, recipe: Recipe) -> None:
    x_TD, weight = x_TD.detach().requires_grad_(), layer.weight
    y_TD = layer(x_TD)
    dx_TD, dweight = torch.autograd.grad(y_TD, [x_TD, weight], g_TD)
    x_TD, weight = x_TD.detach(), weight.detach()
    assert_within_bound(y_TD, x_TD, weight.mT, recipe, BOUND)
    assert_within_bound(dx_TD, g_TD, weight, recipe.with_(activation=recipe.gradient), BOUND)
    both = recipe.with_(activation=recipe.gradient, weight=recipe.activation)
    assert_within_bound(dweight, g_TD.mT, x_TD, both, BOUND)


def build_weights(case: Case, device: torch.device, *, config: ModelConfig) -> BuiltCase:
    """Bytes of a model's weights: float32, bf16, and V3's 8-bit codes with their scales."""
    full = GPT(config)
    low = GPT(replace(config, precision="deepseek-v3"))
    low.load_state_dict(full.state_dict())

    def check() -> None:
        tokens_BL = torch.randint(config.vocab_size, (2, min(config.context, 16)))
        with torch.no_grad():
            exact, quantized = full(tokens_BL)[0], low(tokens_BL)[0]
            require_close("8-bit model", quantized, exact, 0.3)
            quantize_weights_(low)
            require_close("model of 8-bit codes", low(tokens_BL)[0], quantized, 1e-5)

    def memory() -> dict[str, int]:
        quantize_weights_(low)
        return {FLOAT32: weight_bytes(full), CODES: weight_bytes(low), HALF: weight_bytes(full.bfloat16())}

    return BuiltCase(check, {}, {}, memory)
