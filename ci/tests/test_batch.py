"""Planning and executing runs for real, on the toy notebook: outcomes, atomicity, resuming."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from PIL import Image

from helpers import batch, claims, files, notebooks, plan, report, store


def plan_toy(out, seeds=None, **overrides):
    texts = {name: [str(value)] for name, value in overrides.items()}
    return plan.make_plan(["toy"], seeds=seeds, overrides=texts, out=out)


def store_toy(folder, out):
    (run,) = plan_toy(out)
    (outcome,) = batch.execute([run], fresh=True)
    assert outcome.outcome == batch.CLAIM_CHANGED  # nothing is stored yet
    store.store(run)


# -- planning --------------------------------------------------------------------------------------


def test_plan_is_the_product_of_seeds_and_values(toy_folder, tmp_path):
    runs = plan.make_plan(["toy"], seeds=[0, 1], overrides={"step": ["2", "-3"]}, out=tmp_path)
    assert [(r.parameters["seed"], r.parameters["step"]) for r in runs] == [
        (0, 2), (0, -3), (1, 2), (1, -3),
    ]  # fmt: skip
    assert len({r.stem for r in runs}) == 4
    assert not any(r.comparable for r in runs)
    assert all(r.comparable for r in plan_toy(tmp_path, seeds=[0, 4]))


def test_profile_sets_parameters_and_overrides_win(toy_folder, tmp_path):
    (run,) = plan.make_plan(["toy"], profile="gpu", out=tmp_path)
    assert run.parameters["step"] == 2
    assert not run.comparable
    (run,) = plan.make_plan(["toy"], profile="gpu", overrides={"step": ["4"]}, out=tmp_path)
    assert run.parameters["step"] == 4


def test_texts_are_read_in_the_declared_type(toy_folder, tmp_path):
    (run,) = plan_toy(tmp_path, pattern="2:30", rates="[0.5]", retrain="True")
    assert run.parameters["pattern"] == "2:30"  # YAML would read a number to the base of 60
    assert run.parameters["rates"] == [0.5]
    assert run.parameters["retrain"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"names": ["tooy"]}, "did you mean 'toy'"),
        ({"profile": "gpuu"}, "did you mean 'gpu'"),
        ({"profile": "paper"}, r"profiles/paper/toy.yaml: toy has no parameter 'stepp'"),
        ({"overrides": {"stepp": ["1"]}}, "did you mean 'step'"),
        ({"overrides": {"step": ["one"]}}, "must be int, got 'one'"),
        ({"overrides": {"step": ["1.5"]}}, "must be int, got 1.5"),
        ({"overrides": {"step": ["99"]}}, r"in \[-5\.\.5\]"),
        ({"seeds": [-1]}, r"in \[0\.\.\]"),
    ],
)
def test_a_wrong_plan_is_refused(toy_folder, tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        plan.make_plan(**{"names": ["toy"], "out": tmp_path} | arguments)


def test_missing_data_root_is_refused(toy_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plan_toy(tmp_path, data_root=tmp_path / "nowhere")


def test_key_changes_with_sources_and_parameters_only(toy_folder, tmp_path):
    one, two = (plan_toy(tmp_path, step=step)[0] for step in (1, 2))
    key = plan.key(one)
    assert key != plan.key(two)
    notebook = notebooks.read("toy")
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="hello")]
    nbformat.write(notebook, toy_folder / "toy.ipynb")
    assert plan.key(one) == key
    notebook.cells[3].source += "\n# changed"
    nbformat.write(notebook, toy_folder / "toy.ipynb")
    assert plan.key(one) != key


# -- executing -------------------------------------------------------------------------------------


def test_every_way_to_end_has_its_word(toy_folder, tmp_path):
    runs = [
        *plan_toy(tmp_path, seeds=[1], step=2),
        *plan_toy(tmp_path, mode="raise"),
        *plan_toy(tmp_path, mode="die"),
        *plan_toy(tmp_path, mode="sleep"),
    ]
    outcomes = batch.execute(runs, jobs=2, timeout=15)
    assert [o.outcome for o in outcomes] == ["ok", "error", "kernel died", "timeout"]
    assert outcomes[1].message == "cell 4: RuntimeError: asked to fail"
    good, *bad = runs
    assert claims.from_notebook(nbformat.read(good.path(".ipynb"), 4))[0]["measured"] == "3"
    for run in bad:
        assert not run.path(".ipynb").exists()
        assert not run.path(".json").exists()
        kept = nbformat.read(run.path(".failed.ipynb"), 4)
        assert kept.metadata["reproduce"]["outcome"] in ("error", "kernel died", "timeout")
    outputs = [o for c in nbformat.read(bad[0].path(".failed.ipynb"), 4).cells
               for o in c.get("outputs", [])]  # fmt: skip
    assert any(o.output_type == "error" and o.ename == "RuntimeError" for o in outputs)
    assert not list(tmp_path.glob(".*part*"))


def test_provenance_and_record(toy_folder, tmp_path):
    (run,) = plan_toy(tmp_path, seeds=[5], step=2)
    batch.execute([run])
    about = nbformat.read(run.path(".ipynb"), 4).metadata["reproduce"]
    record = json.loads(run.path(".json").read_text())
    assert about["key"] == record["key"] == plan.key(run)
    assert record["sha256"] == files.sha256(run.path(".ipynb"))
    assert about["parameters"]["seed"] == 5
    assert about["overrides"] == {"seed": 5, "step": 2}
    assert about["peak_memory"] > 20 * 2**20
    assert {"torch", "timm", "papermill"} <= set(about["packages"])
    assert set(about["git"]) == {"commit", "dirty"}
    assert about["hardware"]["cpus"] >= 1


@pytest.mark.parametrize("damage", ["record gone", "record cut", "notebook changed", "other key"])
def test_only_a_sound_record_counts_as_done(toy_folder, tmp_path, damage):
    (run,) = plan_toy(tmp_path, seeds=[1], step=2)
    batch.execute([run])
    (again,) = batch.execute([run])
    assert again.resumed
    assert again.outcome == "ok"
    record = run.path(".json")
    if damage == "record gone":
        record.unlink()
    elif damage == "record cut":
        record.write_text(record.read_text()[:50])
    elif damage == "notebook changed":
        run.path(".ipynb").write_text(run.path(".ipynb").read_text() + " ")
    else:
        record.write_text(record.read_text().replace(plan.key(run), "0" * 64))
    assert plan.finished(run, plan.key(run)) is None


def test_a_failed_rerun_keeps_the_earlier_result(toy_folder, tmp_path):
    (run,) = plan_toy(tmp_path, seeds=[1], step=2)
    batch.execute([run])
    before = run.path(".ipynb").read_bytes()
    notebook = notebooks.read("toy")
    notebook.cells[3].source = "raise ValueError('new bug')"
    nbformat.write(notebook, toy_folder / "toy.ipynb")
    (outcome,) = batch.execute([run])
    assert (outcome.outcome, outcome.resumed) == ("error", False)
    assert run.path(".ipynb").read_bytes() == before
    assert run.path(".failed.ipynb").exists()


def test_two_runs_with_one_output_are_refused(toy_folder, tmp_path):
    with pytest.raises(ValueError, match="same output"):
        batch.execute(plan_toy(tmp_path) * 2)
    with pytest.raises(ValueError, match="jobs"):
        batch.execute(plan_toy(tmp_path), jobs=0)


def test_a_killed_batch_resumes_where_it_stopped(toy_folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "helpers.cli", "toy", "--seeds", "1-3", "--out", str(out)]
    first = subprocess.Popen([*command, "-p", "step=2"], stdout=subprocess.PIPE, text=True)
    runs = plan_toy(out, seeds=[1, 2, 3], step=2)
    deadline = time.monotonic() + 60
    while not runs[0].path(".json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, left = psutil.wait_procs(children, timeout=15)
    assert not left  # worker and kernel follow a batch that was killed
    assert plan.finished(runs[0], plan.key(runs[0]))
    assert not plan.finished(runs[2], plan.key(runs[2]))
    done = subprocess.run([*command, "-p", "step=2"], capture_output=True, text=True, check=True)
    assert "3 ok (1 finished before)" in done.stdout
    assert all(plan.finished(run, plan.key(run)) for run in runs)


def test_sigterm_cancels_cleanly(toy_folder, tmp_path):
    command = [sys.executable, "-m", "helpers.cli", "toy", "-p", "mode=sleep", "--seeds", "0-1"]
    batch_ = subprocess.Popen([*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    (part,) = [run.part for run in plan_toy(tmp_path, seeds=[0], mode="sleep")]
    deadline = time.monotonic() + 60
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    batch_.send_signal(signal.SIGTERM)
    out, _ = batch_.communicate(timeout=60)
    assert batch_.returncode == 130
    assert "2 cancelled" in out
    assert not list(tmp_path.glob("toy*.json"))


# -- the folder ------------------------------------------------------------------------------------


def test_one_batch_a_folder(tmp_path):
    with (
        batch.folder_lock(tmp_path),
        pytest.raises(BlockingIOError, match="another batch"),
        batch.folder_lock(tmp_path),
    ):
        pass
    with batch.folder_lock(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PermissionError, match="cannot write"),
        batch.folder_lock(tmp_path / "file" / "out"),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write"), batch.folder_lock(tmp_path):
        pass


# -- stored outputs --------------------------------------------------------------------------------


def test_stored_verdicts_are_compared(toy_folder, tmp_path):
    store_toy(toy_folder, tmp_path / "store")
    (same,) = batch.execute(plan_toy(tmp_path / "a", seeds=[3]))
    assert same.outcome == "ok"
    notebook = notebooks.read("toy")
    rows = notebook.cells[4].outputs[0]["data"][claims.MIME]["claims"]
    rows[0]["verdict"] = "not reproduced"
    nbformat.write(notebook, toy_folder / "toy.ipynb")
    (changed,) = batch.execute(plan_toy(tmp_path / "b"))
    assert changed.outcome == "claim changed"
    assert changed.message == "C1: reproduced (stored: not reproduced)"
    (other,) = batch.execute(plan_toy(tmp_path / "c", step=-1))
    assert other.outcome == "ok"  # other parameters, other verdicts


def test_stored_outputs_are_clean_and_repeatable(toy_folder, tmp_path):
    store_toy(toy_folder, tmp_path / "store")
    first = (toy_folder / "toy.ipynb").read_text()
    assert str(Path.home()) not in first.replace(str(Path("/")), "/")
    for word in ("papermill", "execution_state", "iopub", '"started'):
        assert word not in first
    (run,) = plan_toy(tmp_path / "again")
    batch.execute([run], fresh=True)
    store.store(run)
    assert (toy_folder / "toy.ipynb").read_text() == first
    notebook = notebooks.read("toy")
    assert [c.execution_count for c in notebook.cells if c.cell_type == "code"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (nbformat.v4.new_output("stream", name="stderr", text="UserWarning: careful"), "careful"),
        (nbformat.v4.new_output("error", ename="E", evalue="v", traceback=["t"]), "'E'"),
        (nbformat.v4.new_output("stream", text=f"saved to {Path.home()}/x"), "names the folder"),
    ],
)
def test_unclean_outputs_are_not_stored(output, words):
    with pytest.raises(ValueError, match=words):
        store.clean([output], "toy, cell 3")


def test_widget_views_are_dropped():
    view = nbformat.v4.new_output("display_data", {store.WIDGET: {}, "text/plain": "IntSlider"})
    picture = nbformat.v4.new_output("display_data", {"image/png": "AAAA"})
    assert store.clean([view, picture], "toy") == [picture]


def test_large_pictures_are_stored_in_fewer_colours():
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    (kept,) = store.clean([nbformat.v4.new_output("display_data", {"image/png": encoded})], "toy")
    with Image.open(io.BytesIO(base64.b64decode(kept["data"]["image/png"]))) as image:
        assert image.size == (300, 300)
        assert len(image.getcolors()) <= 256
        difference = np.asarray(image.convert("RGB"), dtype=float) - noise
    assert np.abs(difference).mean() < 30
    assert len(kept["data"]["image/png"]) < len(encoded) / 2


def test_a_run_of_other_parameters_is_not_stored(toy_folder, tmp_path):
    with pytest.raises(ValueError, match="default parameters"):
        store.store(plan_toy(tmp_path, step=2)[0])


# -- the report ------------------------------------------------------------------------------------


def test_report_shows_runs_claims_and_failures(toy_folder, tmp_path):
    runs = [*plan_toy(tmp_path, seeds=[0, 1], step=-1), *plan_toy(tmp_path, mode="raise")]
    runs += plan_toy(tmp_path, seeds=[2], step=3)
    batch.execute(runs, jobs=2)
    page = report.write(tmp_path).read_text()
    assert "Toy: a notebook for tests" in page
    assert "not reproduced 2/2" in page  # the two repetitions of one setting
    assert "smoke, step = 3" in page
    assert "RuntimeError: asked to fail" in page
    assert page.count("data:image/png;base64") == 1
    for run in runs[:2]:
        assert f'href="{run.stem}.html"' in page
        assert "C2  not testable at this scale" in run.path(".html").read_text()
    rows = (tmp_path / "claims.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 2
    assert rows[0].startswith("notebook,profile,seed,overrides,claim,verdict")


def test_report_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no executed notebook"):
        report.write(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        report.write(tmp_path / "nowhere")
