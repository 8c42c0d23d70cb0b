"""The gallery: index.html and claims.csv from a folder of executed notebooks, and their pages."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from helpers import aggregate, claims, files, notebooks, page

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
    """Write claims.csv, claims.json, a page a notebook and index.html; return index.html's path.

    Raises:
        FileNotFoundError: no such folder, or no executed notebook in it.
    """
    import jinja2

    folder = Path(folder).resolve()
    found = scan(folder)
    for executed in found:
        _page(executed)
    files.write_atomic(folder / "claims.csv", to_csv(found).encode())
    files.write_atomic(folder / "claims.json", to_json(found, folder).encode())
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    papers = [
        paper_entry([e for e in found if e.about["notebook"] == name], folder)
        for name in sorted({e.about["notebook"] for e in found})
    ]
    html = template.render(papers=papers, verdicts=claims.VERDICTS, policy=page.POLICY)
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
        with contextlib.suppress(ValueError, AttributeError, TypeError):  # no whole notebook
            if executed := read(path):
                found.append(executed)
    if not found:
        raise FileNotFoundError(f"no executed notebook in {folder}; run 'reproduce' first")
    return found


def read(path: Path) -> Executed | None:
    """What the report needs of an executed notebook; None for a notebook of another kind.

    Raises:
        ValueError: a file that is no notebook.
    """
    notebook = notebooks.read(path)
    about = notebook.metadata.get("reproduce")
    if about is None:
        return None
    about = {"notebook": path.name.split(".")[0], "outcome": "ok"} | json.loads(json.dumps(about))
    title = notebook.cells[0].source.split("\n")[0].lstrip("# ")
    return Executed(path, about, claims.from_notebook(notebook), picture(notebook), title)


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


def to_json(found: list[Executed], folder: Path) -> str:
    """Every run with its claims and its whole provenance, as JSON."""
    rows = [{"file": os.path.relpath(e.path, folder), **e.about, "claims": e.claims} for e in found]
    return json.dumps(rows, indent=1, default=str)


def paper_entry(runs: list[Executed], folder: Path) -> dict[str, Any]:
    """What the template shows of one paper: claims by profile and parameters, and its runs."""
    best = next((run for run in runs if run.claims), runs[0])
    groups: dict[str, list[Executed]] = {}
    for run in runs:
        if run.claims:
            groups.setdefault(setting(run.about), []).append(run)
    return {
        "name": best.about["notebook"],
        "title": best.title,
        "picture": best.picture,
        "groups": [{"setting": key, "claims": claim_rows(group)} for key, group in groups.items()],
        "runs": [run_row(run, folder) for run in sorted(runs, key=lambda r: _text(r, "finished"))],
    }


def setting(about: dict[str, Any]) -> str:
    """Profile and overrides but for the seed: runs that agree in it are repetitions."""
    others = {k: v for k, v in about.get("overrides", {}).items() if k not in ("seed", "data_root")}
    words = [str(about.get("profile", ""))] + [f"{k} = {v}" for k, v in sorted(others.items())]
    return ", ".join(words)


def claim_rows(runs: list[Executed]) -> list[dict[str, Any]]:
    """One row a claim over repetitions of one setting."""
    table = []
    for row in {row["id"]: row for run in runs for row in run.claims}.values():
        mine = [c for run in runs for c in run.claims if c["id"] == row["id"]]
        together = {
            "verdict": aggregate.verdicts([c["verdict"] for c in mine]),
            "measured": aggregate.measured([c["measured"] for c in mine]),
            "kind": mine[0]["verdict"] if len({c["verdict"] for c in mine}) == 1 else "mixed",
        }
        table.append(row | together)
    return table


def run_row(run: Executed, folder: Path) -> dict[str, Any]:
    """One run: its page, how it ended, when, where and in which state of the repository."""
    about = run.about
    git, hardware = (_dict(about.get(name)) for name in ("git", "hardware"))
    cards = [str(card) for card in hardware.get("gpus") or []]
    places = [f"{hardware.get('cpus', '?')} CPUs", *cards] if hardware else []
    return {
        "link": os.path.relpath(run.page, folder),
        "notebook": os.path.relpath(run.path, folder),
        "stem": run.path.stem,
        "outcome": about["outcome"],
        "message": about.get("message", ""),
        "seconds": about.get("seconds", ""),
        "memory": _mebibytes(about.get("peak_memory")),
        "commit": str(git.get("commit") or "")[:8] + (" (changed)" if git.get("dirty") else ""),
        "finished": _text(run, "finished").replace("T", " ").removesuffix("Z"),
        "hardware": ", ".join(places),
        "marks": [(row["id"], row["verdict"]) for row in run.claims],
    }


def _text(run: Executed, name: str) -> str:
    return str(run.about.get(name, ""))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mebibytes(size: Any) -> str:
    return f"{size / 2**20:,.0f} MiB" if isinstance(size, int) else ""


def _page(executed: Executed) -> None:
    """Write a notebook's page unless it is newer than the notebook and this package."""
    target = executed.page
    newest = max(executed.path.stat().st_mtime, Path(page.__file__).stat().st_mtime)
    if target.exists() and target.stat().st_mtime >= newest:
        return
    html = page.render(nbformat.read(executed.path, as_version=4))
    files.write_atomic(target, html.encode())


def png_bytes(encoded: str) -> bytes:
    """The bytes of a base64 PNG."""
    return base64.b64decode(encoded)
