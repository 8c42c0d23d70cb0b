"""Faults that really happen: full disks, killed workers and kernels, memory, and the aftermath."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import nbformat
import psutil
import pytest

from helpers import batch, notebooks, plan, report


def plan_toy(out, seeds=None, **overrides):
    texts = {name: [str(value)] for name, value in overrides.items()}
    return plan.make_plan(["toy"], seeds=seeds, overrides=texts, out=out)


def change_experiment(folder, source):
    notebook = notebooks.read("toy")
    notebook.cells[3].source = source
    nbformat.write(notebook, folder / "toy.ipynb")


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of `size` mounted on a folder; skips where this is not allowed."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(["mount", *options], capture_output=True)
    except OSError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def end_one(run, part_of):
    """Kill the process whose command line holds `part_of`, as soon as the run's file is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        family = psutil.Process().children(recursive=True)
        found = [p for p in family if _is(p, part_of)]
        if found and run.part.exists():
            time.sleep(1)  # well inside the run
            found[0].kill()
            return
        time.sleep(0.05)


def _is(process, part_of):
    with contextlib.suppress(psutil.Error):
        return any(part_of in word for word in process.cmdline())
    return False


@pytest.mark.parametrize("part_of", ["helpers.worker", "ipykernel_launcher"])
def test_a_killed_worker_or_kernel_ends_one_run(toy_folder, tmp_path, part_of):
    runs = [*plan_toy(tmp_path, mode="sleep"), *plan_toy(tmp_path, seeds=[1], step=2)]
    killer = threading.Thread(target=end_one, args=(runs[0], part_of))
    killer.start()
    first, second = batch.execute(runs, jobs=1, timeout=60)
    killer.join()
    assert (first.outcome, second.outcome) == ("kernel died", "ok")
    assert first.seconds < 55  # noticed, not waited for
    assert not runs[0].path(".ipynb").exists()
    assert not runs[0].path(".json").exists()
    assert not list(tmp_path.glob(".*part*"))
    left = [p for p in psutil.Process().children(recursive=True) if _is(p, "ipykernel_launcher")]
    assert not psutil.wait_procs(left, timeout=10)[1]


def test_a_run_without_memory_fails_with_its_reason(toy_folder, tmp_path):
    change_experiment(
        toy_folder,
        "import resource\nimport numpy as np\n"
        "have = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (have + 4 * 2**30,) * 2)\n"
        "np.ones(2**33)\n",
    )
    (outcome,) = batch.execute(plan_toy(tmp_path))
    assert outcome.outcome == "error"
    assert "MemoryError" in outcome.message


def test_a_full_disk_fails_the_run_and_spoils_nothing(toy_folder, tmp_path):
    source = "import random\nfor _ in range(step * 2000):\n    print(random.randbytes(300).hex())"
    change_experiment(toy_folder, source + "\nresult = add(seed, step)\n")
    with small_disk(tmp_path / "disk", "2m") as disk:
        small = plan_toy(disk, seeds=[0], step=0)
        assert [(o.outcome, o.message) for o in batch.execute(small)] == [("ok", "")]
        before = small[0].path(".ipynb").read_bytes()
        large = plan_toy(disk, seeds=[1], step=4)
        (outcome,) = batch.execute(large)
        assert outcome.outcome == "error"
        assert "No space left" in outcome.message
        assert not large[0].path(".ipynb").exists()
        assert not large[0].path(".json").exists()
        assert small[0].path(".ipynb").read_bytes() == before
        assert plan.finished(small[0], plan.key(small[0]))
        assert not list(disk.glob(".*part*"))
        for path in disk.glob("*.ipynb"):
            nbformat.read(path, as_version=4)  # what is there is whole


def test_a_full_disk_is_one_clear_line_for_the_user(toy_folder, tmp_path):
    change_experiment(toy_folder, "print('x' * 3_000_000)")
    with small_disk(tmp_path / "disk", "2m") as disk:
        command = [sys.executable, "-m", "helpers.cli", "toy", "--out", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "No space left" in done.stdout
        assert "Traceback" not in done.stderr


def test_the_report_passes_over_files_that_were_cut_off(toy_folder, tmp_path):
    runs = plan_toy(tmp_path, seeds=[0, 1], step=2)
    batch.execute(runs)
    text = runs[0].path(".ipynb").read_text()
    runs[0].path(".ipynb").write_text(text[: len(text) // 2])
    page = report.write(tmp_path).read_text()
    assert runs[1].stem in page
    assert f"{runs[0].stem}.html" not in page
    (again, kept) = batch.execute(runs)
    assert (again.resumed, kept.resumed) == (False, True)
    assert again.outcome == "ok"


def test_a_timeout_leaves_no_process(toy_folder, tmp_path):
    (run,) = plan_toy(tmp_path, mode="sleep")
    (outcome,) = batch.execute([run], timeout=8)
    assert outcome.outcome == "timeout"
    names = ("helpers.worker", "ipykernel_launcher")
    family = psutil.Process().children(recursive=True)
    left = [p for p in family if any(_is(p, name) for name in names)]
    assert not psutil.wait_procs(left, timeout=10)[1]
    assert os.listdir(tmp_path)  # the failed notebook is kept
