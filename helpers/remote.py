"""Output folders elsewhere (s3://, gs://, abfs://, ... through fsspec), worked on in a local copy.

Runs are written in a local folder as always. A finished run is copied up at once, its notebook
before its record, so that what has a record is whole there too; before a batch the records and
notebooks of its finished runs are copied down, so that it resumes on another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from helpers import ROOT
from helpers.plan import Run, Sources, key

THREADS = 8


def is_url(out: str) -> bool:
    """Whether an output is an address such as s3://bucket/folder, not a folder."""
    return "://" in out


def working_copy(url: str) -> Path:
    """The local folder in which the runs of an address are written."""
    digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return ROOT / "runs" / ".remote" / digest


class Remote:
    """One output address and its local copy.

    Raises:
        ValueError: fsspec has no file system for the address, or its package is not installed.
    """

    def __init__(self, url: str, local: Path | None = None):
        import fsspec

        self.url, self.local = url.rstrip("/"), local or working_copy(url)
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ValueError(f"cannot write to {url}: {error}") from None

    def pull(self, runs: Sequence[Run]) -> None:
        """Copy down what the planned runs left there when it is newer than the local copy.

        Only runs with this key are copied: others have to run again anyway.
        """
        sources = Sources()
        there = set()
        if self.files.exists(self.root):
            there = {self._name(path) for path in self.files.find(self.root)}

        def one(run: Run) -> None:
            record, notebook = (self._inside(run.path(ending)) for ending in (".json", ".ipynb"))
            if record not in there or notebook not in there or run.path(".json").exists():
                return
            content = self.files.cat_file(f"{self.root}/{record}")
            if _key(content) == key(run, sources):
                run.path(".ipynb").parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(f"{self.root}/{notebook}", str(run.path(".ipynb")))
                run.path(".json").write_bytes(content)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, runs))

    def push(self, run: Run) -> None:
        """Copy up what a run left: its notebook and then its record, or the failed notebook."""
        for ending in (".failed.ipynb", ".ipynb", ".json"):
            if run.path(ending).is_file():
                self._up(run.path(ending))

    def following(self, on_event: Callable[[Run, dict[str, Any]], None]):
        """An ``on_event`` that copies up each run that has just ended, and then calls on_event."""

        def both(run: Run, event: dict[str, Any]) -> None:
            if event["event"] == "end" and not event["outcome"].resumed:
                self.push(run)
            on_event(run, event)

        return both

    def push_report(self) -> None:
        """Copy up the pages and tables of the report."""
        with ThreadPoolExecutor(THREADS) as pool:
            pages = [*self.local.rglob("*.html"), *self.local.glob("claims.*")]
            list(pool.map(self._up, pages))

    def _up(self, path: Path) -> None:
        target = f"{self.root}/{self._inside(path)}"
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(target, path.read_bytes())

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.local).as_posix()

    def _name(self, path: str) -> str:
        return path.removeprefix(self.files._strip_protocol(self.root)).lstrip("/")


def _key(record: bytes) -> str | None:
    try:
        return json.loads(record)["key"]
    except (ValueError, KeyError, TypeError):
        return None
