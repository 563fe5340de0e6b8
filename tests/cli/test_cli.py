"""The command line as a person meets it."""

import json
import os
import subprocess
import sys

import pytest

from minimoe.cli import main as cli


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = end.code or 0
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of a few steps."""
    out = tmp_path_factory.mktemp("compare") / "out"
    arguments = ["compare", "--steps", "6", "--seeds", "2", "--device", "cpu", "--out", str(out)]
    assert cli.main(arguments) == 0
    return out, arguments


def test_compare_leaves_table_figure_and_data(compared):
    out, _ = compared
    data = json.loads((out / "comparison.json").read_text())
    assert [row["model"] for row in data["models"]] == ["dense-active", "dense-total", "moe"]
    assert data["seeds"] == 2
    assert data["machine"]["threads"] >= 1
    assert set(data["models"][0]["flops"]) == {"all", "programming", "physics", "graphs", "reference"}
    assert data["verdict"].startswith("Against dense-active the mixture ")
    assert (out / "comparison.png").stat().st_size > 10_000


def test_compared_models_saw_the_same_batches_and_the_same_text(compared):
    out, _ = compared
    heads = {
        name: json.loads((out / "seed-1" / name / "records.jsonl").read_text().splitlines()[0])
        for name in ("dense-active", "dense-total", "moe")
    }
    for key in ("batch_size", "steps", "seed", "warmup", "clip", "weight_decay"):
        assert len({head["training"][key] for head in heads.values()}) == 1
    assert len({head["data"] for head in heads.values()}) == 1
    assert len({head["model"]["context"] for head in heads.values()}) == 1


def test_a_finished_run_is_not_overwritten_silently(compared, capsys):
    out, arguments = compared
    before = (out / "comparison.json").read_bytes()
    for more in ([], ["--resume"]):
        status, _, error = call(capsys, *arguments, *more)
        assert status == 1
        assert "holds a finished run; choose another --out, or --overwrite" in error
    assert (out / "comparison.json").read_bytes() == before


def test_sample_writes_from_a_compared_model_and_repeats(compared, capsys):
    out, _ = compared
    arguments = ["sample", "--run", out / "seed-0" / "moe", "--tokens", "20", "--device", "cpu"]
    status, text, _ = call(capsys, *arguments, "--prompt", "def f", "--samples", "2")
    assert status == 0
    assert text.count("def f") == 2
    assert call(capsys, *arguments)[1] == call(capsys, *arguments)[1]
    assert call(capsys, *arguments)[1] != call(capsys, *arguments, "--seed", "1")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--seeds", "0"], "--seeds (0) must be at least 1"),
        (["compare", "--threads", "0"], "--threads (0) must be at least 1"),
        (["compare", "--steps", "0"], "steps (0) must be at least 1"),
        (["compare", "--seeds", "many"], "invalid literal for int"),
        (["compare", "--seeeds", "3"], "perhaps you meant --seeds"),
        (["sample", "--seeds", "3"], "(applied to minimoe sample); see minimoe --help"),
        (["compare", "--preset", "huge"], "invalid choice 'huge'"),
        (["compare", "--device", "tpu"], "there is no device 'tpu' here"),
        (["compare", "--data", "nowhere"], "'nowhere' is neither a folder nor known text"),
        (["train", "--model.n-experts", "8", "--model.top-k", "9"], "top_k (9) must be between 1 and n_ex"),
        (["train", "--train.lr", "-1"], "lr (-1.0)"),
        (["train", "--model.context", "100000"], "a sequence needs context + 1 (100001)"),
        (["train", "--model.vocab-size", "10"], "vocab_size (10) must be at least 256"),
        (["train", "--out", __file__], "is a file; --out must be a folder"),
        (["sample", "--run", "nowhere"], "nowhere holds no checkpoint; train one with"),
        (["sample", "--top-p", "2"], "top_p (2.0)"),
        (["sample", "--prompt", ""], "--prompt is empty"),
        ([], "Expected one of"),
    ],
)
def test_mistakes_end_in_one_line_with_a_remedy(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = call(capsys, *arguments)
    assert status in (1, 2)
    assert message in error
    assert error.startswith("minimoe: error: ")
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())  # and nothing was begun


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_one_line_on_any_terminal(encoding):
    """tyro draws its box by what the terminal can show."""
    program = [sys.executable, "-m", "minimoe", "compare", "--seeeds", "3"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    expected = "minimoe: error: Unrecognized options: --seeeds, 3; perhaps you meant --seeds"
    assert (done.returncode, done.stderr.strip()) == (2, expected)


def test_a_reader_that_stops_early_is_no_error():
    """``minimoe --help | head``, with a reader that is gone before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "minimoe", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_too_little_text_is_told_before_the_folder_is_claimed(capsys, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "note.txt").write_text("a short note. " * 20 + "\n\n" + "and another. " * 200)
    out = tmp_path / "out"
    status, _, error = call(capsys, "compare", "--data", tmp_path / "text", "--out", out)
    assert (status, out.exists()) == (1, False)
    assert error.startswith("minimoe: error: domain text ")


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--seeds"):
        cli.main(["compare", "--seeds", "0", "--debug"])


@pytest.mark.parametrize("command", ["", "compare", "train", "sample"])
def test_help_explains_every_flag(capsys, command):
    status, text, _ = call(capsys, *command.split(), "--help")
    assert status == 0
    assert "usage: minimoe" in text
    if command == "train":
        assert "routed experts a layer" in text
        assert "peak learning rate" in text
