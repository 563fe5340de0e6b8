"""FP8 on this machine: rounding, decoding, quantization and matmul, each against a baseline.

    pytest benchmarks/test_precision.py --benchmark-enable --benchmark-only -s

One thread, float32. Each case alternates with its baseline; the figure is the baseline's time over the
case's, so above 1 is faster than the baseline. Compiled cases are torch.compile of the same function.

Expected: compiled, rounding and decoding are bound by memory bandwidth, unlike torch's cast; quantization
reads four bytes per number and writes one, so it takes about as long as a copy; a scaled matmul is a matmul
and two passes over its operands; in bf16, where the processor supports it, half a matmul.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from minimoe.experiments.presets import PRESETS
from minimoe.models.gpt import GPT
from minimoe.precision import (
    DEEPSEEK_V3,
    DEEPSEEK_V3_POW2,
    E4M3,
    MXFP8,
    TENSORWISE,
    decode,
    matmul,
    quantize,
    quantize_weights_,
    round_to,
)
from minimoe.precision.backends import multiplies_bf16_fast
from minimoe.tools.memory import weight_bytes
from minimoe.tools.timing import interleaved_seconds

MILLION = 1 << 20
CPU = torch.device("cpu")


def rounding(compiled: bool) -> dict[str, Callable[[], object]]:
    x = torch.randn(MILLION)

    def ours(x):
        return round_to(x, E4M3)

    ours = torch.compile(ours, fullgraph=True) if compiled else ours
    assert torch.equal(ours(x), x.to(torch.float8_e4m3fn).float())
    return {"cast there and back": lambda: x.to(torch.float8_e4m3fn).float(), "case": lambda: ours(x)}


def decoding(compiled: bool) -> dict[str, Callable[[], object]]:
    codes = torch.randn(MILLION).to(torch.float8_e4m3fn)

    def ours(codes):
        return decode(codes, E4M3)

    ours = torch.compile(ours, fullgraph=True) if compiled else ours
    assert torch.equal(ours(codes), codes.float())
    return {"cast": lambda: codes.float(), "case": lambda: ours(codes)}


def quantizing(block) -> dict[str, Callable[[], object]]:
    x, out = torch.randn(4096, 4096), torch.empty(4096, 4096)
    return {"copy": lambda: out.copy_(x), "case": lambda: quantize(x, E4M3, block)}


def product(recipe) -> dict[str, Callable[[], object]]:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return {"float32 matmul": lambda: a @ b, "case": lambda: matmul(a, b, recipe)}


CASES: dict[str, tuple[Callable[..., dict], object]] = {
    "round_to E4M3": (rounding, False),
    "round_to E4M3, compiled": (rounding, True),
    "decode E4M3": (decoding, False),
    "decode E4M3, compiled": (decoding, True),
    "quantize 1x128, 4096x4096": (quantizing, (1, 128)),
    "quantize 128x128, 4096x4096": (quantizing, (128, 128)),
    "quantize tensor, 4096x4096": (quantizing, None),
    "matmul deepseek-v3, 2048^3": (product, DEEPSEEK_V3),
    "matmul deepseek-v3-pow2, 2048^3": (product, DEEPSEEK_V3_POW2),
    "matmul tensorwise, 2048^3": (product, TENSORWISE),
    "matmul mxfp8, 2048^3": (product, MXFP8),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("kept_memory", "one_thread")
def test_speed(benchmark, rounds, case):
    make, argument = CASES[case]
    tasks = make(argument)
    baseline = next(iter(tasks))
    benchmark.group = f"{make.__name__}, against {baseline}, float32, 1 thread"
    seconds = interleaved_seconds(tasks, CPU, rounds=rounds)
    ratio = seconds[baseline] / seconds["case"]
    benchmark.extra_info.update(faster_than=baseline, ratio=ratio, bf16=multiplies_bf16_fast(CPU))
    milliseconds = {name: f"{value * 1e3:8.2f} ms" for name, value in seconds.items()}
    print(
        f"\n{case:36} {milliseconds['case']}  {baseline:20} {milliseconds[baseline]}  {ratio:6.2f}x as fast"
    )
    benchmark.pedantic(tasks["case"], rounds=max(rounds // 2, 1), warmup_rounds=0)


@pytest.mark.parametrize("model", ["dense-active", "moe"])
def test_bytes_of_a_quantized_model(benchmark, model):
    """The standard preset's weights: float32, bf16, and V3's codes with their scales."""
    config = PRESETS["standard"].models()[model]
    full = sum(p.nbytes for p in GPT(config).parameters())
    low = GPT(replace(config, precision="deepseek-v3"))
    quantize_weights_(low)
    codes = weight_bytes(low)
    benchmark.group = "bytes of a model"
    benchmark.extra_info.update(float32=full, bf16=full // 2, codes=codes)
    print(
        f"\n{model:14} float32 {full / 1e6:6.2f} MB  bf16 {full / 2e6:6.2f} MB  codes {codes / 1e6:6.2f} MB"
    )
    assert codes < 0.35 * full  # embedding, norms and gate stay as they are
    benchmark.pedantic(lambda: quantize_weights_(low), rounds=1)
