"""Runs on a real Ray cluster of several nodes on this machine; nodes and runs die for real."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from helpers import batch, cluster, notebooks, plan

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[cluster]'")

SLOW = """import os, time
from pathlib import Path
log = Path(os.environ["RUN_LOG"])
with log.open("a") as file:
    file.write(f"start {seed} {os.getpid()}\\n")
time.sleep(3)
"""


@pytest.fixture
def nodes(toy_folder, tmp_path, monkeypatch):
    """A cluster: a head without processors and two nodes with one each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RUN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    head = {"num_cpus": 0, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    workers = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made, workers
    ray.shutdown()
    made.shutdown()


def slow_toy(folder):
    notebook = notebooks.read("toy")
    notebook.cells[3].source = SLOW + notebook.cells[3].source
    nbformat.write(notebook, folder / "toy.ipynb")


def starts(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_runs_survive_the_loss_of_a_node(nodes, toy_folder, tmp_path):
    made, workers = nodes
    slow_toy(toy_folder)
    out = tmp_path / "out"
    runs = plan.make_plan(["toy"], seeds=range(4), overrides={"step": ["2"]}, out=out)
    ended, seen = [], []

    def on_event(run, event):
        seen.append((run.stem, event["event"]))
        if event["event"] == "end":
            ended.append(run.stem)
        if event["event"] == "cell" and len(starts(tmp_path)) == 2 and len(workers) == 2:
            made.remove_node(workers.pop(), allow_graceful=False)  # in the middle of a run
            made.add_node(num_cpus=1)

    outcomes = cluster.execute(runs, address=made.address, timeout=120, on_event=on_event)
    assert len(workers) == 1, "no node was killed"
    assert [o.outcome for o in outcomes] == ["ok"] * 4
    assert sorted(ended) == sorted(run.stem for run in runs)  # every run ended once
    assert len(starts(tmp_path)) >= 5  # the lost run started twice
    for run in runs:
        assert plan.finished(run, plan.key(run))
        assert json.loads(run.path(".json").read_text())["parameters"]["seed"] in range(4)
    assert not list(out.glob(".*part*"))
    assert ("toy.seed-0.step-2", "start") in seen
    again = batch.execute(runs)
    assert all(outcome.resumed for outcome in again)


def test_a_run_that_fails_by_itself_is_not_tried_again(nodes, toy_folder, tmp_path):
    made, _ = nodes
    slow_toy(toy_folder)
    modes = {"mode": ["raise", "die"]}
    runs = plan.make_plan(["toy"], overrides=modes, out=tmp_path / "out")
    outcomes = cluster.execute(runs, address=made.address)
    assert [o.outcome for o in outcomes] == ["error", "kernel died"]
    assert len(starts(tmp_path)) == 2
    assert runs[0].path(".failed.ipynb").exists()


def test_sigterm_stops_the_cluster_runs_and_the_batch_resumes(toy_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RUN_LOG", str(tmp_path / "log"))
    slow_toy(toy_folder)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "helpers.cli", "toy", "--out", str(out)]
    ran = ["--ray", "local", "-p", "mode=plain,sleep"]
    first = subprocess.Popen([*command, *ran], stdout=subprocess.PIPE, text=True)
    record = out / "toy.mode-plain.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (record.exists() and len(starts(tmp_path)) == 2):
        time.sleep(0.1)
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGTERM)
    shown, _ = first.communicate(timeout=90)
    assert first.returncode == 130
    assert "1 ok" in shown
    assert "1 cancelled" in shown
    assert not psutil.wait_procs(family, timeout=20)[1]  # no worker or kernel stays behind
    assert not (out / "toy.mode-sleep.json").exists()
    runs = plan.make_plan(["toy"], overrides={"mode": ["plain"]}, out=out)
    assert batch.execute(runs)[0].resumed


def test_no_cluster_at_the_address(toy_folder, tmp_path):
    runs = plan.make_plan(["toy"], out=tmp_path)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        cluster.execute(runs, address="127.0.0.1:1")
    assert time.monotonic() - start < 60
