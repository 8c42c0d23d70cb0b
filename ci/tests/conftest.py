"""Fixtures: a folder with two tiny notebooks that the runner's tests execute for real."""

from __future__ import annotations

import hypothesis
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

hypothesis.settings.register_profile("here", deadline=None)  # machines differ in speed
hypothesis.settings.load_profile("here")
torch.set_num_threads(1)  # small tensors: a second thread only waits

CARD = """# Toy: a notebook for tests
It adds one to a number and claims that the sum is larger.
- **Paper**: [Nobody, "Nothing", Nowhere 2026](https://arxiv.org/abs/2601.00001)
- **Claim**: one more is more (+1)
- **Smoke**: adds 1, one second
- **GPU**: adds 2
- **Paper scale**: adds 3
"""
PARAMETERS = """seed: int = 0  # seed of everything [0..]
device: str = "auto"  # where to compute
data_root: str = ""  # folder with external data
retrain: bool = False  # train again
step: int = 1  # what is added [-5..5]
rates: list[float] = [0.1, 0.2]  # two rates [0..1]
pattern: str = "1:4"  # N:M pattern
mode: str = "plain"  # what happens {plain, raise, die, sleep, warn}
"""
METHOD = """import dataclasses


@dataclasses.dataclass
class Sum:
    \"\"\"A number that was added to.\"\"\"

    value: int


def add(x: int, step: int) -> Sum:
    return Sum(x + step)
"""
EXPERIMENT = """import os, time
import matplotlib.pyplot as plt
if mode == "raise":
    raise RuntimeError("asked to fail\\nsecond line")
if mode == "die":
    os.kill(os.getpid(), 9)
if mode == "sleep":
    time.sleep(60)
if mode == "warn":
    import warnings
    warnings.warn("careful")
result = add(seed, step)
plt.figure(figsize=(1, 1)); plt.plot([0, result.value]); plt.show()
"""
CLAIMS = """from helpers.claims import Claims
claims = Claims("toy")
claims.check("C1", "one more is more", paper="+1", criterion="sum - seed > 0",
             measured=f"{result.value}", holds=result.value > seed)
claims.check("C2", "only at scale", paper="none", criterion="never", measured="-",
             holds=False, testable=False)
claims.table()
"""


def toy_notebook() -> nbformat.NotebookNode:
    """The toy notebook, never executed."""

    def code(source: str, *tags: str):
        return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})

    notebook = new_notebook(
        cells=[
            new_markdown_cell(CARD),
            code(PARAMETERS, "parameters"),
            code(METHOD, "method"),
            code(EXPERIMENT, "picture"),
            code(CLAIMS),
            code("claims.show()", "nbval-check-output"),
        ]
    )
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return notebook


@pytest.fixture
def toy_folder(tmp_path, monkeypatch):
    """A notebooks folder with ``toy`` (and its profiles); the runner and its workers use it."""
    from helpers import notebooks

    folder = tmp_path / "notebooks"
    for profile, text in {"gpu": "step: 2\n", "paper": "stepp: 3\n"}.items():
        (folder / "profiles" / profile).mkdir(parents=True)
        (folder / "profiles" / profile / "toy.yaml").write_text(text)
    nbformat.write(toy_notebook(), folder / "toy.ipynb")
    monkeypatch.setenv("REPRODUCE_NOTEBOOKS", str(folder))
    monkeypatch.setattr(notebooks, "FOLDER", folder)
    return folder
