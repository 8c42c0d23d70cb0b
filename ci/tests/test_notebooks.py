"""Reading notebooks as files: title card, parameters, method definitions."""

import pickle
import subprocess
import sys
import traceback

import nbformat
import pytest
from conftest import METHOD, PARAMETERS, toy_notebook

from helpers import notebooks


def rewrite(folder, number, source):
    notebook = toy_notebook()
    notebook.cells[number].source = source
    nbformat.write(notebook, folder / "toy.ipynb")


def test_card(toy_folder):
    card = notebooks.card("toy")
    assert card.title == "Toy: a notebook for tests"
    assert card.arxiv == "2601.00001"
    assert card.summary == "It adds one to a number and claims that the sum is larger."
    assert card.claim == "one more is more (+1)"
    assert card.paper_scale == "adds 3"


def test_card_without_a_line_is_refused(toy_folder):
    rewrite(toy_folder, 0, "# Toy: x\n- **Paper**: [n](https://arxiv.org/abs/2601.00001)")
    with pytest.raises(ValueError, match="Claim, GPU, Paper scale, Smoke"):
        notebooks.card("toy")


def test_parameters_have_type_default_and_limits(toy_folder):
    found = notebooks.parameters("toy")
    assert list(found)[:5] == ["seed", "device", "data_root", "retrain", "step"]
    assert (found["step"].type, found["step"].default) == ("int", 1)
    assert (found["step"].low, found["step"].high) == (-5, 5)
    assert (found["seed"].low, found["seed"].high) == (0, None)
    assert found["mode"].choices == ("plain", "raise", "die", "sleep", "warn")
    assert found["pattern"].help == "N:M pattern"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stepp": 1}, "did you mean 'step'"),
        ({"step": 1.5}, "must be int, got 1.5"),
        ({"step": True}, "must be int"),
        ({"step": 6}, r"in \[-5\.\.5\], got 6"),
        ({"seed": -1}, r"in \[0\.\.\]"),
        ({"rates": [0.1, 2]}, r"in \[0\.\.1\]"),
        ({"rates": ["a"]}, r"list\[float\]"),
        ({"rates": 0.5}, r"list\[float\]"),
        ({"mode": "plane"}, "did you mean 'plain'"),
        ({"retrain": "yes"}, "must be bool"),
    ],
)
def test_wrong_values_are_refused(toy_folder, values, words):
    with pytest.raises(ValueError, match=words):
        notebooks.check_parameters("toy", values)


def test_right_values_keep_or_gain_their_type(toy_folder):
    assert notebooks.check_parameters("toy", {"rates": [0, 1], "step": -5}) == {
        "rates": [0, 1],
        "step": -5,
    }


@pytest.mark.parametrize(
    "source",
    ["seed = 0  # untyped", "seed: int = 0", "seed: set = {1}  # odd type", "seed: int = f()  # x"],
)
def test_a_parameter_line_must_be_complete(toy_folder, source):
    rewrite(toy_folder, 1, source)
    with pytest.raises(ValueError, match="toy"):
        notebooks.parameters("toy")


def test_a_default_must_keep_its_own_limits(toy_folder):
    rewrite(toy_folder, 1, "steps: int = 0  # steps [1..9]")
    with pytest.raises(ValueError, match=r"steps must be in \[1\.\.9\]"):
        notebooks.parameters("toy")


def test_load_gives_the_definitions_only(toy_folder):
    module = notebooks.load("toy")
    assert module.add(2, 3) == module.Sum(5)
    assert not hasattr(module, "seed")
    assert not hasattr(module, "result")
    assert notebooks.load("toy") is module
    assert pickle.loads(pickle.dumps(module.Sum(4))) == module.Sum(4)


def test_load_follows_the_file_and_shows_the_cell_in_tracebacks(toy_folder):
    notebooks.load("toy")
    rewrite(toy_folder, 2, METHOD.replace("Sum(x + step)", "Sum(x + step + undefined)"))
    with pytest.raises(NameError) as caught:
        notebooks.load("toy").add(1, 1)
    text = "".join(traceback.format_exception(caught.value))
    assert "toy.ipynb, method cell 0" in text
    assert "Sum(x + step + undefined)" in text


def test_a_notebook_that_fails_to_load_leaves_nothing_behind(toy_folder):
    rewrite(toy_folder, 2, "x = 1 / 0")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            notebooks.load("toy")
    assert "notebook_toy" not in sys.modules


@pytest.mark.parametrize("name", ["tooy", "../toy", "", "toy.ipynb"])
def test_unknown_names_are_refused(toy_folder, name):
    with pytest.raises(ValueError, match="no notebook"):
        notebooks.load(name)


def test_a_broken_file_is_named(toy_folder):
    (toy_folder / "toy.ipynb").write_text("{")
    with pytest.raises(ValueError, match="not a readable notebook"):
        notebooks.parameters("toy")


def test_papermill_reads_the_same_parameters(toy_folder):
    import papermill

    theirs = papermill.inspect_notebook(str(toy_folder / "toy.ipynb"))
    ours = notebooks.parameters("toy")
    assert list(theirs) == list(ours)
    assert {k: v["help"] for k, v in theirs.items()} == {k: v.help for k, v in ours.items()}
    assert len(ours) == len(PARAMETERS.splitlines())


def test_importing_the_package_is_light():
    heavy = "torch, matplotlib, open3d, diffusers, ray, torchmetrics, papermill, timm"
    code = (
        "import sys, helpers, helpers.notebooks, helpers.batch; "
        f"print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
