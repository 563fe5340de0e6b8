"""``minimoe bench``: its records and their summary, and that nothing wrong is timed."""

import dataclasses
import gc
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from minimoe.bench import (
    BuiltCase,
    Case,
    Effort,
    Plan,
    Work,
    cases,
    dispatch_crossover,
    distill_memory,
    distillation,
    layers,
    low_precision,
    measure_case,
    models,
)
from minimoe.bench.case import WrongResult
from minimoe.bench.checks import require_close
from minimoe.bench.crossover import describe_crossover, describe_crossovers
from minimoe.bench.layers import DENSE_ACTIVE, DENSE_TOTAL, LAYERS
from minimoe.bench.measure import case_records, time_case, usual_reference
from minimoe.bench.report import print_bench
from minimoe.bench.runner import MEASURED, run_cases
from minimoe.bench.suites import FULL, QUICK, shapes
from minimoe.bench.summary import geometric_mean, sentences, summarize
from minimoe.cli import main as cli
from minimoe.cli.commands.bench import Bench
from minimoe.experiments.presets import PRESETS
from minimoe.moe import MoE
from minimoe.tools import timing
from minimoe.tools.memory import saved_activation_bytes
from minimoe.tools.timing import Peaks
from minimoe.training.loop import Interrupted

RESULTS = Path(__file__).parents[2] / "docs" / "results"
CPU = torch.device("cpu")
PEAKS = Peaks({"float32": 1e10, "bfloat16": 2e10}, 1e9, 1)
SHORT = Effort(rounds=2, budget=0.0, shortest=0.0, warmup=0)
SHAPE = {"T": 12, "E": 4, "K": 2, "D": 16, "H": 8}
TINY = Plan(
    dim=16, expert_dim=8, n_experts=8, top_k=2, tokens=8, matmul=32, token_sweep=(1, 8), expert_sweep=(4, 8),
    crossover_experts=(4, 8), top_k_sweep=(1, 2), dim_sweep=(16, 32), dtypes=("float32",), batch=1,
    vocabulary=32,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections():
    """Each case collects garbage; objects from before these tests need not be traversed."""
    gc.freeze()
    yield
    gc.unfreeze()


def layer_case(group="layer, forward", **shape) -> Case:
    return Case("moe", group, LAYERS, LAYERS[:2], SHAPE | shape, layers.build_layers)


def ratio(value, low=None, high=None, noisy=False, **more):
    low, high = low or value, high or value
    return {"ratio": value, "low": low, "high": high, "drift": 0.0, "noisy": noisy, "predicted": None,
            "memory": None} | more  # fmt: skip


def row(T, active, total, E=8, group="layer, forward", task="moe", **shape):
    """A made-up record of the MoE layer."""
    against = {DENSE_ACTIVE: active, DENSE_TOTAL: total}
    against = {name: r if isinstance(r, dict) else ratio(r) for name, r in against.items()}
    shape = {"T": T, "E": E, "K": 2, "D": 16, "H": 8} | shape
    return {"suite": "moe", "group": group, "dtype": "float32", "task": task, "shape": shape,
            "against": against, "share_of_peak": 0.25}  # fmt: skip


def test_the_mean_of_ratios_is_geometric():
    """The mean of 2 and 1/2 is 1; that of 2 and 8 is 4, not 5."""
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    values = [0.3, 1.7, 2.9]
    assert geometric_mean(values) == pytest.approx(float(np.prod(values)) ** (1 / 3))
    for wrong in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="at least one ratio, and all above 0"):
            geometric_mean(wrong)


def test_the_summary_is_by_group_and_baseline():
    rows = [
        row(1, ratio(2.0, memory=0.5, predicted=1.0), 0.5),
        row(2, ratio(8.0, noisy=True, memory=2.0, predicted=4.0), 0.125),
        row(1, 3.0, 1.0, group="layer, forward+backward"),
        row(1, 1.0, 0.2, task=DENSE_ACTIVE),
    ]
    found = summarize(rows)
    assert [(r["group"], r["task"], r["against"]) for r in found] == [
        ("layer, forward", "moe", DENSE_ACTIVE),
        ("layer, forward", "moe", DENSE_TOTAL),
        ("layer, forward+backward", "moe", DENSE_ACTIVE),
        ("layer, forward+backward", "moe", DENSE_TOTAL),
    ]
    first = found[0]
    assert (first["rows"], first["noisy"], first["least"], first["largest"]) == (2, 1, 2.0, 8.0)
    assert [first[key] for key in ("mean", "memory", "predicted", "share_of_peak")] == pytest.approx(
        [4.0, 1.0, 2.0, 0.25]
    )
    assert found[1]["mean"] == pytest.approx(0.25)


def test_a_sentence_averages_all_rows_of_both_directions():
    """The geometric mean of 2, 8 and 0.5 is 2; a noisy row adds the mark."""
    rows = [
        row(1, 2.0, 0.5),
        row(2, 8.0, 0.25),
        row(1, ratio(0.5, noisy=True), 4.0, group="layer, forward+backward"),
    ]
    sentence = sentences(rows)["moe"][0]
    expected = math.exp(np.log([0.5, 0.25, 4.0]).mean())
    assert sentence == (
        "As a layer, the MoE took ~2.00 times as long as a dense network with its active parameters and "
        f"{expected:.2f} times as long as one with its total parameters (geometric means of 3 rows)."
    )


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((0.9, 0.8, 0.5), "always faster"),
        ((1.6, 1.2, 1.4), "never faster (at best 1.20, at T = 16)"),
        ((1.6, 1.2, 0.8), "faster from T = 64 on (0.80; 1.20 at T = 16)"),
        ((0.6, 0.9, 1.3), "faster up to T = 16 (0.90; 1.30 at T = 64)"),
        ((1.6, 0.7, 1.3), "faster only at T = 16 of 3 measured"),
        ((ratio(0.97, 0.9, 1.1), 0.5, 0.4), "faster from T = 16 on (0.50; 0.97 at T = 1)"),  # 1 within: even
        ((ratio(0.97, 0.9, 1.1),) * 3, "never faster (at best 0.97, at T = 1)"),
    ],
)
def test_the_crossover_sentence(ratios, expected):
    rows = [row(T, value, 1.0) for T, value in zip((1, 16, 64), ratios, strict=True)]
    assert describe_crossover(rows, DENSE_ACTIVE) == expected
    sentence = describe_crossovers([*rows[::-1], row(1, 9.0, 9.0, E=4, D=32)], "forward", DENSE_ACTIVE)
    assert sentence == f"Against dense-active, forward, T from 1 to 64: with E = 8 {expected}."
    assert describe_crossovers(rows, "forward+backward", DENSE_ACTIVE) is None


def test_records_are_complete_and_correct(monkeypatch):
    """Every record has every key; seconds, ratio and rates follow from a fake clock."""
    now, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def task(name, seconds):
        def run():
            assert "checked" in order
            now[0] += seconds

        return run

    def build(case, device):
        work = {"slow": Work(4e9, 1e9), "quick": Work(1e9, 2e9), "half": Work(2e10, 1.0, "bfloat16")}
        tasks = {"slow": task("slow", 4.0), "quick": task("quick", 3.0), "half": task("half", 2.0)}
        memory = {"slow": 100, "quick": 50, "half": 10}
        return BuiltCase(lambda: order.append("checked"), tasks, work, lambda: memory)

    case = Case("fp8", "made up", ("slow", "quick", "half"), ("slow", "half"), {"T": 6}, build)
    slow, quick, half = measure_case(case, CPU, SHORT, PEAKS)
    assert order == ["checked"]  # once: both measurements are of the same seed
    assert slow.keys() == quick.keys() == half.keys()
    assert (quick["rounds"], quick["seconds"], quick["quartiles"]) == (4, 3.0, [3.0, 3.0])
    assert (quick["ratio"], quick["low"], quick["high"], quick["noisy"]) == (0.75, 0.75, 0.75, False)
    assert quick["against"]["half"]["ratio"] == 1.5
    assert (quick["gflops_per_second"], quick["gb_per_second"]) == pytest.approx((1 / 3, 2 / 3))
    assert (quick["bound"], quick["share_of_peak"]) == ("memory", pytest.approx(2 / 3))
    assert (slow["bound"], slow["share_of_peak"]) == ("memory", 0.25)
    assert (half["bound"], half["share_of_peak"]) == ("compute", 0.5)  # of bf16's rate
    assert quick["predicted_ratio"] == 2.0
    assert (quick["memory"], quick["memory_ratio"], quick["tokens_per_second"]) == (50, 0.5, 2.0)
    assert (quick["shape"], quick["threads"], quick["device"], quick["dtype"]) == (
        {"T": 6},
        1,
        "cpu",
        "float32",
    )


@pytest.mark.parametrize("suite", ["moe", "fp8", "distill"])
def test_every_group_of_the_suites_gives_complete_records(suite, corpus):
    """One tiny case of each; whole models on the tests' text."""
    chosen = {}
    for case in cases(TINY, (suite,)):
        chosen.setdefault(case.group, case)
    keys = set()
    for case in chosen.values():
        if "step" in case.group:
            case = dataclasses.replace(case, build=partial(case.build, corpus=lambda: corpus))
        found = measure_case(case, CPU, SHORT, PEAKS, repeats=1)
        assert [record["task"] for record in found] == list(case.tasks)
        keys |= {tuple(record) for record in found}
        for record in found:
            timed = case.group != "weights"
            assert (record["seconds"] is not None) == (record["ratio"] is not None) == timed
            assert (record["seconds"] or 1) > 0
            assert not timed or record["flops"] + record["bytes"] > 0
        json.dumps(found)
    assert len(keys) == 1


@pytest.mark.parametrize("plan", [QUICK, FULL], ids=["quick", "full"])
def test_cases_are_distinct_and_sweeps_contain_the_size(plan):
    keys = [case.key for case in cases(plan)]
    assert len(set(keys)) == len(keys)
    for letter in "TEK":
        others = [s for s in shapes(plan) if all(s[k] == plan.shape[k] for k in s if k != letter)]
        assert len(others) >= 3
        assert plan.shape in others


def test_parameters_and_flops_equal_torchs_counts():
    """FLOPs of forward and backward; and the dense layers have the MoE's parameters."""
    from torch.utils.flop_counter import FlopCounterMode

    for group, times in (("layer, forward", 1), ("layer, forward+backward", 3)):
        case = layer_case(group)
        built = layers.build_layers(case, CPU)
        for name in LAYERS[:2]:
            with FlopCounterMode(display=False) as counter:
                built.tasks[name]()
            assert counter.get_total_flops() == built.work[name].flops
        T, E, K, D, H = SHAPE.values()
        active = 3 * D * H * (K + 1) + D * E
        assert built.work["moe"].flops == 2 * T * active * times
        width = layers.dense_width(H, E, K + 1)
        assert 3 * D * width == built.work[DENSE_ACTIVE].flops / (2 * T * times)
        assert 0 <= 3 * D * width - active < 3 * D * 16


@pytest.mark.parametrize("wrong", ["values", "gradient of the gate", "NaN"])
def test_a_wrong_dispatcher_is_caught_before_anything_is_timed(monkeypatch, wrong):
    from minimoe.moe import experts

    right = experts.loop_experts

    def broken(x, gate_up, down, weights_TK, ids_TK):
        if wrong == "gradient of the gate":
            return right(x, gate_up, down, weights_TK.detach() + 0 * weights_TK, ids_TK)
        return right(x, gate_up, down, weights_TK, ids_TK) * (1.01 if wrong == "values" else math.nan)

    def never(*args, **kwargs):
        raise AssertionError("a wrong result was timed")

    monkeypatch.setattr(experts, "loop_experts", broken)
    monkeypatch.setattr("minimoe.bench.measure.measure", never)
    dispatch = Case(
        "moe", "dispatch, forward", ("loop", "grouped"), ("loop",), SHAPE, layers.build_dispatchers
    )
    for case in (layer_case(), dispatch):
        with pytest.raises(WrongResult, match=r"exceeds 0\.0001 of the norm .*; nothing was timed"):
            time_case(case, CPU, SHORT)


def test_a_dense_layer_of_another_size_is_caught(monkeypatch):
    right = layers.dense_width
    monkeypatch.setattr(layers, "dense_width", lambda *sizes: right(*sizes) + 16)
    with pytest.raises(WrongResult, match=r"dense-active has 2,304 parameters, the MoE 1,216"):
        time_case(layer_case(), CPU, SHORT)


def test_a_wrong_matmul_under_a_recipe_is_caught(monkeypatch):
    right = low_precision.matmul
    monkeypatch.setattr(
        low_precision, "matmul", lambda a, b, recipe: right(a, b, recipe) * (1 + (recipe == "mxfp8"))
    )
    case = next(case for case in cases(TINY, ("fp8",)) if case.group == "matmul")
    with pytest.raises(AssertionError, match=r"mxfp8: .* exceed the probabilistic bound"):
        time_case(case, CPU, SHORT)


def test_closeness_is_relative_to_the_norm():
    big = torch.full((4,), 1e6)
    require_close("x", big + 1, big, 1e-5)
    with pytest.raises(WrongResult, match="x: error 200 exceeds 1e-05 of the norm 2e\\+06"):
        require_close("x", big + 100, big, 1e-5)


def test_bytes_kept_by_the_chunked_loss():
    """The gradients of hidden states and head; the plain loss keeps at least the student's softmax."""
    T, V, D = 64, 512, 8
    case = Case("distill", "chunked loss", ("plain", "chunked"), ("plain",), {"T": T, "V": V, "D": D},
                distillation.build_chunked_loss)  # fmt: skip
    kept = distillation.build_chunked_loss(case, CPU).memory()
    assert kept["chunked"] == 4 * (T * D + V * D)
    assert kept["plain"] >= 4 * T * V


def test_a_training_step_has_the_batch_of_its_shape():
    steps = [case for case in cases(QUICK) if case.group == "training step"]
    assert steps
    for case in steps:
        assert models.training_config(case).batch_size == case.shape["B"] == QUICK.batch


def test_bytes_kept_exclude_input_and_weights():
    """A linear layer keeps just these; a sigmoid keeps its result."""
    x = torch.randn(6, 8, requires_grad=True)
    network = nn.Sequential(nn.Linear(8, 4), nn.Sigmoid())
    assert saved_activation_bytes(network, x) == 4 * 6 * 4


def test_models_that_do_not_compute_the_same_are_caught(monkeypatch, corpus, tiny_moe, tiny_dense):
    configs = {"float32": tiny_dense, "other": dataclasses.replace(tiny_dense, hidden_dim=96)}
    build = partial(models.build_train_step, configs=configs, max_loss_gap=1e-6, corpus=lambda: corpus)
    case = Case("fp8", "training step", tuple(configs), ("float32",), {"B": 1, "T": 16}, build)
    with pytest.raises(WrongResult, match=r"the first loss of other is .*; they must be within 1e-06"):
        time_case(case, CPU, SHORT)
    case = dataclasses.replace(case, build=partial(build, configs=dict.fromkeys(configs, tiny_dense)))
    assert time_case(case, CPU, SHORT)["seconds"].keys() == configs.keys()
    monkeypatch.setattr(models, "parameters", lambda config, active=False: 7)
    with pytest.raises(WrongResult, match=r"float32 has .* parameters, not 7"):
        time_case(case, CPU, SHORT)
    monkeypatch.undo()
    configs = {DENSE_ACTIVE: configs["other"], "moe": tiny_moe}
    build = partial(build, configs=configs, max_loss_gap=9.0)
    case = dataclasses.replace(case, tasks=(DENSE_ACTIVE, "moe"), baselines=(DENSE_ACTIVE,), build=build)
    with pytest.raises(WrongResult, match=r"dense-active has .* parameters, the MoE"):
        time_case(case, CPU, SHORT)


def run(tmp_path, **flags) -> Bench:
    return Bench(suite="moe", quick=True, device="cpu", out=tmp_path / "out", **flags)


ROWS = [{"T": T, "E": 8, "K": 2, "D": 16, "H": 8} for T in (1, 8)]
CHOSEN = [case for case in cases(TINY, ("moe",)) if case.shape in ROWS]
CHOSEN += [case for case in cases(TINY, ("fp8",)) if case.group == "quantize" or case.shape.get("M") == 16]


@pytest.fixture
def known_peaks(monkeypatch):
    monkeypatch.setattr("minimoe.bench.runner.peaks", lambda device: PEAKS)
    monkeypatch.setattr(
        "minimoe.cli.commands.bench.keep_freed_memory", lambda: True
    )  # the tests go on after it


@pytest.mark.usefixtures("known_peaks")
def test_bench_from_end_to_end_resumed_and_never_overwritten(tmp_path, monkeypatch, capsys):
    seen = []
    real = time_case

    def sometimes(case, *args, **kwargs):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append((case.key, kwargs["check"]))
        return real(case, *args, **kwargs)

    monkeypatch.setattr("minimoe.bench.runner.time_case", sometimes)
    with pytest.raises(Interrupted):
        run(tmp_path).measure(CHOSEN, TINY, SHORT, train=False)
    before = (tmp_path / "out" / MEASURED).read_text()
    assert len(before.splitlines()) == 6  # the peaks, and what was measured
    with pytest.raises(ValueError, match="holds an interrupted run; add --resume"):
        run(tmp_path).measure(CHOSEN, TINY, SHORT, train=False)
    seen.append("on")
    run(tmp_path, resume=True).measure(CHOSEN, TINY, SHORT, train=False)
    assert (tmp_path / "out" / MEASURED).read_text().startswith(before)
    assert len(seen) == 2 * len(CHOSEN) + 1  # nothing twice
    checked = [key for key, check in (entry for entry in seen if entry != "on") if check]
    assert checked == [case.key for case in CHOSEN]
    for again in ({}, {"resume": True}):
        with pytest.raises(ValueError, match="holds a finished run; choose another --out, or --overwrite"):
            run(tmp_path, **again).measure(CHOSEN, TINY, SHORT, train=False)

    data = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert len(data["records"]) == sum(len(case.tasks) for case in CHOSEN)
    assert len({tuple(record) for record in data["records"]}) == 1
    assert data["peaks"] == dataclasses.asdict(PEAKS)
    for name in ("throughput", "crossover", "recipes", "dispatchers"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    shown = " ".join(capsys.readouterr().out.split())
    assert "Measured peaks: 10 GFLOP/s float32, 20 GFLOP/s bfloat16, 1.0 GB/s" in shown
    for said in (line for lines in data["sentences"].values() for line in lines):
        assert said in shown


def test_the_table_fits_a_hundred_columns(tmp_path):
    rows = [
        row(
            1, ratio(12.345, memory=123.4, predicted=1.0, noisy=True), 0.5, group="dispatch, forward+backward"
        )
    ]
    data = {"summary": summarize(rows), "sentences": {}, "training": None, "records": rows, "seconds": 1.0,
            "peaks": dataclasses.asdict(PEAKS), "version": "0", "machine": {
                "processor": "p", "device": "cpu", "threads": 2, "torch": "t", "python": "3"}}  # fmt: skip
    with (tmp_path / "out").open("w") as file:
        print_bench(data, Console(width=100, file=file))
    text = (tmp_path / "out").read_text()
    line = next(line for line in text.splitlines() if "moe / dense-active" in line)
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == [
        "moe / dense-active", "1", "~1", "~12.35", "12.35", "12.35", "1.00", "25%", "123"
    ]  # fmt: skip
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "2 threads" in text


@pytest.mark.usefixtures("known_peaks")
def test_two_cases_with_the_same_key_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 cases have the key .*; give each its own shape"):
        run_cases([layer_case(), layer_case()], CPU, SHORT, tmp_path, Console())


def test_the_user_sets_the_size(capsys):
    plan = Bench(quick=True, dim=96, n_experts=16).plan()
    assert (plan.dim, plan.n_experts, plan.top_k) == (96, 16, QUICK.top_k)
    assert cli.main(["bench", "--top-k", "40", "--out", "nowhere"]) == 1
    assert "top_k (40) must be between 1 and n_experts (32)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="must be some of the tasks"):
        Case("moe", "g", ("a",), ("a",), {}, layers.build_layers)


def test_parameters_include_the_gate():
    moe = MoE(16, 8, 4, 2)
    assert layers.n_parameters(moe) == 3 * 16 * 8 * 5 + 16 * 4


def test_records_use_both_measurements_and_drift_is_noise():
    """Two steady measurements that disagree have a narrow interval; only the drift shows it."""
    case = layer_case()
    work = {name: dataclasses.asdict(Work(1.0, 1.0)) for name in LAYERS}

    def measurement(moe, reference=1.0):
        seconds = {DENSE_ACTIVE: [1.0] * 10, DENSE_TOTAL: [2.0] * 10, "moe": [moe] * 10}
        return {"case": case.key, "threads": 1, "seconds": seconds, "reference": reference, "work": work,
                "memory": {}}  # fmt: skip

    calm = case_records(case, CPU, [measurement(2.0), measurement(2.1)], PEAKS)[2]
    assert (calm["rounds"], calm["noisy"], calm["drift"]) == (20, False, pytest.approx(0.05))
    assert case_records(case, CPU, [measurement(2.0), measurement(2.23)], PEAKS)[2]["noisy"]
    busy = [measurement(2.0), measurement(2.0, reference=1.2)]  # steady ratio, slow machine
    assert usual_reference([*busy, measurement(2.0, reference=1.1)]) == 1.1
    assert not case_records(case, CPU, busy, PEAKS)[2]["noisy"]
    found = case_records(case, CPU, busy, PEAKS, 1.0)[2]
    assert (found["slowed"], found["noisy"]) == (pytest.approx(0.2), True)
    assert all(ratio["noisy"] for ratio in found["against"].values())
    assert not case_records(case, CPU, busy, PEAKS, 1.1)[2]["noisy"]
    assert usual_reference([measurement(2.0, reference=None)]) == 0


@pytest.mark.usefixtures("known_peaks")
def test_a_full_run_trains_the_quick_comparison(tmp_path, monkeypatch, corpus, tiny_moe, capsys):
    preset = PRESETS["quick"]
    training = dataclasses.replace(preset.training, steps=4, warmup=1, eval_every=2, batch_size=2)
    training = dataclasses.replace(training, eval_sequences=2)
    small = dataclasses.replace(preset, moe=tiny_moe, training=training)
    monkeypatch.setattr("minimoe.cli.commands.bench.PRESETS", {"quick": small})
    monkeypatch.setattr("minimoe.experiments.context.load_corpus", lambda data: corpus)
    run(tmp_path).measure([layer_case()], TINY, SHORT, train=True)
    data = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [row["model"] for row in data["training"]["models"]] == list(LAYERS)
    for axis in ("tokens", "flops", "seconds"):
        assert all(0 < row[axis]["all"]["mean"] < 16 for row in data["training"]["models"])
    assert "Against dense-active the mixture" in " ".join(capsys.readouterr().out.split())


def test_the_recorded_summary_and_sentences_follow_from_the_recorded_figures():
    data = json.loads((RESULTS / "bench.json").read_text())
    assert data["summary"] == json.loads(json.dumps(summarize(data["records"])))
    assert data["sentences"] == sentences(data["records"])


def test_the_chunked_loss_took_less_than_a_quarter_of_the_memory():
    records = json.loads((RESULTS / "distill-memory.json").read_text())["found"]
    assert all(losses["chunked"]["peak_mb"] < losses["plain"]["peak_mb"] / 4 for losses in records.values())
    assert [row[3] for row in distill_memory.memory_table(records).rows] == ["0.097", "0.094"]


def test_the_dispatch_crossover_is_measured_and_written(tmp_path, monkeypatch, capsys):
    for name, value in {"TOKENS": (1, 2), "EXPERTS": ((4, 2),), "WIDTHS": ((16, 8),)}.items():
        monkeypatch.setattr(dispatch_crossover, name, value)
    monkeypatch.setattr(dispatch_crossover, "keep_freed_memory", lambda: True)
    dispatch_crossover.main(threads=(1,), out=tmp_path / "crossover.json")
    records = json.loads((tmp_path / "crossover.json").read_text())["found"]
    assert [(r["dtype"], r["backward"], r["tokens"]) for r in records] == [
        (dtype, backward, T)
        for dtype in ("float32", "bfloat16")
        for backward in (False, True)
        for T in (1, 2)
    ]
    assert all(record["grouped_over_loop"] > 0 for record in records)
    recorded = json.loads((RESULTS / "crossover-cpu.json").read_text())["found"]
    assert records[0].keys() == recorded[0].keys()
    assert capsys.readouterr().out.count("forward+backward") == 2


@pytest.mark.parametrize("kind", distill_memory.KINDS)
def test_both_distillation_losses_are_measured_and_equal(monkeypatch, kind):
    monkeypatch.setattr(distill_memory, "T", 8)
    monkeypatch.setattr(distill_memory, "V", 16)
    plain, chunked = (distill_memory.measure(loss, kind) for loss in ("plain", "chunked"))
    assert plain["loss"] == pytest.approx(chunked["loss"], rel=1e-5)
    assert plain.keys() == chunked.keys() == {"peak_mb", "seconds", "loss"}
