"""The gallery: index.html and claims.csv from a folder of executed notebooks, and their pages."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from helpers import claims, files

TEMPLATE = Path(__file__).with_name("report.html.j2")
CSV_COLUMNS = (
    "notebook", "profile", "seed", "overrides", "claim", "verdict", "measured", "criterion",
    "paper", "key",
)  # fmt: skip


@dataclass(frozen=True)
class Executed:
    """One executed notebook of the folder, finished or failed."""

    path: Path
    about: dict[str, Any]
    claims: list[dict[str, str]]
    picture: str
    title: str

    @property
    def page(self) -> Path:
        """Its HTML page, beside it."""
        return self.path.with_suffix(".html")


def write(folder: Path) -> Path:
    """Write claims.csv, a page a notebook and index.html; return the path of index.html.

    Raises:
        FileNotFoundError: no such folder, or no executed notebook in it.
    """
    import jinja2

    folder = Path(folder).resolve()
    found = scan(folder)
    for executed in found:
        _page(executed)
    files.write_atomic(folder / "claims.csv", to_csv(found).encode())
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    papers = [
        paper_entry([e for e in found if e.about["notebook"] == name], folder)
        for name in sorted({e.about["notebook"] for e in found})
    ]
    html = template.render(papers=papers, verdicts=claims.VERDICTS)
    files.write_atomic(folder / "index.html", html.encode())
    return folder / "index.html"


def scan(folder: Path) -> list[Executed]:
    """The executed notebooks below a folder, in the order of their names.

    Raises:
        FileNotFoundError: no such folder, or no executed notebook in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; run 'reproduce' first")
    found = []
    for path in sorted(folder.rglob("*.ipynb")):
        if path.name.startswith("."):
            continue
        notebook = nbformat.read(path, as_version=4)
        about = notebook.metadata.get("reproduce")
        if about is None:
            continue
        about = {"notebook": path.name.split(".")[0], "outcome": "ok"} | dict(about)
        title = notebook.cells[0].source.split("\n")[0].lstrip("# ")
        found.append(
            Executed(path, about, claims.from_notebook(notebook), picture(notebook), title)
        )
    if not found:
        raise FileNotFoundError(f"no executed notebook in {folder}; run 'reproduce' first")
    return found


def picture(notebook) -> str:
    """The first PNG (base64) of the cell tagged ``picture``, or an empty string."""
    for cell in notebook.cells:
        if "picture" in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                if png := output.get("data", {}).get("image/png"):
                    return png.replace("\n", "")
    return ""


def to_csv(found: list[Executed]) -> str:
    """All claims of all finished runs, one a row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for executed in found:
        about = executed.about
        for row in executed.claims:
            writer.writerow(
                [
                    about["notebook"], about.get("profile", ""),
                    about.get("parameters", {}).get("seed", ""),
                    json.dumps(about.get("overrides", {})), row["id"], row["verdict"],
                    row["measured"], row["criterion"], row["paper"], about.get("key", ""),
                ]
            )  # fmt: skip
    return text.getvalue()


def paper_entry(runs: list[Executed], folder: Path) -> dict[str, Any]:
    """What the template shows of one paper."""
    best = next((run for run in runs if run.claims), runs[0])
    rows = {row["id"]: row for run in runs for row in run.claims}
    done = sum(bool(run.claims) for run in runs)
    table = [
        row | {"verdict": _counted(Counter(
            c["verdict"] for run in runs for c in run.claims if c["id"] == id), done)}
        for id, row in rows.items()
    ]  # fmt: skip
    return {
        "name": best.about["notebook"],
        "title": best.title,
        "picture": best.picture,
        "claims": table,
        "runs": [
            {
                "link": os.path.relpath(run.page, folder),
                "stem": run.path.stem,
                "outcome": run.about["outcome"],
                "message": run.about.get("message", ""),
                "seconds": run.about.get("seconds", ""),
                "memory": _mebibytes(run.about.get("peak_memory")),
                "commit": ((run.about.get("git") or {}).get("commit") or "")[:8],
            }
            for run in runs
        ],
    }


def _counted(counts: Counter, total: int) -> str:
    if total == 1:
        return next(iter(counts))
    return ", ".join(f"{verdict} {n}/{total}" for verdict, n in counts.items())


def _mebibytes(size: int | None) -> str:
    return f"{size / 2**20:.0f} MiB" if size else ""


def _page(executed: Executed) -> None:
    """Convert a notebook with nbconvert unless its page is newer."""
    page = executed.page
    if page.exists() and page.stat().st_mtime >= executed.path.stat().st_mtime:
        return
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab")
    body, _ = exporter.from_notebook_node(nbformat.read(executed.path, as_version=4))
    files.write_atomic(page, body.encode())


def png_bytes(encoded: str) -> bytes:
    """The bytes of a base64 PNG."""
    return base64.b64decode(encoded)
