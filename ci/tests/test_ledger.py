"""The ledger keeps outcomes above smoke scale; the README's table is generated from it."""

import json

import pytest

from helpers import batch, ledger, plan


@pytest.fixture
def ledger_folder(toy_folder, tmp_path):
    planned = "- {title: Later, arxiv: '2602.00002', claim: better}\n"
    (toy_folder / "planned.yaml").write_text(planned)
    (tmp_path / "README.md").write_text(f"# x\n{ledger.BEGIN}\nold\n{ledger.END}\nend\n")
    return tmp_path


def test_ledger_and_status_table(ledger_folder):
    out = ledger_folder / "out"
    runs = plan.make_plan(["toy"], profile="gpu", seeds=[0, 1], overrides={"step": ["3"]}, out=out)
    batch.execute(runs, jobs=2)
    (path,) = ledger.collect(out)
    assert path == ledger_folder / "data" / "results" / "toy.gpu.json"
    assert ledger.collect(out) == [path]  # the same runs again replace themselves
    kept = json.loads(path.read_text())
    assert [entry["parameters"]["seed"] for entry in kept] == [0, 1]
    assert kept[0]["claims"][0]["measured"] == "3"
    assert "data_root" not in kept[0]["parameters"]
    assert str(ledger_folder) not in path.read_text()
    assert ledger.update_readme()
    assert not ledger.update_readme()
    table = ledger_folder.joinpath("README.md").read_text()
    assert "old" not in table
    assert "2 reproduced, 2 not testable (over 2 runs)" in table
    assert "with other `step`" in table
    assert "| Later [2602.00002]" in table
    assert "not yet | not yet | not yet" in table


def test_smoke_runs_do_not_enter(ledger_folder):
    out = ledger_folder / "out"
    batch.execute(plan.make_plan(["toy"], out=out))
    with pytest.raises(ValueError, match="no finished run"):
        ledger.collect(out)
    assert not (ledger_folder / "data").exists()


def test_readme_without_marks(ledger_folder):
    (ledger_folder / "README.md").write_text("# x\n")
    with pytest.raises(ValueError, match="lacks the marks"):
        ledger.update_readme()
