"""Experiments that train, in miniature: what they share, what they measure, and their records."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import mutual_info_score

from minimoe import ModelConfig, TrainConfig
from minimoe.data.corpus import Corpus
from minimoe.experiments import context as context_module
from minimoe.experiments import fp8_training, jobs, moe_jobs, specialization
from minimoe.experiments.context import RunContext
from minimoe.experiments.fp8_training import FP8_TRAINING
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.load_balance import COLUMNS, LOAD_BALANCE
from minimoe.experiments.lr_search import GRIDS, LR_SEARCH
from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE
from minimoe.experiments.presets import PRESETS
from minimoe.experiments.shared_expert import SHARED_EXPERT
from minimoe.experiments.specialization import SPECIALIZATION
from minimoe.training.trainer import Trainer

EXPERIMENTS = {
    "moe-vs-dense": MOE_VS_DENSE,
    "load-balance": LOAD_BALANCE,
    "shared-expert": SHARED_EXPERT,
    "specialization": SPECIALIZATION,
}
MOE = ModelConfig(dim=16, n_layers=2, n_heads=2, context=16, n_experts=4, top_k=2, expert_dim=16)
TRAINING = TrainConfig(steps=4, batch_size=2, warmup=1, eval_every=2, eval_sequences=2, average=0.5)
TINY = replace(PRESETS["quick"], moe=MOE, training=TRAINING)


def three_domains(name: str) -> Corpus:
    lines = ("the quick brown fox. ", "one 1 two 2 three 3. ", "def f(x): return x; ")
    parts = tuple(np.frombuffer((line * 60).encode(), dtype=np.uint8) for line in lines)
    return Corpus(("letters", "numbers", "code"), parts, parts, ("a sentence",) * 3, "a fingerprint")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Experiments measured in one context; and the names of the models that were trained."""
    torch.set_num_threads(1)
    trained = []
    train_in_turns = jobs.train_in_turns

    def counted(trainers, folders, **options):
        trained.extend(folders)
        train_in_turns(trainers, folders, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context_module, "load_corpus", three_domains)
        patch.setattr(jobs, "train_in_turns", counted)
        context = RunContext(tmp_path_factory.mktemp("shared"), "quick", preset=TINY)
        yield context, {name: e.measure(context) for name, e in EXPERIMENTS.items()}, trained


def test_each_distinct_job_runs_once(shared):
    _, _, trained = shared
    assert len(trained) == len(set(trained)) == 9 + 3 + 9  # three models, no shared expert, balancing


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_figures_have_a_value_per_seed_and_details_can_be_drawn(shared, name):
    experiment, measured = EXPERIMENTS[name], shared[1][name]
    assert all(len(values) == 3 for values in measured.values.values())
    assert set(experiment.units) <= set(measured.values)
    assert measured.ran
    assert "{" not in measured.ran
    detail = json.loads(json.dumps(measured.detail))
    experiment.draw(Figure(), detail)
    for table in experiment.tables(detail):
        assert all(len(row) == len(table.headings) for row in table.rows)


def test_a_lead_is_above_0_where_moe_needs_fewer_bits(shared):
    values = shared[1]["moe-vs-dense"].values
    for rival in ("dense-active", "dense-total"):
        assert values[f"{rival}, flops"][0] == pytest.approx(values[rival][0] - values["moe"][0])


def test_load_balance_reads_records(shared):
    context, measured, _ = shared
    runs = measured["load-balance"].detail["runs"]
    assert list(runs) == ["none", "switch", "sequence", "bias"]
    assert all(set(run) == set(COLUMNS) for run in runs.values())
    job = moe_jobs.moe_jobs(context, "switch")[1]
    steps = [step["max_violation"] for step in context.records(job, "step")]
    assert runs["switch"]["batch_max_violation"][1] == pytest.approx(statistics.fmean(steps))
    assert runs["switch"]["bits_per_byte"][1] == context.final_bits(job)
    values = measured["load-balance"].values
    assert values["mended"][0] == pytest.approx(
        max(runs[m]["max_violation"][0] for m in ("switch", "sequence", "bias")) / values["uneven"][0]
    )
    assert values["worse"][0] == runs["none"]["bits_per_byte"][0] - runs["bias"]["bits_per_byte"][0]
    table = LOAD_BALANCE.tables(measured["load-balance"].detail)[0]
    assert [row[0] for row in table.rows] == list(runs)


def test_a_shared_expert_that_is_switched_off_is_gone(shared):
    """The same by hand: its weights zero and one more routed expert."""
    context, measured, _ = shared
    values = measured["shared-expert"].values
    job = moe_jobs.moe_jobs(context)[0]
    model = context.model(job)
    training = replace(job.training, average=0.0)
    before = Trainer(model, context.corpus, training).evaluate().bits_per_byte
    assert values["with"][0] == pytest.approx(before, abs=1e-6)
    for block in model.blocks:
        torch.nn.init.zeros_(block.feed_forward.shared_experts.down_proj.weight)
        block.feed_forward.gate.top_k += 1
    after = Trainer(model, context.corpus, training).evaluate().bits_per_byte
    assert values["switched off"][0] == pytest.approx(after, abs=1e-6)
    assert values["loss"][0] == pytest.approx(after - before, abs=1e-6)
    assert values["gain"][0] == values["without"][0] - values["with"][0]  # fewer bits are better
    routed_only = next(job for job in SHARED_EXPERT.jobs(context) if job.label == "routed-only")
    assert routed_only.model.n_shared == 0
    assert routed_only.model.top_k == job.model.top_k + 1


def test_progress_is_reported_in_predicted_seconds(shared, tmp_path):
    """Also of steps that were done before."""
    context = shared[0]
    seconds = []
    another = replace(context, folder=tmp_path, on_progress=seconds.append, seeds=1)
    all_jobs = SHARED_EXPERT.jobs(another)
    another.train(all_jobs)
    assert sum(seconds) == pytest.approx(sum(job.seconds("cpu") for job in all_jobs))


def test_a_single_experiment_has_readable_folders(shared, tmp_path):
    context = replace(shared[0], folder=tmp_path, seeds=1, named_folders=True)
    context.train(MOE_VS_DENSE.jobs(context))
    folders = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("records.jsonl")}
    assert folders == {"seed-0/dense-active", "seed-0/dense-total", "seed-0/moe"}
    twice = [replace(job, label="same") for job in MOE_VS_DENSE.jobs(context)]
    with pytest.raises(ValueError, match="labels of jobs must differ"):
        context.train(twice)


def test_folder_names_follow_from_all_settings():
    job = TrainingJob(ModelConfig(), TrainConfig())
    others = [
        replace(job, training=TrainConfig(seed=1)), replace(job, model=ModelConfig(dim=64)),
        replace(job, training=TrainConfig(lr=1e-3)), replace(job, perturbation=1e-6),
    ]  # fmt: skip
    names = [each.name("text") for each in (job, *others)] + [job.name("other text")]
    assert len(set(names)) == 6
    assert replace(job, label="a") == job


def test_fp8_training(shared, tmp_path, monkeypatch):
    """Every size: what is trained, and that figures and table follow from the curves."""
    context = replace(shared[0], folder=tmp_path)
    recipes: dict[str, list[TrainingJob]] = {}
    for job in FP8_TRAINING.jobs(context):
        recipes.setdefault(job.label.removeprefix("dense-"), []).append(job)
    assert {job.model.precision for job in recipes["deepseek-v3"]} == {"deepseek-v3"}
    assert {job.training.autocast for job in recipes["bf16"]} == {"bf16"}
    assert {(j.model.precision, j.training.autocast) for j in recipes["float32"]} == {("full", "off")}
    assert [job.training.seed for job in recipes["naive"]] == [0, 1, 2, 3, 4]
    long = replace(context, size="long", seeds=1)
    assert len(FP8_TRAINING.jobs(long)) == len({job.label for job in FP8_TRAINING.jobs(long)}) == 2 * 6
    assert len(set(FP8_TRAINING.jobs(long))) == 12
    monkeypatch.setattr(fp8_training, "MOE", MOE)
    monkeypatch.setattr(fp8_training, "DENSE", replace(MOE, n_experts=0, hidden_dim=16))
    all_jobs, training = fp8_training.all_jobs, replace(TRAINING, steps=2, eval_every=1)

    def short(job: TrainingJob) -> TrainingJob:
        config = replace(training, seed=job.training.seed, autocast=job.training.autocast)
        return replace(job, training=config)

    monkeypatch.setattr(fp8_training, "all_jobs", lambda c: [short(job) for job in all_jobs(c)])
    measured = FP8_TRAINING.measure(long)
    curves = measured.detail["curves"]["moe"]
    assert measured.detail["steps"] == [1, 2]
    assert curves["float32"] != curves["perturbed"]
    assert curves["float32"][0] == pytest.approx(curves["perturbed"][0], rel=1e-4)
    assert measured.values["moe: naive"] == pytest.approx(
        [100 * (curves["naive"][0][1] / curves["float32"][0][1] - 1)]
    )
    assert measured.detail["step_ratios"]["dense"]["float32"] == [1.0]
    detail = json.loads(json.dumps(measured.detail))
    assert len(FP8_TRAINING.tables(detail)[0].rows) == 12
    FP8_TRAINING.draw(Figure(), detail)


def test_learning_rate_search(shared, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "quick", TINY)
    monkeypatch.setitem(GRIDS, "quick", replace(GRIDS["quick"], rates=(1e-3, 2e-3), steps=2))
    context = replace(shared[0], folder=tmp_path, named_folders=True)
    measured = LR_SEARCH.measure(context)
    runs = measured.detail["runs"]
    assert len(runs) == len(measured.values) == 2 * 2 * 3
    table = LR_SEARCH.tables(measured.detail)[0]
    assert table.headings == ["", "lr 0.001", "lr 0.002"]
    assert [row[0] for row in table.rows][:2] == ["dense-active, constant", "dense-total, constant"]
    best = min(runs[0]["bits_per_byte"], runs[1]["bits_per_byte"])
    assert f"**{best:.3f}**" in table.rows[0]
    averages = {job.training.schedule: job.training.average for job in LR_SEARCH.jobs(context)}
    assert averages == {"constant": TINY.training.average, "cosine": 0.0}


def test_mutual_information_is_scikit_learns():
    generator = np.random.default_rng(0)
    rows, columns = generator.integers(4, size=500), generator.integers(8, size=500)
    columns[rows == 1] = 3  # so that there is some
    table = np.zeros((1, 4, 8))
    np.add.at(table[0], (rows, columns), 1)
    expected = mutual_info_score(rows, columns) / math.log(2)
    assert specialization.mutual_information(table) == pytest.approx(expected)
    assert specialization.mutual_information(np.ones((2, 4, 8))) == pytest.approx(0)


def test_specialization_is_told_from_chance():
    """Experts chosen by domain, and experts that are not; whole sequences are permuted."""
    domains_S, E = np.repeat(np.arange(4), 16), 8
    by_domain = np.broadcast_to(domains_S[:, None], (1, 64, 20))
    result = specialization.specialization(domains_S, specialization.count_loads(by_domain, E), 100)
    assert (result.information, result.favorite) == (pytest.approx(2.0), 1.0)
    assert result.chance < 0.5
    # Each sequence has one expert, whatever its domain: far from even, and yet chance.
    by_sequence = np.broadcast_to(np.random.default_rng(1).integers(E, size=64)[:, None], (1, 64, 20))
    result = specialization.specialization(domains_S, specialization.count_loads(by_sequence, E), 200)
    assert 0.05 < result.information < result.chance
    assert result.favorite < 0.6
