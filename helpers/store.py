"""Refresh the outputs stored in notebooks/ from a finished run of the default parameters."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
from PIL import Image

from helpers import ROOT, files, notebooks, report
from helpers.plan import Run

WIDGET = "application/vnd.jupyter.widget-view+json"
LARGE = 150_000  # bytes of a picture that is stored as it is


def store(run: Run) -> Path:
    """Copy outputs of a finished default run into the notebook, cleaned; return its path.

    Kept: outputs and execution counts. Dropped: timing metadata, widget views (they mean nothing
    without a kernel; the static figure stands beside them). The README picture is refreshed.

    Raises:
        ValueError: the run is not of the defaults, the notebook changed since, or an output is a
            warning, an error or names a folder of this machine.
    """
    if run.overrides or run.profile != "smoke":
        raise ValueError(f"{run.stem} is not a run of the default parameters")
    path = notebooks.path_of(run.notebook)
    notebook, executed = notebooks.read(path), notebooks.read(run.path(".ipynb"))
    if [c.source for c in notebook.cells] != [c.source for c in executed.cells]:
        raise ValueError(f"{path.name} changed while it ran; store it again")
    for number, (cell, done) in enumerate(zip(notebook.cells, executed.cells, strict=True)):
        cell.metadata.pop("execution", None)
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs = clean(done.outputs, f"{path.name}, cell {number}")
            cell.execution_count = done.execution_count
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    files.write_atomic(path, (nbformat.writes(notebook, indent=1).rstrip("\n") + "\n").encode())
    if png := report.picture(notebook):
        pictures = notebooks.FOLDER / "pictures"
        pictures.mkdir(exist_ok=True)
        files.write_atomic(pictures / f"{run.notebook}.png", report.png_bytes(png))
    return path


def clean(outputs: list, where: str) -> list:
    """The outputs without widget views; large pictures in fewer colours.

    Raises:
        ValueError: an output is a warning or an error, or names a folder of this machine.
    """
    kept = [output for output in outputs if WIDGET not in output.get("data", {})]
    for output in kept:
        if png := output.get("data", {}).get("image/png"):
            output["data"]["image/png"] = smaller(png)
        text = str({k: v for k, v in output.items() if k != "data"})
        text += "".join(str(v) for k, v in output.get("data", {}).items() if "image" not in k)
        if output.output_type == "error" or output.get("name") == "stderr":
            raise ValueError(f"{where}: not stored, its output is {text[:300]}")
        for folder in {str(ROOT), str(Path.home())} - {"/"}:
            if folder in text:
                raise ValueError(f"{where}: not stored, an output names the folder {folder}")
    return kept


def smaller(encoded: str) -> str:
    """A PNG (base64) in 256 colours when it is larger than LARGE, else as it is.

    Photographs in a figure are otherwise most of a notebook's size.
    """
    content = base64.b64decode(encoded)
    if len(content) <= LARGE:
        return encoded
    reduced = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").quantize(256).save(reduced, "PNG", optimize=True)
    return base64.b64encode(reduced.getvalue()).decode()
