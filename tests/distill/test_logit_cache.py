"""A logit cache against the teacher itself: its predictions, interruptions and damage."""

import errno
import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from minimoe.distill import logit_cache as cache_module
from minimoe.distill import shard_store as shards
from minimoe.distill.config import DistillConfig
from minimoe.distill.logit_cache import CachedTopK, write_cache
from minimoe.distill.shard_store import ShardError, read_settings
from minimoe.distill.teacher_text import generate_text
from minimoe.distill.topk_loss import sparse_kd_loss, top_k
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.tools import safetensors_io as tensor_files
from minimoe.training.config import TrainConfig

CONFIG = TrainConfig(steps=7, batch_size=2, accumulate=2, seed=3)  # shards of 3, 3 and 1 steps
CONTEXT, K = 16, 5
FILES = ["shard-00000", "shard-00001", "shard-00002"]


class Counting(GPT):
    """A teacher that counts its predictions, and can be interrupted in one."""

    def __init__(self, config):
        super().__init__(config)
        self.calls, self.stop_at = 0, -1

    def forward(self, tokens_BL, cache=None):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        assert not torch.is_grad_enabled()
        return super().forward(tokens_BL, cache)


@pytest.fixture
def teacher(tiny_dense) -> Counting:
    return Counting(replace(tiny_dense, n_layers=1))


@pytest.fixture
def cache(teacher, corpus, tmp_path):
    """The folder of a complete cache."""
    write(tmp_path / "cache", teacher, corpus)
    return tmp_path / "cache"


def write(folder, teacher, corpus, config=CONFIG, k=K, **options):
    return write_cache(folder, teacher, corpus, config, k, **{"steps_per_shard": 3} | options)


def tokens_of(corpus, step, micro, config=CONFIG):
    return corpus.batch(config.seed, step, config.batch_size, CONTEXT, micro=micro).tokens_BL


def every_batch(config=CONFIG):
    return [(step, micro) for step in range(config.steps) for micro in range(config.accumulate)]


def assert_live(stored, teacher, tokens_BL, step, micro, k=K):
    """The stored prediction is the teacher's, rounded to float16."""
    with torch.no_grad():
        live = top_k(teacher(tokens_BL)[0], k)
    seen = stored.predict(tokens_BL, step, micro)
    assert torch.equal(seen.ids, live.ids)
    assert torch.equal(seen.log_probs, live.log_probs.half())


def uses(folder, teacher, corpus):
    """What reads a cache: a student, and the writer that resumes it."""
    return lambda: CachedTopK(folder, corpus, CONFIG, CONTEXT), lambda: write(folder, teacher, corpus)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def step_bytes(k=K, batch=CONFIG.batch_size, context=CONTEXT):
    """Size of one step's tensors: a float16 and a byte per entry, a digest per micro-batch."""
    return 2 * (batch * context * k * (2 + 1) + 8)


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


# ---- predictions


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_cached_predictions_are_the_teachers(tiny, corpus, tmp_path, accumulate, temperature):
    # The router's jitter would reveal predictions in training mode.
    model_config = replace(tiny, n_layers=1, jitter=0.5 if tiny.n_experts else 0.0)
    teacher, config = GPT(model_config).train(), replace(CONFIG, accumulate=accumulate)
    write(tmp_path, teacher, corpus, config, temperature=temperature)
    assert all(module.training for module in teacher.modules())
    stored = CachedTopK(tmp_path, corpus, config, CONTEXT, temperature=temperature)
    teacher.eval()
    for step, micro in every_batch(config):
        tokens_BL = tokens_of(corpus, step, micro, config)
        with torch.no_grad():
            logits_BLV = teacher(tokens_BL)[0]
        exact_BLV = F.log_softmax(logits_BLV.double() / temperature, -1).numpy()
        ids_BLK = np.argsort(-exact_BLV, axis=-1, kind="stable")[..., :K]
        exact_BLK = torch.from_numpy(np.take_along_axis(exact_BLV, ids_BLK, -1))
        seen = stored.predict(tokens_BL, step, micro)
        assert (seen.log_probs.dtype, seen.ids.dtype) == (torch.float16, torch.int64)
        assert torch.equal(seen.ids, torch.from_numpy(ids_BLK))
        # The rounding of float16, and the error of a float32 softmax.
        torch.testing.assert_close(seen.log_probs.double(), exact_BLK, rtol=2**-11, atol=1e-6)
        live = top_k(logits_BLV, K, temperature=temperature)
        assert torch.equal(seen.log_probs, live.log_probs.half())


def test_a_context_shorter_than_the_teachers(cache, teacher, corpus, tmp_path):
    write(tmp_path / "short", teacher, corpus, context=5)
    stored = CachedTopK(tmp_path / "short", corpus, CONFIG, 5)
    for step, micro in every_batch():
        batch = corpus.batch(CONFIG.seed, step, CONFIG.batch_size, 5, micro=micro)
        assert batch.tokens_BL.shape == (2, 5)
        assert_live(stored, teacher, batch.tokens_BL, step, micro)
    tensors = load_file(tmp_path / "short" / "shard-00000.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == 3 * step_bytes(context=5)
    with pytest.raises(ShardError, match=r"with context = 5, now it is 16"):
        CachedTopK(tmp_path / "short", corpus, CONFIG, CONTEXT)
    with pytest.raises(ShardError, match=r"with context = 16, now it is 5"):
        write(cache, teacher, corpus, context=5)
    write(cache, teacher, corpus, context=CONTEXT)  # the teacher's, which is the default


@pytest.mark.parametrize("k", [1, 3, K])
def test_a_smaller_k_is_the_best_of_those_stored(cache, teacher, corpus, k):
    stored = CachedTopK(cache, corpus, CONFIG, CONTEXT, k=k)
    for step, micro in every_batch():
        assert_live(stored, teacher, tokens_of(corpus, step, micro), step, micro, k)


def test_batches_can_be_read_in_any_order_and_by_a_shorter_run(cache, corpus):
    batches = every_batch(replace(CONFIG, steps=4))
    forward, backward = (CachedTopK(cache, corpus, replace(CONFIG, steps=4), CONTEXT) for _ in range(2))
    looks = {batch: forward.predict(tokens_of(corpus, *batch), *batch) for batch in batches}
    for batch in reversed(batches):
        seen = backward.predict(tokens_of(corpus, *batch), *batch)
        assert torch.equal(seen.log_probs, looks[batch].log_probs)
        assert torch.equal(seen.ids, looks[batch].ids)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd", "skew", "tv"])
def test_the_loss_is_that_of_the_live_teacher(cache, teacher, corpus, kind):
    tokens_BL, stored = tokens_of(corpus, 4, 1), CachedTopK(cache, corpus, CONFIG, CONTEXT)
    with torch.no_grad():
        live = top_k(teacher(tokens_BL)[0], K)
    student = torch.randn(*tokens_BL.shape, 256)
    losses = [
        sparse_kd_loss(student, top, kind=kind, alpha=0.0) for top in (live, stored.predict(tokens_BL, 4, 1))
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0)


class Constant(GPT):
    """A teacher that predicts the same for every token."""

    def __init__(self, logits_V):
        size = {"dim": 4, "n_layers": 1, "n_heads": 2, "context": CONTEXT, "hidden_dim": 4}
        super().__init__(ModelConfig(vocab_size=len(logits_V), **size))
        self.logits_V = logits_V

    def forward(self, tokens_BL, cache=None):
        return self.logits_V.expand(*tokens_BL.shape, -1), []


def cached_constant(teacher, corpus, folder, k):
    """The cached predictions of a constant teacher: log_probs (K,) and ids (K,)."""
    config = replace(CONFIG, steps=1)
    write(folder, teacher, corpus, config, k)
    seen = CachedTopK(folder, corpus, config, CONTEXT).predict(tokens_of(corpus, 0, 0), 0, 0)
    return seen.log_probs[1, -1], seen.ids[1, -1]


@pytest.mark.parametrize(
    ("vocabulary", "dtype", "id_bytes"),
    [(256, torch.uint8, 1), (257, torch.int16, 2), (2**15, torch.int16, 2), (2**15 + 1, torch.int32, 4)],
)
def test_ids_take_the_fewest_bytes_that_hold_them(corpus, tmp_path, vocabulary, dtype, id_bytes):
    last = vocabulary - torch.arange(1, 4)
    logits_V = torch.zeros(vocabulary).index_put((last,), torch.tensor([9.0, 8.0, 7.0]))
    _, ids_K = cached_constant(Constant(logits_V), corpus, tmp_path, 3)
    assert torch.equal(ids_K, last)
    tensors = load_file(tmp_path / "shard-00000.safetensors")
    assert tensors["ids"].dtype == dtype
    n_tokens = 2 * 2 * CONTEXT
    assert tensors["ids"].nbytes + tensors["log_probs"].nbytes == (2 + id_bytes) * 3 * n_tokens


def test_the_rounding_of_float16(corpus, tmp_path):
    logits_V = torch.full((256,), -torch.inf)
    logits_V[:7] = torch.tensor([0.0, -13.0, -14.0, -17.3, -1000.3, -65_000.0, -70_000.0])
    log_probs_K, ids_K = cached_constant(Constant(logits_V), corpus, tmp_path, 9)
    assert ids_K[:7].tolist() == list(range(7))
    exact_K = top_k(logits_V, 6).log_probs.double()  # before rounding; the first is -3e-6
    bound_K = (2**-11 * exact_K.abs()).clamp(min=2**-25)
    error_K = (log_probs_K[:6].double() - exact_K).abs()
    assert (error_K <= bound_K).all(), (error_K, bound_K)
    assert (log_probs_K[6:] == -torch.inf).all()  # below float16, and those of probability 0
    assert F.log_softmax(logits_V.double(), -1)[6].exp() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu(teacher, corpus, tmp_path):
    write(tmp_path, teacher, corpus, device="cuda")
    assert teacher.embedding.weight.device.type == "cpu"
    tokens_BL, stored = tokens_of(corpus, 4, 1), CachedTopK(tmp_path, corpus, CONFIG, CONTEXT)
    here, there = stored.predict(tokens_BL, 4, 1), stored.predict(tokens_BL.cuda(), 4, 1)
    assert there.ids.is_cuda
    assert torch.equal(there.ids.cpu(), here.ids)
    assert torch.equal(there.log_probs.cpu(), here.log_probs)
    with torch.no_grad():
        live = top_k(teacher(tokens_BL)[0], K)
    torch.testing.assert_close(here.log_probs.float(), live.log_probs, rtol=2**-10, atol=1e-4)


# ---- disk space


def test_the_size_on_disk_is_predicted_and_returned(tiny_dense, corpus, tmp_path):
    teacher, config = GPT(tiny_dense), replace(CONFIG, batch_size=8)
    size = write(tmp_path, teacher, corpus, config, 16)
    tensors = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert 7 * step_bytes(16, batch=8) < tensors < 1.05 * 7 * step_bytes(16, batch=8)
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert CachedTopK(tmp_path, corpus, config, CONTEXT).nbytes == size


def test_a_full_disk_is_reported_before_any_work(teacher, corpus, tmp_path, monkeypatch):
    def free(n_bytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": n_bytes}))

    step = step_bytes()
    free(7 * step - 1)
    with pytest.raises(ShardError, match=rf"needs {7 * step:,} more bytes .* {7 * step - 1:,} are free"):
        write(tmp_path, teacher, corpus)
    assert teacher.calls == 0
    write(tmp_path, teacher, corpus, k=K - 1)  # the remedy: the folder has no settings yet
    (tmp_path / "shard-00001.safetensors").unlink()
    step = step_bytes(K - 1)
    free(3 * step - 1)
    with pytest.raises(ShardError, match=rf"needs {3 * step:,} more bytes"):
        write(tmp_path, teacher, corpus, k=K - 1)
    free(3 * step)  # resuming needs space for the missing shards only
    write(tmp_path, teacher, corpus, k=K - 1)


def test_shards_are_opened_lazily_and_verified_once(cache, corpus, monkeypatch):
    opened, checked = [], []
    open_file, checksum = cache_module.safe_open, shards.checksum
    monkeypatch.setattr(
        cache_module, "safe_open", lambda file, **how: opened.append(file.stem) or open_file(file, **how)
    )
    monkeypatch.setattr(shards, "checksum", lambda file: checked.append(file.stem) or checksum(file))
    stored = CachedTopK(cache, corpus, CONFIG, CONTEXT)
    assert opened == checked == []
    for _ in range(2):
        for step, micro in every_batch():
            stored.predict(tokens_of(corpus, step, micro), step, micro)
    assert checked == FILES
    assert opened == FILES * 2


def test_checksums_are_those_of_sha256sum(cache):
    for name in FILES:
        digest = hashlib.sha256((cache / f"{name}.safetensors").read_bytes()).hexdigest()
        assert (cache / f"{name}.sha256").read_text() == f"{digest}  {name}.safetensors\n"


# ---- interruptions


@pytest.mark.parametrize(("calls", "kept"), [(0, 0), (5, 0), (6, 1), (8, 1), (13, 2)])
def test_an_interrupted_cache_resumes_to_the_same_bytes(cache, teacher, corpus, tmp_path, calls, kept):
    folder, steps = tmp_path / "stopped", []
    teacher.train()
    teacher.calls, teacher.stop_at = 0, calls
    with pytest.raises(KeyboardInterrupt):
        write(folder, teacher, corpus)
    assert teacher.training  # restored
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 1 + 2 * kept
    teacher.calls, teacher.stop_at = 0, -1
    write(folder, teacher, corpus, on_progress=lambda done, of: steps.append((done, of)))
    assert contents(folder) == contents(cache)
    assert teacher.calls == 2 * (7 - 3 * kept)
    assert steps == [(step + 1, 7) for step in range(3 * kept, 7)]
    assert all((folder / name).stat().st_mtime_ns == time for name, time in before.items())
    teacher.calls = 0
    write(folder, teacher, corpus)
    assert teacher.calls == 0


def instead(monkeypatch, suffix, action):
    """Replace the writing of text files with this suffix; others are written."""
    as_ever = shards.write_atomically

    def write(path, text):
        (action if path.suffix == suffix else as_ever)(path, text)

    monkeypatch.setattr(shards, "write_atomically", write)


def stop(*_):
    raise KeyboardInterrupt


def half(path, text):
    path.with_name(path.name + ".tmp").write_text(text[: len(text) // 2])
    raise KeyboardInterrupt


STOPS = {
    "in the settings": lambda patch: instead(patch, ".json", half),
    "after the settings": lambda patch: patch.setattr(shards, "flush", stop),
    "in a file": lambda patch: patch.setattr(
        shards, "write_tensors", lambda _, path: half(path, "half a file")
    ),
    "before its checksum": lambda patch: instead(patch, ".sha256", stop),
    "in its checksum": lambda patch: instead(patch, ".sha256", half),
}


@pytest.mark.parametrize("moment", STOPS)
def test_a_kill_at_any_moment_leaves_no_incomplete_shard_that_is_used(
    cache, teacher, corpus, tmp_path, monkeypatch, moment
):
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        STOPS[moment](patch)
        write(folder, teacher, corpus)
    with pytest.raises(ShardError, match=r"holds no shards|0 of 3 shards are in"):
        CachedTopK(folder, corpus, CONFIG, CONTEXT)
    write(folder, teacher, corpus)
    assert contents(folder) == contents(cache)


@pytest.mark.parametrize("part", ["safetensors", "sha256"])
@pytest.mark.parametrize("damage", ["flipped", "binary", "cut", "empty", "missing"])
def test_only_a_damaged_shard_is_written_again(cache, teacher, corpus, part, damage):
    whole, path = contents(cache), cache / f"{FILES[1]}.{part}"
    if damage == "flipped":
        flip(path, 0.3)
    elif damage == "binary":
        path.write_bytes(b"\xff" + whole[path.name][1:])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[path.name][: len(whole[path.name]) // 2 if damage == "cut" else 0])
    message = "is missing" if damage == "missing" else "is damaged .*remove it and write .*only that file"
    with pytest.raises(ShardError, match=rf"{FILES[1]}.safetensors {message}"):
        stored = CachedTopK(cache, corpus, CONFIG, CONTEXT)
        stored.predict(tokens_of(corpus, 2, 1), 2, 1)  # in an intact shard
        stored.predict(tokens_of(corpus, 3, 0), 3, 0)
    teacher.calls = 0
    path.unlink(missing_ok=True)  # the remedy
    write(cache, teacher, corpus)
    assert teacher.calls == 2 * 3
    assert contents(cache) == whole


def test_a_damaged_shard_is_written_again_without_removing_it(cache, teacher, corpus):
    whole = contents(cache)
    flip(cache / f"{FILES[0]}.safetensors")
    write(cache, teacher, corpus)
    assert contents(cache) == whole


def test_a_shard_removed_later_is_missing(cache, corpus):
    stored = CachedTopK(cache, corpus, CONFIG, CONTEXT)
    (cache / f"{FILES[2]}.safetensors").unlink()
    with pytest.raises(ShardError, match=r"shard-00002.* is missing: 2 of 3 shards .*again with the same"):
        stored.predict(tokens_of(corpus, 6, 0), 6, 0)
    with pytest.raises(ShardError, match=r"shard-00002.* is missing"):
        CachedTopK(cache, corpus, CONFIG, CONTEXT)


@pytest.mark.parametrize("writer", ["tensors", "checksum"])
def test_a_disk_that_fills_up_is_reported_and_shards_are_kept(teacher, corpus, tmp_path, monkeypatch, writer):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    message = r"could not write \S+ \(\[Errno 28\] No space left on device\); free some .*: it resumes there$"
    with monkeypatch.context() as patch:
        if writer == "tensors":
            patch.setattr(tensor_files, "save_file", full)
        else:
            instead(patch, ".sha256", full)
        with pytest.raises(ShardError, match=message):
            write(tmp_path / "files", teacher, corpus)
        instead(patch, ".json", full)
        with pytest.raises(ShardError, match=message):
            write(tmp_path / "mark", teacher, corpus)
    for name in ("files", "mark"):
        write(tmp_path / name, teacher, corpus)
        CachedTopK(tmp_path / name, corpus, CONFIG, CONTEXT)


# ---- errors


def test_an_incomplete_cache_is_refused(teacher, corpus, tmp_path):
    teacher.stop_at = 8
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, teacher, corpus)
    with pytest.raises(
        ShardError, match=r"shard-00001.* is missing: 1 of 3 shards are in .*add the missing ones"
    ):
        CachedTopK(tmp_path, corpus, CONFIG, CONTEXT)
    CachedTopK(tmp_path, corpus, replace(CONFIG, steps=3), CONTEXT)  # needs no more steps


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("k", 4, r"with k = 5, now it is 4"),
        ("temperature", 2.0, r"with temperature = 1\.0, now it is 2\.0"),
        ("steps_per_shard", 2, r"with steps_per_shard = 3, now it is 2"),
        ("seed", 4, r"with seed = 3, now it is 4"),
        ("batch_size", 3, r"with batch_size = 2, now it is 3"),
        ("accumulate", 1, r"with accumulate = 2, now it is 1"),
        ("steps", 8, r"with steps = 7, now it is 8"),
    ],
)
def test_a_cache_with_other_settings_is_not_resumed(cache, teacher, corpus, name, value, message):
    config, options = (CONFIG, {name: value}) if not hasattr(CONFIG, name) else (
        replace(CONFIG, **{name: value}), {}
    )  # fmt: skip
    whole, teacher.calls = contents(cache), 0
    with pytest.raises(ShardError, match=message + r"; use the same, or write into another folder"):
        write(cache, teacher, corpus, config, **options)
    assert teacher.calls == 0
    assert contents(cache) == whole


def test_a_cache_of_another_text_or_teacher_is_not_resumed(cache, teacher, corpus):
    with pytest.raises(ShardError, match=r"with corpus = a fingerprint, now it is another;"):
        write(cache, teacher, replace(corpus, fingerprint="another"))
    before = read_settings(cache)["teacher"]["fingerprint"]
    with torch.no_grad():
        teacher.blocks[0].attention_norm.weight[3] += 1e-6
    with pytest.raises(ShardError, match=rf"with teacher.fingerprint = {before}, now it is (?!{before})"):
        write(cache, teacher, corpus)


def test_the_same_weights_used_otherwise_are_another_teacher(cache, teacher, corpus):
    other = GPT(replace(teacher.config, n_heads=4))
    other.load_state_dict(teacher.state_dict())
    with pytest.raises(ShardError, match=r"with teacher.n_heads = 2, now it is 4"):
        write(cache, other, corpus)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, r"with seed = 3, now it is 4; use the same"),
        ({"batch_size": 3}, r"with batch_size = 2, now it is 3"),
        ({"accumulate": 1}, r"with accumulate = 2, now it is 1"),
        ({"steps": 8}, r"steps \(8\) must be from 1 to 7, .*larger cache in another folder"),
        ({"context": 8}, r"with context = 16, now it is 8"),
        ({"temperature": 2.0}, r"with temperature = 1\.0, now it is 2\.0"),
        ({"temperature": 0.0}, r"with temperature = 1\.0, now it is 0\.0"),
        ({"k": K + 1}, r"k \(6\) must be from 1 to 5, .*larger cache"),
        ({"k": 0}, r"k \(0\) must be from 1 to 5"),
        ({"text": "another"}, r"with corpus = a fingerprint, now it is another"),
    ],
)
def test_a_student_of_another_run_is_refused(cache, corpus, changes, message):
    changes = {"text": corpus.fingerprint, "context": CONTEXT} | changes
    text, context = changes.pop("text"), changes.pop("context")
    config = replace(CONFIG, **{name: value for name, value in changes.items() if hasattr(CONFIG, name)})
    options = {name: value for name, value in changes.items() if not hasattr(CONFIG, name)}
    with pytest.raises(ShardError, match=message):
        CachedTopK(cache, replace(corpus, fingerprint=text), config, context, **options)


def test_settings_that_do_not_affect_batches_may_differ(cache, corpus):
    config = replace(CONFIG, lr=1e-4, warmup=0, average=0.1, steps=5)
    CachedTopK(cache, corpus, config, CONTEXT).predict(tokens_of(corpus, 4, 1), 4, 1)


@pytest.mark.parametrize(("step", "micro"), [(7, 0), (-1, 0), (0, 2), (0, -1)])
def test_a_batch_beyond_the_cache_is_refused(cache, corpus, step, micro):
    stored = CachedTopK(cache, corpus, CONFIG, CONTEXT)
    with pytest.raises(ShardError, match=rf"step {step}, micro-batch {micro} is not in .*7 steps of 2"):
        stored.predict(tokens_of(corpus, 0, 0), step, micro)


def test_other_tokens_are_refused(cache, corpus):
    stored, tokens_BL = CachedTopK(cache, corpus, CONFIG, CONTEXT), tokens_of(corpus, 2, 1)
    changed_BL = tokens_BL.clone()
    changed_BL[1, 9] += 1
    for other, step, micro in (
        (changed_BL, 2, 1),
        (tokens_BL.view(1, -1), 2, 1),  # the same bytes in another shape
        (tokens_BL.flip(0), 2, 1),
        (tokens_BL, 2, 0),
        (tokens_BL, 1, 1),
        (tokens_BL, 5, 1),  # the same row of another shard
    ):
        with pytest.raises(ShardError, match=rf"not those of step {step}, micro-batch {micro} in .*digest"):
            stored.predict(other, step, micro)
    stored.predict(tokens_BL.t().contiguous().t().int(), 2, 1)  # neither strides nor dtype matter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"k \(0\) must be from 1 to 256"),
        ({"k": 257}, r"k \(257\) must be from 1 to 256"),
        ({"temperature": 0.0}, r"temperature \(0\.0\) must be above 0"),
        ({"temperature": -1.0}, r"temperature \(-1\.0\) must be above 0"),
        ({"temperature": float("nan")}, r"temperature \(nan\) must be above 0"),
        ({"temperature": float("inf")}, r"temperature \(inf\) must be above 0 and finite"),
        ({"context": 0}, r"context \(0\) must be from 1 to 16, the teacher's"),
        ({"context": 17}, r"context \(17\) must be from 1 to 16, the teacher's"),
        ({"steps_per_shard": 0}, r"steps_per_shard \(0\) must be at least 1"),
    ],
)
def test_invalid_settings_are_refused(teacher, corpus, tmp_path, options, message):
    with pytest.raises(ShardError, match=message):
        write(tmp_path / "cache", teacher, corpus, **options)
    assert not (tmp_path / "cache").exists()


def test_too_short_a_corpus_is_refused(teacher, corpus, tmp_path):
    short = replace(corpus, train=tuple(data[:10] for data in corpus.train))
    with pytest.raises(ValueError, match=r"has 10 bytes of training text, but a sequence needs"):
        write(tmp_path / "cache", teacher, short)


def test_a_folder_of_other_files_is_left_unchanged(teacher, corpus, tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(ShardError, match=r"something else \(thesis\.txt; 1 in all\).* an empty folder"):
        write(tmp_path, teacher, corpus)
    with pytest.raises(ShardError, match=r"thesis\.txt is a file; choose a folder"):
        write(tmp_path / "thesis.txt", teacher, corpus)
    for nothing in (tmp_path, tmp_path / "nowhere", tmp_path / "thesis.txt"):
        with pytest.raises(
            ShardError, match=r"holds no shards \(shards\.json is missing\); write them first"
        ):
            CachedTopK(nothing, corpus, CONFIG, CONTEXT)
    assert contents(tmp_path) == {"thesis.txt": b"all my work"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 1}', "half", "edited"])
def test_damaged_settings_are_reported_with_the_remedy(cache, teacher, corpus, content):
    mark = cache / "shards.json"
    text = mark.read_text()
    shown = {"half": text[: len(text) // 2], "edited": text.replace('"seed": 3', '"seed": 4')}
    mark.write_text(shown.get(content, content))
    for use in uses(cache, teacher, corpus):
        with pytest.raises(ShardError, match=r"shards\.json is damaged .*remove .*cache and write"):
            use()


def test_a_cache_and_teacher_text_are_not_confused(cache, teacher, corpus, tmp_path):
    distill_config = DistillConfig(signal="labels", data_source="teacher", prompt=4, teacher_tokens=30)
    with pytest.raises(ShardError, match=r"cache was made with kind = cache, now it is text"):
        generate_text(teacher, corpus, CONTEXT, distill_config, 3, cache)
    generate_text(teacher, corpus, CONTEXT, distill_config, 3, tmp_path / "text")
    for use in uses(tmp_path / "text", teacher, corpus):
        with pytest.raises(ShardError, match=r"text was made with kind = text, now it is cache"):
            use()


def write_settings(folder, content):
    total = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "shards.json").write_text(json.dumps(content | {"sha256": total}))


def test_a_missing_setting_differs(cache, teacher, corpus):
    content = read_settings(cache) | {"format": 2}
    del content["seed"]
    write_settings(cache, content)
    for use in uses(cache, teacher, corpus):
        with pytest.raises(ShardError, match=r"with seed = None, now it is 3"):
            use()


def test_another_format_is_refused(cache, teacher, corpus):
    write_settings(cache, read_settings(cache) | {"format": 99, "unheard": "of"})
    with pytest.raises(ShardError, match=r"has format 99, this version reads 2"):
        CachedTopK(cache, corpus, CONFIG, CONTEXT)
