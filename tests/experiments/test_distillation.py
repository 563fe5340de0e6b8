"""The experiment: its arithmetic, against fabricated runs, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from minimoe.cli import main as cli
from minimoe.cli.commands.distill import choose
from minimoe.cost import flops_per_token
from minimoe.distill.config import DistillConfig
from minimoe.distill.evaluation import StudentMetrics, student_metrics
from minimoe.experiments.distillation.experiment import ALONE, LONGER, SETUPS, Method
from minimoe.experiments.distillation.results import Curve, DistillationResults, flops
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.training.config import TrainConfig
from minimoe.training.trainer import Trainer

SETUP = SETUPS["quick"]
METHODS = SETUP.methods()


def fabricated(
    reached: dict[str, list[float]], teacher: float = 2.0, longer: float = 2.3
) -> DistillationResults:
    """An outcome in which each method reached these bits; the student alone went on to ``longer``."""
    methods = {name: METHODS[name] for name in [*reached, LONGER]}
    steps = np.array([200.0, 400.0])
    curves, seen = {}, {}
    for name, bits in reached.items():
        spent = flops(methods[name], SETUP, SETUP.teacher, steps)
        curves[name] = [Curve(steps, spent, np.array([3.0, value])) for value in bits]
        seen[name] = [StudentMetrics({"all": v}, {"all": teacher}, {"all": 0.5}, {"all": 0.1}) for v in bits]
    spent = flops(methods[LONGER], SETUP, SETUP.teacher, 4 * steps)
    n = len(reached[ALONE])
    curves[LONGER] = [Curve(4 * steps, spent, np.array([longer, longer]))] * n
    seen[LONGER] = [StudentMetrics({"all": longer}, {"all": teacher}, {"all": 0.5}, {"all": 0.1})] * n
    return DistillationResults(SETUP, methods, curves, seen)


def test_share_of_the_gap():
    outcome = fabricated({ALONE: [2.5, 2.6], "logits": [2.25, 2.6]})
    assert outcome.closed("logits") == pytest.approx([0.5, 0.0])
    assert outcome.closed(ALONE) == [0, 0]
    rows = {row["method"]: row for row in outcome.rows()}
    assert rows["logits"]["gap_closed"]["mean"] == pytest.approx(0.25)
    assert rows["logits"]["gap_closed"]["deviation"] == pytest.approx(0.25 * 2**0.5)
    assert rows["logits"]["lead"]["mean"] == pytest.approx(0.125)


def test_everybody_is_read_at_the_best_evaluation():
    """Who learns few bytes by heart gets worse with time, and may stop early like anyone else."""
    outcome = fabricated({ALONE: [2.5], "logits": [2.4]})
    outcome.curves["logits"][0].bits[:] = [2.3, 2.9]
    outcome.curves[LONGER][0].bits[:] = [2.2, 2.6]
    assert outcome.reached("logits") == [2.3]
    assert outcome.rows()[1]["best"]["mean"] == 2.3
    assert outcome.closed("logits") == pytest.approx([0.4])
    assert outcome.alone_with_as_much("logits") == [2.2]


@pytest.mark.parametrize(
    ("reached", "longer", "words"),
    [
        ([2.2, 2.21], 2.4, ["won (by 0.295", "won (by 0.195", "closed 59%"]),
        ([2.7, 2.71], 2.4, ["LOST (by 0.205", "LOST (by 0.305", "closed -41%"]),
        ([2.5, 2.5], 2.5, ["tied (by 0.000", "tied (by 0.000", "closed 0%"]),
        ([2.4, 2.41], 2.3, ["won (by 0.095", "LOST (by 0.105"]),
    ],
)
def test_the_verdict_follows_the_figures(reached, longer, words):
    verdict = fabricated({ALONE: [2.5, 2.5], "logits": reached}, longer=longer).verdict()
    for word in words:
        assert word in verdict


def test_equal_arithmetic_counts_the_teacher():
    """By hand: three times forward for the student, once for the teacher that looks, once for each byte that
    somebody writes."""
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
    outcome = fabricated({ALONE: [2.5], "logits": [2.4]})
    outcome.curves[LONGER][0].bits[:] = [2.5, 2.1]  # at 800 and 1600 steps alone
    steps = expected["logits"] / expected[ALONE] * 400
    assert 800 < steps < 1600
    assert outcome.alone_with_as_much("logits") == pytest.approx([2.5 - 0.4 * (steps - 800) / 800])
    outcome.curves["logits"][0].flops[:] *= (
        10  # more than the student alone ever had: no comparison is made up
    )
    assert outcome.alone_with_as_much("logits") is None
    assert outcome.rows()[1]["lead_at_equal_compute"] is None


def test_the_methods_are_those_of_the_issue():
    assert METHODS["logits"].lesson.alpha == 0
    assert METHODS["logits and labels"].lesson.alpha == 0.5
    assert [METHODS[f"top-{k}"].lesson.k for k in (1, 4, 16, 64)] == [1, 4, 16, 64]
    tokens = [m.lesson.teacher_tokens for m in METHODS.values() if m.lesson.data_source == "teacher"]
    assert tokens == sorted(tokens)
    assert len(tokens) == 4
    assert {method.teacher for method in METHODS.values()} == {"dense", "mixture", "8 bits"}
    from minimoe.cost import parameters

    assert 3 * parameters(SETUP.student) < parameters(SETUP.teacher)
    assert 3 * parameters(SETUP.student) < parameters(SETUP.mixture)


def test_likeness(tiny_dense, corpus):
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


def call(capsys, *arguments):
    status = cli.main(["distill", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


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
def distilled(tmp_path_factory):
    out = tmp_path_factory.mktemp("distill") / "out"
    assert cli.main(["distill", *SHORT, "--out", str(out)]) == 0
    return out


def test_the_command_leaves_table_figure_and_data(distilled, capsys):
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
    # all students begin from the same weights: after one step of labels alone the two lone ones are equal
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


def test_a_finished_experiment_is_not_overwritten_and_a_stopped_one_goes_on(distilled, capsys, tmp_path):
    status, _, error = call(capsys, *SHORT, "--out", distilled)
    assert status == 1
    assert "finished run" in error or "setup" in error
    out = tmp_path / "out"
    methods = ["--methods", "logits,on-policy,text 4k", "--data-fraction", "0.5"]
    assert call(capsys, *SHORT, *methods, "--out", out)[0] == 0
    whole = json.loads((out / "distillation.json").read_text())
    # students have half of the text, their teacher all of it
    data = [head(out / "seed-0" / name)["data"] for name in ("teacher/dense", "student/logits")]
    assert data[0] == whole["data"] != data[1]
    # as if it had been killed in the students' turns: unfinished, and one student has not begun
    mark = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(mark | {"finished": False}))
    (out / "distillation.json").unlink()
    import shutil

    shutil.rmtree(out / "seed-0" / "student" / "on-policy")
    assert call(capsys, *SHORT, *methods, "--out", out, "--resume")[0] == 0
    again = json.loads((out / "distillation.json").read_text())
    assert again["curves"] == whole["curves"]
    assert again["methods"] == whole["methods"]
    status, _, error = call(capsys, *SHORT, *methods, "--temperature", "2", "--out", out, "--resume")
    assert status == 1


def test_a_teacher_of_ones_own(capsys, tmp_path):
    out = tmp_path / "teacher"
    arguments = [
        "train",
        "--train.steps",
        "2",
        "--model.dim",
        "32",
        "--model.n-layers",
        "1",
        "--out",
        str(out),
    ]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    again = tmp_path / "out"
    status, text, _ = call(capsys, *SHORT, "--teacher", out, "--methods", "logits", "--out", again)
    assert status == 0, text
    data = json.loads((again / "distillation.json").read_text())
    assert [row["model"] for row in data["models"]] == ["student", "dense"]
    assert [row["training"] for row in data["models"]] == [1.0, None]  # who knows how long it was trained
    assert not (again / "seed-0" / "teacher").exists()
    arguments += ["--model.context", "16", "--overwrite"]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    status, _, error = call(capsys, *SHORT, "--teacher", out, "--out", tmp_path / "other")
    assert status == 1
    assert "context 32 and its teacher 16" in error
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds (0)"),
        (["--baseline-factor", "0"], "--baseline-factor (0)"),
        (["--temperature", "0"], "temperature (0.0) must be above 0"),
        (["--data-fraction", "2"], "share (2.0)"),
        (["--data-fraction", "0.0001"], "a sequence needs context + 1 (33)"),
        (["--teacher-tokens", "0"], "teacher_tokens (0) must be at least 1"),
        (["--methods", "magic"], "there is no 'magic'; choose among alone, "),
        (["--teacher", "nowhere"], "holds no checkpoint"),
        (["--threads", "0"], "--threads (0) must be at least 1"),
    ],
)
def test_mistakes_end_before_any_work(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = call(capsys, *arguments)
    assert status == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_chosen_methods_keep_their_order_and_alone():
    assert list(choose(SETUP, "top-4,logits", mixture=True)) == [ALONE, "logits", "top-4"]
    assert "mixture's logits" not in choose(SETUP, "all", mixture=False)
    assert isinstance(METHODS[ALONE], Method)
    assert METHODS[ALONE].lesson == DistillConfig(signal="labels")
    torch.manual_seed(0)
