"""Sweeps: typed values, plan files, the dry run, and plans of ten thousand runs."""

import json
import time
from dataclasses import replace

import pytest

from helpers import batch, cli, files, notebooks, plan, sweeps

PLAN = """
- notebooks: toy
  seeds: 0-1
  parameters:
    step: [2, 3]
    rates: [0.5, 0.6]
- profile: gpu
  parameters:
    pattern: ["1:4", "2,4"]
    rates: [[0.1], [0.2, 0.3]]
    retrain: true
"""


def values(type_, text, name="x"):
    return sweeps.parse_values(notebooks.Parameter(name, type_, None, ""), text)


@pytest.mark.parametrize(
    ("type_", "text", "expected"),
    [
        ("int", "1", [1]),
        ("int", "1,2,3", [1, 2, 3]),
        ("int", "[1, 2]", [1, 2]),
        ("float", "1e-3,2", [1e-3, 2]),
        ("bool", "True,false", [True, False]),
        ("str", "a,b", ["a", "b"]),
        ("str", '"a,b",c', ["a,b", "c"]),
        ("str", "2:30", ["2:30"]),
        ("str", "", [""]),
        ("list[int]", "[1,2]", [[1, 2]]),
        ("list[int]", "[1,2],[3]", [[1, 2], [3]]),
        ("list[str]", '["a", "b,c"]', [["a", "b,c"]]),
    ],
)
def test_texts_become_values(type_, text, expected):
    assert values(type_, text) == expected


def test_a_folder_is_never_taken_apart():
    assert values("str", "/data/a,b", "data_root") == ["/data/a,b"]


@pytest.mark.parametrize(("type_", "text"), [("int", "one"), ("int", ""), ("bool", "yes")])
def test_other_texts_are_refused(type_, text):
    with pytest.raises(ValueError, match=f"must be {type_}, got {text!r}"):
        values(type_, text)


def test_seeds_and_assignments():
    assert sweeps.seed_list("0-2") == [0, 1, 2]
    assert sweeps.seed_list("5,0,5") == [0, 5]
    assert sweeps.seed_list(7) == [7]
    assert sweeps.key_values(["a=1", "b=x=y", "a="]) == {"a": ["1", ""], "b": ["x=y"]}
    with pytest.raises(ValueError, match="seeds look like"):
        sweeps.seed_list("3-1")


def test_a_plan_file_is_the_union_of_its_products(toy_folder, tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    options = cli.run_parser().parse_args(["--plan", str(tmp_path / "plan.yaml")])
    options.out = str(tmp_path / "out")
    _, runs = cli.planned(options)
    smoke, gpu = runs[:4], runs[4:]
    assert [(r.parameters["seed"], r.parameters["step"]) for r in smoke] == [
        (0, 2), (0, 3), (1, 2), (1, 3),
    ]  # fmt: skip
    assert all(r.parameters["rates"] == [0.5, 0.6] for r in smoke)
    assert [(r.parameters["pattern"], r.parameters["rates"]) for r in gpu] == [
        ("1:4", [0.1]), ("1:4", [0.2, 0.3]), ("2,4", [0.1]), ("2,4", [0.2, 0.3]),
    ]  # fmt: skip
    assert all(r.parameters["retrain"] is True and r.parameters["step"] == 2 for r in gpu)
    assert {r.folder for r in gpu} == {str(tmp_path / "out" / "gpu")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("notebooks: toy", "must be a list of entries"),
        ("- seedz: 1", "entry 1: has no 'seedz', did you mean 'seeds'"),
        ("- notebooks: toy\n- 7", "entry 2: must have keys"),
        ("- seeds: 3-1", "entry 1: seeds look like"),
        ("- parameters: [step]", "entry 1: .*NAME: value"),
        ("- [", "plan.yaml: "),
    ],
)
def test_a_wrong_plan_file_names_the_entry(tmp_path, text, words):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        sweeps.read_plan(tmp_path / "plan.yaml")


def test_a_plan_file_replaces_the_other_options(toy_folder, tmp_path):
    options = cli.run_parser().parse_args(["toy", "--plan", "plan.yaml"])
    with pytest.raises(ValueError, match="itself"):
        cli.planned(options)
    with pytest.raises(FileNotFoundError, match="no plan file"):
        sweeps.read_plan(tmp_path / "nothing.yaml")


def test_dry_run_runs_nothing_and_says_what_is_finished(toy_folder, tmp_path, capsys):
    arguments = ["toy", "-p", "step=2,3", "--out", str(tmp_path / "out")]
    runs = plan.make_plan(["toy"], overrides={"step": ["2"]}, out=tmp_path / "out")
    pretend_finished(runs)
    assert cli.main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "2 runs: 1 would run, 1 are finished" in shown
    assert not (tmp_path / "out" / "toy.step-3.ipynb").exists()


def pretend_finished(runs):
    """Write what a finished run leaves: a notebook, and a record with its key and hash."""
    sources = plan.Sources()
    for run in runs:
        run.path(".ipynb").parent.mkdir(exist_ok=True)
        run.path(".ipynb").write_text("{}")
        record = {"key": plan.key(run, sources), "sha256": files.sha256(run.path(".ipynb"))}
        record |= {"claims": [], "seconds": 1.0}
        run.path(".json").write_text(json.dumps(record))


def test_ten_thousand_runs_are_planned_and_checked_in_seconds(toy_folder, tmp_path):
    start = time.process_time()
    runs = plan.make_plan(["toy"], seeds=range(5000), overrides={"step": ["1,2"]}, out=tmp_path)
    assert len({run.stem for run in runs}) == 10_000
    planned = time.process_time() - start
    pretend_finished(runs[::2])
    start = time.process_time()
    found = batch.resume(runs)
    checked = time.process_time() - start
    assert len(found) == 5000
    assert planned + checked < 30  # a few seconds of a processor; a quarter of an hour before


def test_a_record_of_other_parameters_is_not_taken(toy_folder, tmp_path):
    (run,) = plan.make_plan(["toy"], overrides={"step": ["2"]}, out=tmp_path)
    pretend_finished([run])
    other = replace(run, parameters=run.parameters | {"step": 3})
    assert batch.resume([run])
    assert not batch.resume([other])


# -- resources -------------------------------------------------------------------------------------


def test_resources_come_from_parameters_and_profile(toy_folder, tmp_path):
    (run,) = plan.make_plan(["toy"], out=tmp_path)
    assert run.resources == {"cpus": 1, "gpus": 0, "memory": plan.MEMORY}
    (run,) = plan.make_plan(["toy"], profile="gpu", out=tmp_path)
    assert run.resources["gpus"] == 1
    profile = toy_folder / "profiles" / "gpu" / "toy.yaml"
    profile.write_text("step: 2\nresources: {cpus: 4, gpus: 0.5}\n")
    (run,) = plan.make_plan(["toy"], profile="gpu", out=tmp_path)
    assert (run.resources["cpus"], run.resources["gpus"]) == (4, 0.5)
    (run,) = plan.make_plan(["toy"], profile="gpu", overrides={"device": ["cpu"]}, out=tmp_path)
    assert run.resources["gpus"] == 0.5
    assert plan.default_resources("paper", {"processes": 4, "threads": 2}) == {
        "cpus": 8, "gpus": 4, "memory": plan.MEMORY,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"memory": "32e9"}, "such as 32 GiB"),
        ({"gpu": 1}, "no 'gpu'"),
        ({"gpus": -1}, "from 0"),
        ({"cpus": "two"}, "must be a number"),
    ],
)
def test_wrong_resources(asked, words):
    with pytest.raises(ValueError, match=words):
        plan.check_resources(asked)


def test_memory_in_gibibytes():
    assert plan.check_resources({"memory": "32 GiB"}) == {"memory": 32 * 2**30}
    assert plan.check_resources({"memory": 5e9}) == {"memory": 5e9}
