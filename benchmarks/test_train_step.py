"""A training step of the MoE model against the dense model with its active parameters, in float32.

    pytest benchmarks/test_train_step.py --benchmark-enable --benchmark-only -s

By FLOPs alone, ``dense-active`` and ``moe`` would take equal times. The MoE also sorts rows, moves them to
the experts and back, and multiplies in 32 smaller pieces; and its optimizer updates four times the
parameters. Each record has the step's share of the measured matmul rate and its time over the baseline's,
both from rounds in which all take turns.
"""

import dataclasses

import pytest
import torch

from minimoe import GPT, load_corpus
from minimoe.cost import flops_per_token
from minimoe.experiments.presets import PRESETS
from minimoe.tools.timing import interleaved_seconds
from minimoe.training.trainer import Trainer

BASELINE = "dense-active"
CASES = (BASELINE, "dense-total", "moe", "moe-loop")


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


def make(case: str, preset_name: str, corpus, timed: bool) -> Trainer:
    preset = PRESETS[preset_name]
    model = preset.models()[case.removesuffix("-loop")]
    if case.endswith("-loop"):
        model = dataclasses.replace(model, dispatch="loop")
    torch.manual_seed(0)
    training = preset.training
    if preset_name == "standard" and not timed:
        training = dataclasses.replace(training, batch_size=4)
    return Trainer(GPT(model), corpus, training)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("preset", ["quick", "standard"])
@pytest.mark.usefixtures("kept_memory")
def test_train_step(benchmark, corpus, rounds, preset, case):
    benchmark.group = f"train step, {preset}, float32, {torch.get_num_threads()} threads"
    trainer, baseline = (make(name, preset, corpus, rounds > 1) for name in (case, BASELINE))
    assert abs(trainer.train_step().loss - baseline.train_step().loss) < 0.2  # the same task
    a, b = torch.randn(2, 2048, 2048)
    tasks = {"matmul": lambda: a @ b, "baseline": baseline.train_step, "case": trainer.train_step}
    seconds = interleaved_seconds(tasks, trainer.device, rounds=rounds)
    peak = 2 * 2048**3 / seconds["matmul"]
    config = trainer.config
    tokens = config.batch_size * config.accumulate * trainer.model.config.context
    rate = flops_per_token(trainer.model.config) * tokens / seconds["case"]
    figures = {
        "tokens": tokens,
        "gflops": rate / 1e9,
        "peak_gflops": peak / 1e9,
        "share_of_peak": rate / peak,
        "times_baseline": seconds["case"] / seconds["baseline"],
    }
    benchmark.extra_info.update(figures)
    print(
        f"\n{preset:9} {case:13} {seconds['case'] * 1e3:8.1f} ms  {rate / 1e9:6.1f} GFLOP/s"
        f"  {rate / peak:4.0%} of the matmul rate  {figures['times_baseline']:.2f}x {BASELINE}"
    )
    benchmark.pedantic(trainer.train_step, rounds=max(rounds // 2, 1), warmup_rounds=0)
