"""Files that are there completely or not at all."""

import hashlib
import json
import os

import pytest

from minimoe.tools.files import checksum, flush, json_checksum, replacing, write_atomically


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    write_atomically(path, "new ±")
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["new ±"]


def test_content_is_on_disk_before_the_file_is_replaced(tmp_path, monkeypatch):
    """Or a power cut could leave the new name with no content."""
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append((tmp_path / "file").exists()) or fsync(file))
    write_atomically(tmp_path / "file", "text")
    assert flushed == [False]
    flush(tmp_path)
    assert flushed[1:] == [True] * (os.name == "posix")


def test_checksums(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"ab" * 1_000_000)  # more than one block
    assert checksum(path) == hashlib.sha256(b"ab" * 1_000_000).hexdigest()
    content = {"b": 1, "a": [1.5, None]}
    assert json_checksum(content) == json_checksum(dict(reversed(content.items())))
    assert json_checksum(content) == json_checksum(json.loads(json.dumps(content)))
    assert json_checksum(content) != json_checksum(content | {"b": 2})
