"""The command line: commands, shared flags, messages and exit statuses."""

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys

import pytest

from minimoe.cli import main as cli
from minimoe.cli import options
from minimoe.cli.commands import load_command
from minimoe.version import __version__


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run a command -> exit status, standard output, standard error."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = end.code or 0
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def plain(text: str) -> str:
    """Without tyro's frames (of dashes where the terminal is ASCII) and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]|-{9,}", " ", text).split())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of a few steps."""
    out = tmp_path_factory.mktemp("compare") / "out"
    arguments = ["compare", "--steps", "2", "--seeds", "2", "--device", "cpu", "--out", str(out)]
    assert cli.main(arguments) == 0
    return out, arguments


def test_compare_writes_figure_and_data(compared):
    out, _ = compared
    data = json.loads((out / "comparison.json").read_text())
    assert [row["model"] for row in data["models"]] == ["dense-active", "dense-total", "moe"]
    assert data["seeds"] == 2
    assert data["machine"]["threads"] >= 1
    assert set(data["models"][0]["flops"]) == {"all", "programming", "physics", "graphs", "reference"}
    assert data["verdict"].startswith("Against dense-active the mixture ")
    assert (out / "comparison.png").stat().st_size > 10_000


def test_compared_models_read_the_same_batches_of_the_same_text(compared):
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


def test_sample_is_reproducible(compared, capsys):
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
        (["compare", "--device", "tpu"], "device 'tpu' is not available; choose one of"),
        (["compare", "--data", "nowhere"], "'nowhere' is neither a folder nor a domain"),
        (["train", "--model.context", "100000"], "a sequence needs context + 1 (100001)"),
        (["train", "--model.vocab-size", "10"], "vocab_size (10) must be at least 256"),
        (["train", "--out", __file__], "is a file; --out must be a folder"),
        (["sample", "--run", "nowhere"], "nowhere holds no checkpoint; train one with"),
        (["sample", "--top-p", "2"], "top_p (2.0)"),
        (["sample", "--prompt", ""], "--prompt is empty"),
    ],
)
def test_errors_end_in_one_line_with_a_remedy(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = call(capsys, *arguments)
    assert status == 1
    assert message in error
    assert error.startswith("minimoe: error: ")
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())  # and nothing was written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--seeds", "many"], "--seeds: invalid literal for int"),
        (["compare", "--seeeds", "3"], "Unrecognized options: --seeeds, 3 Perhaps you meant: --seeds"),
        (["sample", "--seeds", "3"], "Perhaps you meant: --seed INT"),
        (["compare", "--preset", "huge"], "invalid choice 'huge' for argument '--preset'. Expected one of"),
        (["train", "--model.n-experts", "8", "--model.top-k", "9"], "model: top_k (9) must be between 1 and"),
        (["train", "--train.lr", "-1"], "train: lr (-1.0) and clip (1.0) must be above 0"),
        (["experiment"], "Missing from minimoe experiment"),
        (["comprae"], "there is no command 'comprae'; did you mean compare?"),
        (["--seeds", "3"], "there is no command '--seeds'; choose one of compare, "),
    ],
)
def test_wrong_flags_are_named_with_a_remedy(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = call(capsys, *arguments)
    assert status == 2
    assert message in plain(error)
    if arguments[0] in cli.COMMANDS:
        assert f"minimoe {arguments[0]} --help" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_overview_has_every_command_and_where_to_start(capsys, arguments):
    status, text, error = call(capsys, *arguments)
    assert (status, error) == (0, "")
    lines = text.splitlines()
    for name in cli.COMMANDS:
        assert [line for line in lines if line.startswith(f"  {name} ")], name
    assert "Start with: minimoe compare" in text
    assert "tutorials" in text
    assert max(map(len, lines)) <= 90


def test_the_version(capsys):
    assert call(capsys, "--version") == (0, f"minimoe {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--version"], ["nonsense"]])
def test_what_needs_no_command_loads_no_torch(arguments):
    program = f"import sys; from minimoe.cli.main import main; main({arguments}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "minimoe.cli.main" in done.stdout.split()
    assert not {"torch", "tyro", "rich", "matplotlib"} & set(done.stdout.split())


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_a_shared_flag_means_the_same_in_every_command(name):
    """A command may redeclare the default and the help text of one that it inherits, but not its name."""
    classes = [value for value in vars(options).values() if isinstance(value, type)]
    owners = {name: base for base in classes for name in inspect.get_annotations(base)}
    assert set(owners) == {
        "seeds", "data", "device", "threads", "out", "resume", "overwrite", "json", "debug"
    }  # fmt: skip
    command = load_command(name)
    for field in dataclasses.fields(command):
        assert issubclass(command, owners.get(field.name, object)), field.name
    assert issubclass(command, options.DebugOption)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_messages_on_any_terminal(encoding):
    program = [sys.executable, "-m", "minimoe", "cost", "--prise", "3"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "Unrecognized options: --prise, 3" in done.stderr
    assert "--price" in done.stderr


def test_a_closed_pipe_is_no_error():
    """``minimoe --help | head``, where the reader ends before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "minimoe", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_too_little_text_is_refused_before_the_folder_is_claimed(capsys, tmp_path):
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


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_help_explains_every_flag(capsys, command):
    status, text, _ = call(capsys, command, "--help")
    assert status == 0
    assert f"usage: minimoe {command}" in text
    words = plain(text)
    assert "show the traceback of an error" in words
    if command == "train":
        assert "routed experts" in words
        assert "peak learning rate" in words
