"""A file is whole or absent."""

import hashlib

import pytest

from helpers import files


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_write_atomic_replaces(tmp_path):
    path = tmp_path / "a"
    files.write_atomic(path, b"one")
    files.write_atomic(path, lambda target: target.write_text("two"))
    assert path.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failing_writer_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def half(target):
        target.write_text("ha")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        files.write_atomic(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
