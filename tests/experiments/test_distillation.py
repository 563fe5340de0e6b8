"""The distillation experiment: its arithmetic, on fabricated curves, and the command."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from minimoe.cli import main as cli
from minimoe.cost import flops_per_token, parameters
from minimoe.distill.config import DistillConfig
from minimoe.distill.evaluation import StudentMetrics, student_metrics
from minimoe.experiments import context as context_module
from minimoe.experiments import jobs
from minimoe.experiments.context import RunContext
from minimoe.experiments.curves import Curve
from minimoe.experiments.distillation import student_quality
from minimoe.experiments.distillation.lr_search import DISTILLATION_LR_SEARCH, FRACTIONS, RATES
from minimoe.experiments.distillation.report import draw, tables
from minimoe.experiments.distillation.results import DistillationResults, flops, verdict
from minimoe.experiments.distillation.setup import ALONE, LONGER, SETUPS, Method, choose_methods
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.training.config import TrainConfig
from minimoe.training.trainer import Trainer

RECORDS = Path(__file__).parents[2] / "docs" / "results"
SETUP = SETUPS["quick"]
METHODS = SETUP.methods()


def curve(steps, spent, bits) -> Curve:
    return Curve({"steps": steps, "flops": spent}, {"all": np.array(bits)}, None, 1.0)


def fabricated(
    reached: dict[str, list[float]], teacher: float = 2.0, longer: float = 2.3
) -> DistillationResults:
    """Results in which each method reached these bits, and the student that trained longer ``longer``."""
    methods = {name: METHODS[name] for name in [*reached, LONGER]}
    steps = np.array([200.0, 400.0])
    curves, seen = {}, {}
    for name, bits in reached.items():
        spent = flops(methods[name], SETUP, SETUP.teacher, steps)
        curves[name] = [curve(steps, spent, [3.0, value]) for value in bits]
        seen[name] = [StudentMetrics({"all": v}, {"all": teacher}, {"all": 0.5}, {"all": 0.1}) for v in bits]
    spent = flops(methods[LONGER], SETUP, SETUP.teacher, 4 * steps)
    curves[LONGER] = [curve(4 * steps, spent, [longer, longer]) for _ in reached[ALONE]]
    seen[LONGER] = [replace(metrics, bits={"all": longer}) for metrics in seen[ALONE]]
    return DistillationResults(methods, curves, seen)


def test_share_of_the_gap():
    results = fabricated({ALONE: [2.5, 2.6], "logits": [2.25, 2.6]})
    assert results.gap_closed("logits") == pytest.approx([0.5, 0.0])
    assert results.gap_closed(ALONE) == [0, 0]
    rows = {row["method"]: row for row in results.rows()}
    assert rows["logits"]["gap_closed"]["mean"] == pytest.approx(0.25)
    assert rows["logits"]["gap_closed"]["deviation"] == pytest.approx(0.25 * 2**0.5)
    assert rows["logits"]["lead"]["mean"] == pytest.approx(0.125)


def test_students_are_read_at_their_best_evaluation():
    """With little text a student overfits, and is stopped early."""
    results = fabricated({ALONE: [2.5], "logits": [2.4]})
    results.curves["logits"][0].bits_per_byte["all"][:] = [2.3, 2.9]
    results.curves[LONGER][0].bits_per_byte["all"][:] = [2.2, 2.6]
    assert results.reached("logits") == [2.3]
    assert results.rows()[1]["best"]["mean"] == 2.3
    assert results.gap_closed("logits") == pytest.approx([0.4])
    assert results.reached_alone_at_equal_flops("logits") == [2.2]


@pytest.mark.parametrize(
    ("reached", "longer", "words"),
    [
        ([2.2, 2.21], 2.4, ["won at equal tokens (by 0.295", "won at equal FLOPs (by 0.195", "closed 59%"]),
        (
            [2.7, 2.71],
            2.4,
            ["LOST at equal tokens (by 0.205", "LOST at equal FLOPs (by 0.305", "closed -41%"],
        ),
        ([2.5, 2.5], 2.5, ["tied at equal tokens (by 0.000", "tied at equal FLOPs (by 0.000", "closed 0%"]),
        ([2.4, 2.41], 2.3, ["won at equal tokens (by 0.095", "LOST at equal FLOPs (by 0.105"]),
    ],
)
def test_the_verdict_follows_the_figures(reached, longer, words):
    text = fabricated({ALONE: [2.5, 2.5], "logits": reached}, longer=longer).as_dict()["verdict"]
    for word in words:
        assert word in text


def record(name):
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "data_fraction"), [("quick", 1.0), ("scarce", 0.05)])
def test_recorded_runs_are_of_todays_setup_and_their_verdicts_follow_the_figures(name, data_fraction):
    data = record(f"distill-{name}")
    assert data["verdict"] == verdict(data)
    assert (data["seeds"], data["data_fraction"]) == (3, data_fraction)
    assert data["steps"] == SETUP.training.steps
    assert {row["method"]: row["config"] for row in data["methods"]} == {
        name: asdict(method.distill_config) for name, method in METHODS.items()
    }
    for row, config in zip(data["models"], (SETUP.student, SETUP.teacher, SETUP.mixture), strict=False):
        assert row["parameters"] == parameters(config)
    draw(Figure(), data)
    for table in tables(data):
        assert all(len(row) == len(table.headings) for row in table.rows)


def test_the_students_learning_rate_follows_its_search():
    runs = record("search-distill")["detail"]["runs"]
    assert len(runs) == len(RATES) * len(FRACTIONS) * 2
    for schedule in {run["schedule"] for run in runs}:
        alone = [run for run in runs if (run["model"], run["schedule"]) == (ALONE, schedule)]
        assert min(alone, key=lambda run: run["bits_per_byte"])["lr"] == SETUP.training.lr
    (table,) = DISTILLATION_LR_SEARCH.tables(record("search-distill")["detail"])
    assert len(table.rows) == 4


def test_equal_flops_count_the_teacher():
    """By hand: three forward passes for the student, one for the teacher, one per generated byte."""
    student = flops_per_token(SETUP.student, training=False)
    teacher = flops_per_token(SETUP.teacher, training=False)
    tokens = 400 * 16 * 128
    expected = {
        ALONE: tokens * 3 * student,
        "logits": tokens * (3 * student + teacher),
        "top-4": tokens * (3 * student + teacher),
        "on-policy": tokens * (3 * student + teacher + 0.5 * 0.5 * student),
        "text 300k": tokens * 3 * student + 300_000 * 128 / 113 * teacher,
    }
    for name, operations in expected.items():
        assert flops(METHODS[name], SETUP, SETUP.teacher, np.array([400.0]))[0] == pytest.approx(operations)
    results = fabricated({ALONE: [2.5], "logits": [2.4]})
    results.curves[LONGER][0].bits_per_byte["all"][:] = [2.5, 2.1]  # at 800 and 1600 steps alone
    steps = expected["logits"] / expected[ALONE] * 400
    assert 800 < steps < 1600
    assert results.reached_alone_at_equal_flops("logits") == pytest.approx([2.5 - 0.4 * (steps - 800) / 800])
    results.curves["logits"][0].spent["flops"][:] *= 10  # more than the student alone ever spent
    assert results.reached_alone_at_equal_flops("logits") is None
    assert results.rows()[1]["lead_at_equal_compute"] is None


def test_the_methods_of_the_setup():
    assert METHODS["logits"].distill_config.alpha == 0
    assert METHODS["logits and labels"].distill_config.alpha == 0.5
    assert [METHODS[f"top-{k}"].distill_config.k for k in (1, 4, 16, 64)] == [1, 4, 16, 64]
    tokens = [
        m.distill_config.teacher_tokens for m in METHODS.values() if m.distill_config.data_source == "teacher"
    ]
    assert tokens == sorted(tokens)
    assert len(tokens) == 4
    assert {method.teacher for method in METHODS.values()} == {"dense", "mixture", "8 bits"}
    assert 3 * parameters(SETUP.student) < parameters(SETUP.teacher)
    assert 3 * parameters(SETUP.student) < parameters(SETUP.mixture)


def test_student_metrics(tiny_dense, corpus):
    config = TrainConfig(eval_sequences=4, batch_size=3)
    student, teacher = GPT(tiny_dense), GPT(replace(tiny_dense, dim=32))
    found = student_metrics(student, teacher, corpus, config)
    agree, apart = [], []
    for batch in corpus.validation_batches(16, 4, 4):
        p, q = (model(batch.tokens_BL)[0].double().softmax(-1) for model in (teacher, student))
        agree.append((p.argmax(-1) == q.argmax(-1)).double().mean().item())
        apart.append((p * (p / q).log()).sum(-1).mean().item())
    assert list(found.agreement.values()) == pytest.approx([np.mean(agree), *agree])
    assert list(found.divergence.values()) == pytest.approx([np.mean(apart), *apart], rel=1e-4)
    evaluation = Trainer(student, corpus, config).evaluate()
    assert found.bits == pytest.approx({"all": evaluation.bits_per_byte} | evaluation.domains)
    same = student_metrics(teacher, teacher, corpus, config)
    assert same.agreement["all"] == 1
    assert same.divergence["all"] == pytest.approx(0, abs=1e-6)
    assert same.bits == same.teacher_bits


# ---- the command

SHORT = ["--steps", "4", "--baseline-factor", "2", "--device", "cpu", "--teacher-tokens", "4000"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of text, which is faster to read than the default corpus."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"Document {i}: " + " ".join(str(j * j + i) for j in range(500)))
    return folder


def distill(text, *arguments):
    return cli.main(["distill", "--data", str(text), *map(str, arguments)])


@pytest.fixture(autouse=True, scope="module")
def tiny_setup():
    """The command's preset, in small."""
    small = {"context": 32, "n_heads": 2, "n_layers": 1}
    training = replace(SETUP.training, eval_sequences=2, batch_size=4, eval_every=2)
    setup = replace(
        SETUP,
        teacher=ModelConfig(dim=48, hidden_dim=64, **small),
        mixture=ModelConfig(dim=32, n_experts=4, top_k=2, expert_dim=32, **small),
        student=ModelConfig(dim=16, hidden_dim=32, **small),
        training=training,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETUPS, "quick", setup)
        yield


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, text):
    out = tmp_path_factory.mktemp("distill") / "out"
    assert distill(text, *SHORT, "--out", out) == 0
    return out


def test_the_command_leaves_table_figure_and_data(distilled):
    data = json.loads((distilled / "distillation.json").read_text())
    names = [row["method"] for row in data["methods"]]
    assert names[:3] == [ALONE, LONGER, "logits"]
    assert len(names) == len(set(names)) == 16
    assert [row["model"] for row in data["models"]] == ["student", "dense", "mixture", "8 bits"]
    _, big, mixture, coded = data["models"]
    assert coded["parameters"] == big["parameters"]
    assert coded["megabytes"] < 0.6 * big["megabytes"]  # the embedding stays
    assert mixture["active"] < mixture["parameters"]
    assert all(row["tokens_per_second"] > 0 for row in data["models"])
    assert (distilled / "distillation.png").stat().st_size > 10_000
    assert set(data["samples"]) >= {"prompt", "teacher, dense", ALONE, "logits"}
    # all students have the same initial weights: the two without a teacher are equal after the same steps
    first, longer = (data["curves"][name][0]["bits"] for name in (ALONE, LONGER))
    assert first[0] == longer[0]


def head(folder):
    """What a run was made with: the first record."""
    return json.loads((folder / "records.jsonl").read_text().splitlines()[0])


def test_every_run_is_trained_as_the_setup_says(distilled):
    students, teachers = distilled / "seed-0" / "student", distilled / "seed-0" / "teacher"
    assert head(students / "alone")["training"]["steps"] == 4
    assert head(students / "alone-for-longer")["training"]["steps"] == 8
    assert head(students / "logits")["training"]["lr"] == SETUP.training.lr
    for name in ("dense", "mixture"):
        assert head(teachers / name)["training"]["lr"] == SETUP.teacher_lr != SETUP.training.lr


def test_a_finished_experiment_is_not_overwritten(distilled, text, capsys):
    assert distill(text, *SHORT, "--out", distilled) == 1
    assert "finished run" in capsys.readouterr().err


@pytest.mark.resume
def test_a_stopped_experiment_resumes_to_the_same_results(text, capsys, tmp_path):
    out = tmp_path / "out"
    methods = ["--methods", "logits,on-policy,text 4k", "--data-fraction", "0.5"]
    assert distill(text, *SHORT, *methods, "--out", out) == 0
    whole = json.loads((out / "distillation.json").read_text())
    # students have half of the text, their teacher all of it
    data = [head(out / "seed-0" / name)["data"] for name in ("teacher/dense", "student/logits")]
    assert data[0] == whole["data"] != data[1]
    # as if killed while the students trained: unfinished, and one student has not begun
    mark = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(mark | {"finished": False}))
    (out / "distillation.json").unlink()
    shutil.rmtree(out / "seed-0" / "student" / "on-policy")
    assert distill(text, *SHORT, *methods, "--out", out, "--resume") == 0
    again = json.loads((out / "distillation.json").read_text())
    assert again["curves"] == whole["curves"]
    assert again["methods"] == whole["methods"]
    capsys.readouterr()
    assert distill(text, *SHORT, *methods, "--temperature", "2", "--out", out, "--resume") == 1
    assert "finished run" in capsys.readouterr().err


def test_a_given_teacher(text, capsys, tmp_path):
    out = tmp_path / "teacher"
    arguments = ["train", "--train.steps", "2", "--train.eval-sequences", "2", "--model.dim", "32"]
    arguments += ["--model.n-layers", "1", "--device", "cpu", "--data", str(text), "--out", str(out)]
    assert cli.main(arguments) == 0
    again = tmp_path / "out"
    assert distill(text, *SHORT, "--teacher", out, "--methods", "logits", "--out", again) == 0
    data = json.loads((again / "distillation.json").read_text())
    assert [row["model"] for row in data["models"]] == ["student", "dense"]
    assert [row["training"] for row in data["models"]] == [1.0, None]  # its training is unknown
    assert not (again / "seed-0" / "teacher").exists()
    assert cli.main([*arguments, "--model.context", "16", "--overwrite"]) == 0
    capsys.readouterr()
    assert distill(text, *SHORT, "--teacher", out, "--out", tmp_path / "other") == 1
    assert "context 32 and its teacher 16" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds (0)"),
        (["--baseline-factor", "0"], "--baseline-factor (0)"),
        (["--temperature", "0"], "temperature (0.0) must be above 0"),
        (["--data-fraction", "2"], "data_fraction (2.0) must be above 0"),
        (["--data-fraction", "0.0001"], "a sequence needs context + 1 (33)"),
        (["--teacher-tokens", "0"], "teacher_tokens (0) must be at least 1"),
        (["--methods", "magic"], "there is no 'magic'; choose among alone, "),
        (["--teacher", "nowhere"], "holds no checkpoint"),
        (["--threads", "0"], "--threads (0) must be at least 1"),
    ],
)
def test_mistakes_end_before_any_work(text, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert distill(text, *arguments) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- the experiments of the claims


def test_claims_share_teachers_text_and_students(corpus, tmp_path, monkeypatch):
    trained, steps = [], []
    train_in_turns = jobs.train_in_turns

    def counted(trainers, folders, **options):
        trained.extend(folders)
        train_in_turns(trainers, folders, **options)

    monkeypatch.setattr(jobs, "train_in_turns", counted)
    monkeypatch.setattr(context_module, "load_corpus", lambda data: corpus)
    monkeypatch.setattr(student_quality, "SCARCE", {"quick": 0.5})
    small = {"context": 16, "n_heads": 2, "n_layers": 1}
    setup = replace(
        SETUP,
        teacher=ModelConfig(dim=24, hidden_dim=32, **small),
        student=ModelConfig(dim=16, hidden_dim=16, **small),
        training=TrainConfig(steps=4, batch_size=2, warmup=1, eval_every=2, eval_sequences=2, average=0.5),
        distill_config=DistillConfig(prompt=4),
        teacher_tokens=900,
    )
    monkeypatch.setattr(
        student_quality, "claim_setup", lambda context, fraction: replace(setup, data_fraction=fraction)
    )
    seconds = []
    context = RunContext(tmp_path, "quick", on_progress=seconds.append)
    assert len(student_quality.STUDENT_QUALITY.jobs(context)) == 2 * 3 + 3 + 3 * (3 + 6)
    quality_jobs, text_jobs = (
        set(e.jobs(context)) for e in (student_quality.STUDENT_QUALITY, student_quality.TEXT_ONLY_COPY)
    )
    assert len(quality_jobs) == 3 + 3 + 3 * (3 + 6)  # both fractions have the same teachers
    assert text_jobs < quality_jobs
    predicted = sum(job.seconds("cpu") for job in quality_jobs)

    quality = student_quality.STUDENT_QUALITY.measure(context)
    assert len(trained) == len(set(trained)) == 3 + 3 * (3 + 6)
    assert sum(seconds) == pytest.approx(predicted)
    assert {"closed, ample", "closed, scarce", "size", "speed"} <= quality.values.keys()
    assert len(quality.values["closed, scarce"]) == 3
    teachers = [quality.detail["bars"][name]["teacher"] for name in ("ample", "scarce")]
    assert teachers[0] == teachers[1]
    alone, logits, teacher = (
        quality.values[f"bits per byte, {name}, scarce"][0] for name in ("alone", "logits", "teacher")
    )
    assert quality.values["closed, scarce"][0] == pytest.approx(100 * (alone - logits) / (alone - teacher))

    monkeypatch.setattr(Trainer, "train_step", lambda trainer: steps.append(trainer))
    text_only = student_quality.TEXT_ONLY_COPY.measure(context)
    assert len(text_only.detail["amounts"]) == 3
    assert not steps  # everything was trained for the other claim
    text, logits = (text_only.values[f"closed by {name}"][0] for name in ("text 900", "logits"))
    assert text_only.values["share"][0] == pytest.approx(100 * text / logits)
    student_quality.STUDENT_QUALITY.draw(Figure(), quality.detail)
    student_quality.TEXT_ONLY_COPY.draw(Figure(), text_only.detail)


def test_chosen_methods_keep_their_order_and_alone():
    assert list(choose_methods(SETUP, "top-4,logits")) == [ALONE, "logits", "top-4"]
    assert "mixture's logits" not in choose_methods(SETUP, "all", mixture=False)
    assert isinstance(METHODS[ALONE], Method)
    assert METHODS[ALONE].distill_config == DistillConfig(signal="labels")
