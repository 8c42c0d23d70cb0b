"""The results ledger: outcomes above smoke scale, and the README's status table made from it.

data/results/<paper>.<profile>.json keeps, for every run, the claim table and the provenance that
its executed notebook carries. No number is typed by hand.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from helpers import claims, files, notebooks, report

KEPT = (
    "parameters", "overrides", "seconds", "peak_memory", "git", "python", "packages", "hardware",
    "settings", "data", "finished",
)  # fmt: skip
BEGIN, END = "<!-- status table: begin -->", "<!-- status table: end -->"


def results(name: str, profile: str) -> Path:
    """The ledger file of a paper and a profile."""
    return notebooks.FOLDER.parent / "data" / "results" / f"{name}.{profile}.json"


def readme() -> Path:
    """The README beside the notebooks' folder."""
    return notebooks.FOLDER.parent / "README.md"


def collect(folder: Path) -> list[Path]:
    """Enter the finished runs of a folder into the ledger; return the files that were written.

    A run replaces an earlier one with the same parameters. Folders of this machine are left out.

    Raises:
        FileNotFoundError: no such folder, or no executed notebook in it.
        ValueError: no finished run above smoke scale in it.
    """
    written = set()
    for executed in report.scan(Path(folder)):
        about = executed.about
        if not executed.claims or about.get("profile", "smoke") == "smoke":
            continue
        path = results(about["notebook"], about["profile"])
        entry = {name: about[name] for name in KEPT} | {"claims": executed.claims}
        for name in ("parameters", "overrides"):
            entry[name] = {k: v for k, v in entry[name].items() if k not in ("data_root", "device")}
        others = [e for e in entries(path) if e["parameters"] != entry["parameters"]]
        ordered = sorted(
            [*others, entry], key=lambda e: json.dumps(e["parameters"], sort_keys=True)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, (json.dumps(ordered, indent=1) + "\n").encode())
        written.add(path)
    if not written:
        raise ValueError(f"{folder} holds no finished run of the gpu or paper profile")
    return sorted(written)


def entries(path: Path) -> list[dict[str, Any]]:
    """The runs kept in one ledger file; an absent file holds none."""
    return json.loads(path.read_text()) if path.is_file() else []


def status_table() -> str:
    """The README's table of papers, in Markdown, from title cards, stored outputs and ledger."""
    import yaml

    rows = ["| paper | claim | smoke | gpu | paper scale |", "|---|---|---|---|---|"]
    for name in notebooks.names():
        card = notebooks.card(name)
        stored = claims.from_notebook(notebooks.read(name))
        smoke = verdict_counts([stored]) if stored else "not run yet"
        cells = [_above_smoke(name, profile) for profile in ("gpu", "paper")]
        link = f"[{card.title.split(':')[0]}](notebooks/{name}.ipynb)"
        arxiv = f"[{card.arxiv}](https://arxiv.org/abs/{card.arxiv})"
        rows.append(f"| {link} {arxiv} | {card.claim} | {smoke} | {' | '.join(cells)} |")
    planned = notebooks.FOLDER / "planned.yaml"
    for paper in yaml.safe_load(planned.read_text()) if planned.is_file() else []:
        arxiv = f"[{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})"
        rows.append(
            f"| {paper['title']} {arxiv} | {paper['claim']} | not yet | not yet | not yet |"
        )
    return "\n".join(rows)


def verdict_counts(tables: list[list[dict[str, str]]]) -> str:
    """``4 reproduced, 1 not reproduced``; with several runs, how many agree on each."""
    counts = Counter(row["verdict"] for table in tables for row in table)
    runs = len(tables)
    words = [f"{counts[v]} {v}" for v in claims.VERDICTS if counts[v]]
    return ", ".join(words).replace(" at this scale", "") + (f" (over {runs} runs)" * (runs > 1))


def update_readme() -> bool:
    """Put the current status table into README.md; return whether it changed.

    Raises:
        ValueError: README.md lacks the marks between which the table stands.
    """
    text = readme().read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    if not pattern.search(text):
        raise ValueError(f"README.md lacks the marks {BEGIN} and {END}")
    new = pattern.sub(lambda _: f"{BEGIN}\n{status_table()}\n{END}", text)
    if new != text:
        files.write_atomic(readme(), new.encode())
    return new != text


def _above_smoke(name: str, profile: str) -> str:
    runs = entries(results(name, profile))
    if not runs:
        return "not run yet"
    shortened = sorted({k for run in runs for k in run["overrides"] if k != "seed"})
    note = f"; with other `{'`, `'.join(shortened)}`" if shortened else ""
    link = (
        f"[{verdict_counts([run['claims'] for run in runs])}](data/results/{name}.{profile}.json)"
    )
    return link + note
