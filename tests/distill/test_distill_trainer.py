"""Distillation training: students, their teachers, and the text that either generates."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimoe.distill import distill
from minimoe.distill.config import DistillConfig
from minimoe.distill.evaluation import student_metrics
from minimoe.distill.logit_cache import CachedTopK, write_cache
from minimoe.distill.teacher_text import IGNORED, TeacherText, draw_prompts, generate_rows, generate_text
from minimoe.distill.teachers import LogitTeacher, TopKTeacher
from minimoe.distill.topk_loss import TopK
from minimoe.distill.trainer import DistillationTrainer, as_teacher
from minimoe.experiments.distillation.jobs import in_8_bits
from minimoe.models.generation import generate
from minimoe.models.gpt import GPT
from minimoe.training import checkpoint
from minimoe.training.checkpoint import CheckpointError
from minimoe.training.config import TrainConfig
from minimoe.training.loop import Interrupted
from minimoe.training.trainer import Trainer

CONFIG = TrainConfig(
    steps=12, batch_size=2, warmup=2, eval_every=6, eval_sequences=2, checkpoint_every=5, average=0.2
)
TEXT = DistillConfig(signal="labels", data_source="teacher", prompt=4, teacher_tokens=200)
METHODS = {
    "logits": DistillConfig(prompt=4),
    "logits and labels": DistillConfig(alpha=0.5, temperature=2.0, kind="jsd", prompt=4),
    "top-k": DistillConfig(signal="top-k", k=5, prompt=4),
    "text": TEXT,
    "on-policy": DistillConfig(data_source="student", prompt=4, generation_batches=3, on_policy_start=0.25),
}
ALL_OWN_TEXT = replace(METHODS["on-policy"], on_policy_fraction=1.0, on_policy_start=0.0)


@pytest.fixture
def teacher(tiny_dense) -> GPT:
    torch.manual_seed(7)
    return GPT(replace(tiny_dense, dim=32, hidden_dim=48))


def make(model_config, corpus, distill_config, teacher, config=CONFIG):
    text = None
    if distill_config.data_source == "teacher":
        text = generate_text(teacher, corpus, model_config.context, distill_config, 0)
    torch.manual_seed(config.seed)
    return DistillationTrainer(
        GPT(model_config), corpus, config, distill_config, as_teacher(teacher, distill_config), text
    )


def test_labels_on_the_corpus_are_ordinary_training(tiny, corpus):
    torch.manual_seed(0)
    plain = Trainer(GPT(tiny), corpus, CONFIG)
    torch.manual_seed(0)
    alone = DistillationTrainer(GPT(tiny), corpus, CONFIG, DistillConfig(signal="labels"))
    for _ in range(4):
        assert plain.train_step().loss == alone.train_step().loss
    for mine, theirs in zip(plain.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_objective_matches_its_formula(tiny_dense, corpus, teacher):
    """α · CE + (1 - α) · T² · KL over all tokens of the batch, by hand in float64."""
    distill_config = DistillConfig(alpha=0.3, temperature=2.0)
    student = make(tiny_dense, corpus, distill_config, teacher)
    batch = student.batch(0)
    logits_BLV, _ = student.model(batch.tokens_BL)
    loss = torch.nn.functional.cross_entropy(logits_BLV.flatten(0, 1), batch.targets_BL.flatten())

    def probabilities(logits, temperature):
        z = logits.detach().double().numpy() / temperature
        e = np.exp(z - z.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = probabilities(teacher(batch.tokens_BL)[0], 2.0), probabilities(logits_BLV, 2.0)
    kl = (p * np.log(p / q)).sum(-1).mean()
    hard = -np.log(
        np.take_along_axis(probabilities(logits_BLV, 1.0), batch.targets_BL.numpy()[..., None], -1)
    )
    expected = 0.3 * hard.mean() + 0.7 * 4 * kl
    assert student.objective(logits_BLV, batch, 0, loss).item() == pytest.approx(expected, rel=1e-5)


def test_a_student_equal_to_its_teacher_has_no_gradient(tiny_dense, corpus):
    torch.manual_seed(0)
    model = GPT(tiny_dense)
    for name in ("logits", "top-k", "on-policy"):
        student = make(tiny_dense, corpus, METHODS[name], model)
        student.model.load_state_dict(model.state_dict())
        assert student.train_step().grad_norm < 1e-5, name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_the_student_and_not_the_teacher(tiny, corpus, teacher, name):
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = make(tiny, corpus, METHODS[name], teacher, replace(CONFIG, accumulate=2))
    losses = [student.train_step().loss for _ in range(8)]
    assert np.isfinite(losses).all()
    start = GPT(tiny)
    moved = [
        (a - b).norm().item() for a, b in zip(student.model.parameters(), start.parameters(), strict=True)
    ]
    assert min(moved) > 0
    student.model.train()
    assert not teacher.training or name == "text"  # teachers predict in eval mode
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())  # it stays trainable
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.resume
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop_at", [5, 7])
def test_a_killed_student_resumes_to_the_same_bits(tiny_dense, corpus, teacher, tmp_path, name, stop_at):
    """On-policy too, where the weights that wrote the current text are gone."""
    config = replace(CONFIG, accumulate=2)
    straight = make(tiny_dense, corpus, METHODS[name], teacher, config)
    for _ in range(stop_at):
        straight.train_step()
    checkpoint.save(tmp_path, straight)
    second = make(tiny_dense, corpus, METHODS[name], teacher, config)
    checkpoint.restore(checkpoint.latest(tmp_path), second)
    for _ in range(config.steps - stop_at):
        assert straight.train_step().loss == second.train_step().loss
    assert straight.evaluate().bits_per_byte == second.evaluate().bits_per_byte


def test_a_checkpoint_of_another_config_is_refused(tiny_dense, corpus, teacher, tmp_path):
    checkpoint.save(tmp_path, make(tiny_dense, corpus, METHODS["logits"], teacher))
    other = make(tiny_dense, corpus, replace(METHODS["logits"], temperature=3.0), teacher)
    with pytest.raises(CheckpointError, match=r"distillation.temperature = 1.0, now it is 3.0"):
        checkpoint.restore(checkpoint.latest(tmp_path), other)
    stranger = make(tiny_dense, corpus, METHODS["logits"], GPT(tiny_dense))
    with pytest.raises(CheckpointError, match=r"teacher.dim = 32, now it is 16"):
        checkpoint.restore(checkpoint.latest(tmp_path), stranger)
    checkpoint.save(tmp_path / "text", make(tiny_dense, corpus, TEXT, teacher))
    longer = make(tiny_dense, corpus, replace(TEXT, teacher_tokens=400), teacher)
    longer.distill_config = TEXT
    with pytest.raises(CheckpointError, match=r"teacher.text = \w+, now it is \w+"):
        checkpoint.restore(checkpoint.latest(tmp_path / "text"), longer)


def test_students_of_one_teacher_share_its_predictions(tiny_dense, corpus, teacher):
    predictor = LogitTeacher(teacher)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    configs = [METHODS["logits"], METHODS["logits and labels"], METHODS["top-k"]]
    students = [
        DistillationTrainer(GPT(tiny_dense), corpus, CONFIG, x, as_teacher(predictor, x)) for x in configs
    ]
    for _ in range(3):
        for student in students:
            student.train_step()
    assert len(calls) == 3


def test_predictions_of_a_teacher(tiny_dense, corpus, teacher):
    tokens_BL = corpus.batch(0, 0, 2, 16).tokens_BL
    exact = teacher.eval()(tokens_BL)[0].log_softmax(-1)
    predictor = LogitTeacher(teacher)
    assert torch.equal(predictor.predict(tokens_BL, 0, 0).log_softmax(-1), exact)
    seen = TopKTeacher(predictor, 3, temperature=2.0).predict(tokens_BL, 0, 0)
    assert isinstance(seen, TopK)
    best = (exact / 2).log_softmax(-1).topk(3)
    torch.testing.assert_close(seen.log_probs, best.values)
    assert torch.equal(seen.ids, best.indices)
    small = in_8_bits(teacher)
    assert small.blocks[0].attention.out_proj.weight.dtype == torch.float8_e4m3fn
    apart = (small(tokens_BL)[0].log_softmax(-1) - exact).norm() / exact.norm()
    assert 0 < apart < 0.05


def test_a_cached_teacher_trains_like_one_in_memory(tiny_dense, corpus, teacher, tmp_path):
    """Its log-probabilities were rounded to float16."""
    config = replace(CONFIG, accumulate=2)
    write_cache(tmp_path, teacher, corpus, config, 8)
    cached = CachedTopK(tmp_path, corpus, config, tiny_dense.context, k=5)
    distill_config = METHODS["top-k"]
    live = make(tiny_dense, corpus, distill_config, teacher, config)
    torch.manual_seed(config.seed)
    student = DistillationTrainer(
        GPT(tiny_dense), corpus, config, distill_config, as_teacher(cached, distill_config)
    )
    for _ in range(config.steps):
        assert student.train_step().loss == pytest.approx(live.train_step().loss, rel=1e-3)
    assert student.evaluate().bits_per_byte != live.evaluate().bits_per_byte
    assert student.evaluate().bits_per_byte == pytest.approx(live.evaluate().bits_per_byte, rel=1e-3)
    with pytest.raises(ValueError, match=r"predicts at temperature 1.0 and the distillation config has 2.0"):
        DistillationTrainer(GPT(tiny_dense), corpus, config, replace(distill_config, temperature=2.0), cached)
    own = DistillationTrainer(
        GPT(tiny_dense), corpus, config, replace(METHODS["on-policy"], on_policy_start=0.0), cached
    )
    with pytest.raises(ValueError, match=r"these tokens"):
        for _ in range(config.steps):
            own.train_step()


# ---- on-policy


def test_an_on_policy_student_trains_on_its_own_text(tiny_dense, corpus, teacher):
    config = replace(CONFIG, steps=200)
    distill_config = replace(METHODS["on-policy"], on_policy_fraction=0.3, on_policy_start=0.0)
    student = make(tiny_dense, corpus, distill_config, teacher, config)
    mine = 0
    for student.step in range(200):
        if student._is_on_policy(0):
            mine += 1
            if mine > 7:
                continue
            writer = {k: v.clone() for k, v in student.model.state_dict().items()}
            batch = student.batch(0)
            assert (batch.targets_BL[:, :3] == IGNORED).all()  # the prompt of 4 gives three of the targets
            assert (batch.targets_BL[:, 3:] != IGNORED).all()
            assert torch.equal(batch.targets_BL[:, 3:-1], batch.tokens_BL[:, 4:])
            assert all(torch.equal(writer[k], v) for k, v in student.model.state_dict().items())
            # its own text is no label: alpha is unused
            logits_BLV, _ = student.model(batch.tokens_BL)
            student.distill_config = replace(distill_config, alpha=0.0)
            pure = student.objective(logits_BLV, batch, 0, logits_BLV.sum())
            student.distill_config = replace(distill_config, alpha=0.9)
            assert torch.equal(pure, student.objective(logits_BLV, batch, 0, logits_BLV.sum()))
    assert 40 < mine < 80
    student.distill_config = replace(distill_config, on_policy_start=0.5)
    turns = [student._is_on_policy(0) for student.step in range(200)]
    assert not any(turns[:100])
    assert sum(turns[100:]) > 15
    assert student.extra_state["rows"].shape == (2 * 3, 17)


def test_generated_text_is_used_once(tiny_dense, corpus, teacher):
    student = make(tiny_dense, corpus, ALL_OWN_TEXT, teacher)
    first, second, third, fourth = (student.batch(0).tokens_BL for _ in range(4))
    student_rows = student.extra_state["rows"][:, :-1].long()
    assert torch.equal(fourth, student_rows[:2])  # generated again after three batches of two
    assert not torch.equal(torch.cat((first, second)), torch.cat((second, third)))
    assert not torch.equal(first, second)


def test_generated_text_changes_as_the_student_learns(tiny_dense, corpus, teacher):
    distill_config = replace(ALL_OWN_TEXT, generation_batches=1, sampling_temperature=0.0)
    student = make(tiny_dense, corpus, distill_config, teacher)
    seen = []
    for _ in range(6):
        student.train_step()
        seen.append(student.extra_state["rows"])
    assert len({row.numpy().tobytes() for row in seen}) > 1
    prompts = seen[-1][:, :4].long()
    assert all(bytes(p.tolist()) in b"".join(t.tobytes() for t in corpus.train) for p in prompts)


# ---- teacher text


def test_teacher_text_is_what_the_teacher_generates(tiny_dense, corpus, teacher):
    distill_config = replace(TEXT, sampling_temperature=0.0)
    text = generate_text(teacher, corpus, 16, distill_config, 0)
    assert text.rows_NL.shape == (16, 17)  # 200 bytes, 13 per row
    assert text.tokens == 16 * 13
    expected = generate(teacher, text.rows_NL[:, :4].long(), 13, temperature=0.0)
    assert torch.equal(text.rows_NL[:, 4:].long(), expected)
    assert text.domains_N.tolist() == [0, 1] * 8
    batch = text.batch(3, 5, 6)
    assert (batch.targets_BL[:, :3] == IGNORED).all()
    assert torch.equal(batch.targets_BL[:, 3:-1], batch.tokens_BL[:, 4:])
    assert torch.equal(text.batch(3, 5, 6).tokens_BL, batch.tokens_BL)
    assert not torch.equal(text.batch(3, 6, 6).tokens_BL, batch.tokens_BL)
    assert text.first(26).rows_NL.shape == (2, 17)
    with pytest.raises(ValueError, match=r"1,000 teacher tokens were requested and 208 exist"):
        text.first(1000)


def test_prompts_are_training_text_of_all_domains_in_turn(corpus):
    prompts, domains = draw_prompts(corpus, 10, 6, seed=1)
    assert domains.tolist() == [0, 1] * 5
    for prompt, domain in zip(prompts.tolist(), domains.tolist(), strict=True):
        assert bytes(prompt) in corpus.train[domain].tobytes()
    assert not torch.equal(prompts, draw_prompts(corpus, 10, 6, seed=2)[0])


def test_killed_generation_resumes(tiny_dense, corpus, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("minimoe.distill.teacher_text.ROWS_PER_SHARD", 5)
    whole = generate_text(teacher, corpus, 16, TEXT, 0)
    assert not torch.equal(whole.rows_NL[:5], whole.rows_NL[5:10])  # each shard has its own seed
    calls = []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted
        return generate_rows(*arguments)

    monkeypatch.setattr("minimoe.distill.teacher_text.generate_rows", failing)
    with pytest.raises(Interrupted):
        generate_text(teacher, corpus, 16, TEXT, 0, tmp_path)
    again = generate_text(teacher, corpus, 16, TEXT, 0, tmp_path)
    assert torch.equal(whole.rows_NL, again.rows_NL)
    assert torch.equal(whole.domains_N, again.domains_N)
    assert len(calls) == 3 + 2  # of four shards the first two were kept
    generate_text(teacher, corpus, 16, TEXT, 0, tmp_path)
    assert len(calls) == 5


def test_damaged_and_foreign_text_is_refused(tiny_dense, corpus, teacher, tmp_path, monkeypatch):
    def text(teacher=teacher, corpus=corpus, context=16, seed=0, folder=tmp_path, **config):
        return generate_text(teacher, corpus, context, replace(TEXT, **config), seed, folder)

    text()
    more_heads = GPT(replace(teacher.config, n_heads=4))
    more_heads.load_state_dict(teacher.state_dict())
    for message, changes in {
        r"teacher.dim = 32, now it is 16": {"teacher": GPT(tiny_dense)},
        r"teacher.fingerprint = \w+, now it is \w+;": {"teacher": GPT(teacher.config)},
        r"teacher.n_heads = 2, now it is 4": {"teacher": more_heads},
        r"seed = 0, now it is 1": {"seed": 1},
        r"prompt = 4, now it is 5": {"prompt": 5},
        r"context = 16, now it is 15": {"context": 15},
        r"corpus = a fingerprint, now it is other": {"corpus": replace(corpus, fingerprint="other")},
        r"rows = 16, now it is 24": {"teacher_tokens": 300},
        r"temperature = 1\.0, now it is 0\.5": {"sampling_temperature": 0.5},
        r"top_p = 1\.0, now it is 0\.9": {"top_p": 0.9},
    }.items():
        with pytest.raises(ValueError, match=message):
            text(**changes)
    file = tmp_path / "shard-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-00000.safetensors is damaged .*remove it"):
        text()
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match=r"rows_per_shard = 256, now it is 8"),
    ):
        patch.setattr("minimoe.distill.teacher_text.ROWS_PER_SHARD", 8)
        text()
    file.unlink()
    needed = 16 * (2 * 17 + 8)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=rf"needs {needed} more bytes"):
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed - 1))
        text()
    assert text().tokens == 208
    with pytest.raises(ValueError, match=r"context \(16\) must be longer than the prompt \(16\)"):
        text(prompt=16, folder=None)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \(a\.txt; 1 in all\)"):
        text(folder=foreign)


# ---- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signal": "all"}, r"signal \('all'\) must be one of labels, logits, top-k"),
        ({"data_source": "books"}, r"data_source \('books'\) one of corpus, teacher, student"),
        ({"signal": "labels", "data_source": "student"}, r"learns nothing from labels of its own text"),
        ({"temperature": 0.0}, r"temperature \(0.0\)"),
        ({"alpha": 1.5}, r"alpha \(1.5\)"),
        ({"k": 0}, r"k \(0\) must be at least 1"),
        ({"generation_batches": 0}, r"generation_batches \(0\) must be at least 1"),
        ({"on_policy_fraction": 0.0}, r"on_policy_fraction \(0.0\) must be above 0"),
        ({"on_policy_start": 1.0}, r"on_policy_start \(1.0\) must be at least 0 and below 1"),
        ({"top_p": 0.0}, r"top_p \(0.0\)"),
    ],
)
def test_invalid_configs_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**settings)


def test_mismatched_students_are_refused(tiny_dense, corpus, teacher):
    wide = replace(tiny_dense, vocab_size=260)
    with pytest.raises(ValueError, match=r"student has vocab_size 260 and its teacher 256"):
        make(wide, corpus, METHODS["logits"], teacher)
    with pytest.raises(ValueError, match=r"student has context 32 and its teacher 16"):
        make(replace(tiny_dense, context=32), corpus, METHODS["top-k"], teacher)
    with pytest.raises(ValueError, match=r"signal='logits' needs a teacher"):
        DistillationTrainer(GPT(tiny_dense), corpus, CONFIG, DistillConfig(prompt=4))
    with pytest.raises(ValueError, match=r"needs the teacher's text"):
        DistillationTrainer(GPT(tiny_dense), corpus, CONFIG, TEXT)
    text = TeacherText(torch.zeros(3, 9, dtype=torch.int16), torch.zeros(3, dtype=torch.long), 4)
    with pytest.raises(ValueError, match=r"rows of 9 bytes, the student needs context \+ 1 \(17\)"):
        DistillationTrainer(GPT(tiny_dense), corpus, CONFIG, TEXT, text=text)
    with pytest.raises(ValueError, match=r"prompt \(16\) must be shorter than the context \(16\)"):
        make(tiny_dense, corpus, DistillConfig(data_source="student"), teacher)


# ---- distill


def test_distill_trains_records_and_resumes(tiny_dense, corpus, teacher, tmp_path):
    for name, distill_config in METHODS.items():
        straight = distill(GPT(tiny_dense), teacher, corpus, CONFIG, distill_config, out=tmp_path / name)
        assert [evaluation.step for evaluation in straight] == [6, 12]
        model = checkpoint.load_model(tmp_path / name)
        assert model.config == tiny_dense
    records = (tmp_path / "text" / "records.jsonl").read_text()
    assert '"distillation"' in records.splitlines()[0]
    with pytest.raises(ValueError, match=r"already holds a run"):
        distill(GPT(tiny_dense), teacher, corpus, CONFIG, TEXT, out=tmp_path / "text")
    assert distill(GPT(tiny_dense), teacher, corpus, CONFIG, TEXT, out=tmp_path / "text", resume=True) == []
    with pytest.raises(ValueError, match=r"needs a model \(GPT\) as the teacher"):
        distill(GPT(tiny_dense), LogitTeacher(teacher), corpus, CONFIG, TEXT)


def test_a_distilled_student_is_closer_to_its_teacher(tiny_dense, corpus):
    """Closer than the same student trained on the text alone."""
    config = TrainConfig(steps=60, batch_size=8, lr=1e-2, warmup=5, eval_sequences=8)
    torch.manual_seed(1)
    trainer = Trainer(GPT(replace(tiny_dense, dim=48, hidden_dim=96)), corpus, config)
    for _ in range(config.steps):
        trainer.train_step()
    config, apart = replace(config, steps=200, eval_every=200), {}
    for sees in ("labels", "logits", "top-k"):
        torch.manual_seed(0)
        student = GPT(tiny_dense)
        distill(student, trainer.model, corpus, config, DistillConfig(signal=sees, k=4))
        apart[sees] = student_metrics(student, trainer.model, corpus, config).divergence["all"]
    assert 2 * apart["logits"] < apart["labels"]
    assert apart["logits"] < apart["top-k"] < apart["labels"]
