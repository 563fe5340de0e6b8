"""Folders of runs: what is refused, resumed and replaced."""

import json

import pytest

from minimoe.tools.run_dir import FORMAT, close_folder, holds_run, open_folder


def test_a_run_s_folder_is_claimed_and_never_overwritten_silently(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="holds no run to resume"):
        open_folder(out, {"lr": 1}, resume=True)
    open_folder(out, {"lr": 1})
    with pytest.raises(ValueError, match="interrupted run; add --resume"):
        open_folder(out, {"lr": 1})
    with pytest.raises(ValueError, match="made with lr = 1, now it is 2"):
        open_folder(out, {"lr": 2}, resume=True)
    open_folder(out, {"lr": 1}, resume=True)
    close_folder(out)
    with pytest.raises(ValueError, match="holds a finished run"):
        open_folder(out, {"lr": 1}, resume=True)
    (out / "old").touch()
    open_folder(out, {"lr": 3}, overwrite=True)
    assert not (out / "old").exists()
    with pytest.raises(ValueError, match="choose one"):
        open_folder(out, {"lr": 3}, resume=True, overwrite=True)


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match="not empty and holds no run of minimoe"):
            open_folder(tmp_path, {}, **flags)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("written", "age"), [({}, "an older"), ({"format": FORMAT - 1}, "an older"), ({"format": 99}, "a newer")]
)
def test_a_folder_of_another_version_is_refused_with_the_remedy(tmp_path, written, age, finished):
    out = tmp_path / "run"
    out.mkdir()
    text = json.dumps({"finished": finished, "settings": {"lr": 1}} | written)
    (out / "run.json").write_text(text)
    for resume in (False, True):
        with pytest.raises(ValueError, match=f"run was written by {age} version of minimoe .*--overwrite"):
            open_folder(out, {"lr": 1}, resume=resume)
    assert (out / "run.json").read_text() == text
    open_folder(out, {"lr": 1}, overwrite=True)
    assert json.loads((out / "run.json").read_text())["format"] == FORMAT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"finished": true}', '{"finished": true, "settings": 3}'])
def test_a_damaged_run_file_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        open_folder(tmp_path, {})


def test_settings_are_compared_as_json_stores_them(tmp_path):
    open_folder(tmp_path / "run", {"model": {"sizes": (1, 2)}})
    open_folder(tmp_path / "run", {"model": {"sizes": (1, 2)}}, resume=True)
    assert holds_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"run was made with model\.sizes = \[1, 2\], now it is \[1, 3\];"):
        open_folder(tmp_path / "run", {"model": {"sizes": (1, 3)}}, resume=True)
    close_folder(tmp_path / "run")
    assert not holds_run(tmp_path / "run")
