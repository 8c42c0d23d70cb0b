"""Verification: a run is repeated from its executed notebook, and differences are named."""

import nbformat
import pytest

from helpers import batch, cli, notebooks, plan, verify


@pytest.fixture
def executed(toy_folder, tmp_path):
    """The executed notebook of one run."""
    overrides = {"step": ["2"]}
    (run,) = plan.make_plan(["toy"], seeds=[3], overrides=overrides, out=tmp_path / "out")
    assert batch.execute([run])[0].outcome == "ok"
    return run.path(".ipynb")


def test_the_same_checkout_agrees(executed, capsys):
    assert cli.main(["verify", str(executed)]) == 0
    shown = capsys.readouterr().out
    assert "The claims agree." in shown
    assert "differs" not in shown


def test_a_changed_verdict_and_source_are_named(executed, toy_folder):
    notebook = notebooks.read("toy")
    notebook.cells[3].source = notebook.cells[3].source.replace("add(seed, step)", "add(seed, -1)")
    nbformat.write(notebook, toy_folder / "toy.ipynb")
    found = verify.verify(executed)
    assert not found.agrees
    assert ("C1", "reproduced", "not reproduced") in found.claims
    assert ("C2", "not testable at this scale", "not testable at this scale") in found.claims
    assert "key" in {name for name, _, _ in found.provenance}


def test_other_provenance_is_listed(executed):
    notebook = nbformat.read(executed, as_version=4)
    about = notebook.metadata["reproduce"]
    about["packages"]["torch"] = "1.0"
    about["hardware"]["cpus"] = 999
    nbformat.write(notebook, executed)
    found = verify.verify(executed)
    assert found.agrees
    rows = {name: (then, now) for name, then, now in found.provenance}
    assert rows["packages.torch"][0] == "1.0"
    assert rows["hardware.cpus"][0] == "999"


def test_a_run_that_fails_now_does_not_agree(executed, toy_folder):
    notebook = notebooks.read("toy")
    notebook.cells[3].source = "raise ValueError('broken since')"
    nbformat.write(notebook, toy_folder / "toy.ipynb")
    found = verify.verify(executed)
    assert not found.agrees
    assert "broken since" in found.outcome.message
    assert cli.main(["verify", str(executed)]) == 1


def test_only_executed_notebooks_can_be_verified(executed, toy_folder, tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path / "none.ipynb")]) == 2
    assert cli.main(["verify", str(toy_folder / "toy.ipynb")]) == 2
    assert "has no provenance" in capsys.readouterr().err


def test_parameters_are_checked_like_typed_ones(executed):
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata["reproduce"]["parameters"]["step"] = "__import__('os')"
    nbformat.write(notebook, executed)
    with pytest.raises(ValueError, match="step must be int"):
        verify.verify(executed)
    notebook.metadata["reproduce"]["parameters"] = {"step": 1}
    nbformat.write(notebook, executed)
    with pytest.raises(ValueError, match=r"new parameters since: .*seed"):
        verify.verify(executed)


def test_settings_are_recorded(executed):
    about = nbformat.read(executed, as_version=4).metadata["reproduce"]
    assert about["settings"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert len(about["data"]) == 64
