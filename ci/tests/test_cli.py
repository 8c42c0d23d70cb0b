"""The command as a user types it: exit codes, messages, output files."""

import subprocess
import sys

import pytest

from helpers import batch, cli, plan


def reproduce(*arguments):
    command = [sys.executable, "-m", "helpers.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tooy"], "no notebook 'tooy', did you mean 'toy'?"),
        (["toy", "--profile", "huge"], "no profile 'huge'"),
        (["toy", "-p", "stepp=1"], "no parameter 'stepp', did you mean 'step'?"),
        (["toy", "-p", "step"], "-p takes KEY=VALUE, got 'step'"),
        (["toy", "-p", "step=abc"], "step must be int"),
        (["toy", "--seeds", "3-1"], "seeds look like 0-2 or 0,3,5"),
        (["toy", "--store", "-p", "step=2"], "--store keeps the outputs of the default"),
        (["toy", "--jobs", "0"], "jobs must be at least 1"),
        (["toy", "--jobs", "many"], "invalid int value"),
        (["toy", "--outt", "x"], "unrecognized arguments"),
        (["report", "nowhere"], "no folder"),
        (["ledger", "nowhere"], "no folder"),
        (["list", "tooy"], "no notebook"),
    ],
)
def test_wrong_use_is_one_clear_line_and_exit_2(toy_folder, tmp_path, arguments, words):
    done = reproduce(*arguments, *(["--out", tmp_path / "out"] if arguments[0] == "toy" else []))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*.ipynb"))


def test_an_output_folder_that_cannot_be_made(toy_folder, tmp_path):
    (tmp_path / "file").write_text("")
    done = reproduce("toy", "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert "cannot write to" in done.stderr


def test_two_batches_cannot_share_a_folder(toy_folder, tmp_path):
    with batch.folder_lock(tmp_path):
        done = reproduce("toy", "--out", tmp_path)
    assert done.returncode == 2
    assert "another batch is writing to" in done.stderr
    assert not list(tmp_path.glob("toy*"))


def test_store_then_run_ends_well(toy_folder, tmp_path):
    stored = reproduce("--store", "--out", tmp_path / "store")
    assert stored.returncode == 0, stored.stderr
    assert (toy_folder / "pictures" / "toy.png").read_bytes().startswith(b"\x89PNG")
    done = reproduce("--seeds", "0-1", "--jobs", "2", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout
    assert "reproduced 2/2" in done.stdout
    assert "2 ok" in done.stdout
    assert (tmp_path / "out" / "index.html").exists()
    assert "[2/2] toy.seed-" in done.stdout


def test_a_failed_run_does_not_stop_the_others_and_exits_1(toy_folder, tmp_path):
    done = reproduce("toy", "-p", "mode=raise", "-p", "mode=plain", "--out", tmp_path)
    assert done.returncode == 1
    assert "toy.mode-raise: error cell 4: RuntimeError: asked to fail" in done.stdout
    assert "1 ok, 1 error" in done.stdout


def test_list(toy_folder):
    papers = reproduce("list").stdout
    assert "2601.00001" in papers
    paper = reproduce("list", "toy").stdout
    assert "list[float]" in paper
    assert "what is added [-5..5]" in paper


@pytest.mark.parametrize(
    ("words", "code"),
    [(["ok"], 0), (["ok", "error"], 1), (["claim changed"], 1), (["ok", "cancelled"], 130)],
)
def test_exit_code(words, code):
    run = plan.Run("toy", "smoke", {}, {}, "")
    assert cli.exit_code([batch.Outcome(run, word) for word in words]) == code
