"""Outputs at an address: copied up as runs end, copied down before a batch resumes."""

import json
import shutil

import fsspec
import pytest

from helpers import cli, plan, remote


@pytest.fixture
def url(monkeypatch, tmp_path):
    """An address in fsspec's memory; its working copy lies in the test's folder."""
    monkeypatch.setattr(remote, "working_copy", lambda url: tmp_path / "copy")
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield "memory://bucket/runs"
    files.store.clear()


def names():
    return sorted(path.rpartition("/")[2] for path in fsspec.filesystem("memory").find("/"))


def test_runs_go_up_and_come_back(toy_folder, url, tmp_path, capsys):
    arguments = ["toy", "-p", "step=2", "--out", url]
    assert cli.main([*arguments, "--seeds", "0"]) == 0
    assert {"toy.seed-0.step-2.ipynb", "toy.seed-0.step-2.json", "index.html"} <= set(names())
    shutil.rmtree(tmp_path / "copy")  # another machine
    capsys.readouterr()
    assert cli.main([*arguments, "--seeds", "0-1"]) == 0
    shown = capsys.readouterr().out
    assert "2 ok (1 finished before)" in shown
    assert f"Copied to {url}" in shown
    assert "toy.seed-1.step-2.json" in names()


def test_a_failed_run_goes_up_without_a_record(toy_folder, url):
    assert cli.main(["toy", "-p", "mode=raise", "--out", url]) == 1
    assert "toy.mode-raise.failed.ipynb" in names()
    assert "toy.mode-raise.json" not in names()


def test_only_sound_records_with_this_key_come_down(toy_folder, url, tmp_path):
    cli.main(["toy", "-p", "step=2,3", "--out", url])
    shutil.rmtree(tmp_path / "copy")
    files = fsspec.filesystem("memory")
    record = json.loads(files.cat_file("/bucket/runs/toy.step-2.json"))
    files.pipe_file("/bucket/runs/toy.step-2.json", json.dumps(record | {"key": "0"}).encode())
    there = remote.Remote(url)
    runs = plan.make_plan(["toy"], overrides={"step": ["2,3"]}, out=there.local)
    there.pull(runs)
    assert not runs[0].path(".json").exists()
    assert plan.finished(runs[1], plan.key(runs[1]))


def test_an_unknown_address_is_refused():
    with pytest.raises(ValueError, match="cannot write to nonsense://x"):
        remote.Remote("nonsense://x")
    assert remote.is_url("s3://bucket/x")
    assert not remote.is_url("runs/smoke")
