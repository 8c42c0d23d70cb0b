"""Execute a plan on this machine: atomic, resumable, every ending with its own word.

Each run executes in a process of its own (helpers.worker), so that a dead kernel or a timeout
ends one run only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from helpers import ROOT, files, gpus, notebooks
from helpers.plan import Run, Sources, finished, key

OK, CLAIM_CHANGED, ERROR = "ok", "claim changed", "error"
KERNEL_DIED, TIMEOUT, CANCELLED = "kernel died", "timeout", "cancelled"
OUTCOMES = (OK, CLAIM_CHANGED, ERROR, KERNEL_DIED, TIMEOUT, CANCELLED)


@dataclass
class Outcome:
    """How a run ended."""

    run: Run
    outcome: str
    message: str = ""
    claims: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    resumed: bool = False
    changed: list[str] = field(default_factory=list)


@contextlib.contextmanager
def folder_lock(out: Path) -> Iterator[None]:
    """Create the output folder and hold it for this batch alone.

    Raises:
        PermissionError: the folder cannot be made or written.
        BlockingIOError: another batch holds it.
    """
    import filelock

    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        lock = filelock.FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(f"another batch is writing to {out}; wait, or give --out") from None
    except OSError as error:
        raise PermissionError(f"cannot write to {out}: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def execute(
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    timeout: float | None = None,
    fresh: bool = False,
    on_event: Callable[[Run, dict[str, Any]], None] = lambda run, event: None,
) -> list[Outcome]:
    """Execute a plan on this machine and return one outcome a run, in the plan's order.

    Args:
        runs: the plan. Two runs never share a file: that is refused.
        jobs: how many run at the same time; at least 1. Where there are GPUs, runs that ask for
            one get different ones, and wait while none is free.
        timeout: seconds a run may take, None for no limit.
        fresh: run again what is finished already.
        on_event: called from worker threads with {"event": "start" | "cell" | "end", ...}.

    Raises:
        ValueError: jobs below 1, or two runs with one output.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    outcomes = resume(runs, fresh=fresh, on_event=on_event)
    stop, cards = threading.Event(), gpus.Cards(gpus.visible())

    def one(run: Run) -> Outcome:
        with cards.take(int(run.resources.get("gpus", 0)), stop) as environment:
            if stop.is_set():
                outcome = Outcome(run, CANCELLED)
            else:
                options = {"timeout": timeout, "stop": stop, "environment": environment}
                outcome = supervise(run, on_event=on_event, **options)
        on_event(run, {"event": "end", "outcome": outcome})
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            run.path(""): pool.submit(one, run) for run in runs if run.path("") not in outcomes
        }
        try:
            return [outcomes.get(run.path("")) or futures[run.path("")].result() for run in runs]
        except KeyboardInterrupt:
            stop.set()
            return [outcomes.get(run.path("")) or futures[run.path("")].result() for run in runs]


def resume(
    runs: Sequence[Run],
    *,
    fresh: bool = False,
    on_event: Callable[[Run, dict[str, Any]], None] = lambda run, event: None,
) -> dict[Path, Outcome]:
    """Outcomes, by `run.path("")`, of the runs of a plan that are finished already.

    Raises:
        ValueError: two runs with one output.
    """
    places = {run.path("") for run in runs}
    if len(places) != len(runs):
        raise ValueError("two runs of the plan would write the same output")
    if fresh:
        return {}
    sources, stored = Sources(), StoredVerdicts()
    with ThreadPoolExecutor(8) as pool:  # hashing files lets other threads run
        records = list(pool.map(lambda run: finished(run, key(run, sources)), runs))
    found = {}
    for run, record in zip(runs, records, strict=True):
        if record:
            outcome = judge(run, record["claims"], record["seconds"], stored, resumed=True)
            found[run.path("")] = outcome
            on_event(run, {"event": "end", "outcome": outcome})
    return found


def supervise(
    run: Run,
    *,
    timeout: float | None = None,
    stop: threading.Event | None = None,
    environment: dict[str, str] | None = None,
    on_event: Callable[[Run, dict[str, Any]], None] = lambda run, event: None,
) -> Outcome:
    """Execute one run in a process of its own and say how it ended; never raises for its failure.

    environment: variables of the run on top of this process's.

    On success ``<stem>.ipynb`` and then ``<stem>.json`` appear; otherwise what was executed is
    kept as ``<stem>.failed.ipynb`` and earlier results stay as they were.
    """
    start, identity = time.monotonic(), key(run)
    Path(run.folder).mkdir(parents=True, exist_ok=True)
    on_event(run, {"event": "start"})
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            cwd=ROOT, start_new_session=True, env=os.environ | (environment or {}),
        )  # fmt: skip
        process.stdin.write(json.dumps(asdict(run) | {"key": identity}))
        process.stdin.close()

        def listen() -> None:
            for line in process.stdout:
                with contextlib.suppress(json.JSONDecodeError):
                    last.update(json.loads(line))
                    on_event(run, {"event": "cell"} | last)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            reason = _wait(process, start, timeout, stop)
        except BaseException:
            _end(process.pid)  # an interrupted caller leaves no process behind
            raise
        listener.join(timeout=5)
        errors.seek(0)
        trouble = errors.read().strip().splitlines()
    seconds = time.monotonic() - start
    if reason is None and process.returncode == 0 and (record := finished(run, identity)):
        run.path(".failed.ipynb").unlink(missing_ok=True)
        return judge(run, record["claims"], seconds, StoredVerdicts())
    message = last.get("message") or (trouble[-1] if trouble else f"exit {process.returncode}")
    word = reason or last.get("outcome", KERNEL_DIED if process.returncode < 0 else ERROR)
    if process.returncode < 0 and reason is None and "message" not in last:
        message = f"the run's process was ended by signal {-process.returncode}"
    if reason == TIMEOUT:
        message = f"stopped after {seconds:.0f} s"
    _keep_failed(run, word, message)
    return Outcome(run, word, message, seconds=seconds)


class StoredVerdicts:
    """The verdicts stored in notebooks/, {claim id: verdict}, each notebook read once."""

    def __init__(self) -> None:
        self._read: dict[str, dict[str, str]] = {}

    def of(self, name: str) -> dict[str, str]:
        """Verdicts of a notebook by claim id."""
        if name not in self._read:
            from helpers.claims import from_notebook

            rows = from_notebook(notebooks.read(name))
            self._read[name] = {row["id"]: row["verdict"] for row in rows}
        return self._read[name]


def judge(
    run: Run,
    claims: list[dict[str, str]],
    seconds: float,
    verdicts: StoredVerdicts,
    resumed: bool = False,
) -> Outcome:
    """OK, or CLAIM_CHANGED when a verdict of a comparable run differs from the stored one."""
    outcome = Outcome(run, OK, claims=claims, seconds=seconds, resumed=resumed)
    if run.comparable:
        stored = verdicts.of(run.notebook)
        found = {c["id"]: c["verdict"] for c in claims}
        outcome.changed = [
            f"{id}: {found.get(id, 'absent')} (stored: {stored.get(id, 'absent')})"
            for id in sorted(stored.keys() | found.keys())
            if stored.get(id) != found.get(id)
        ]
        if outcome.changed:
            outcome.outcome, outcome.message = CLAIM_CHANGED, "; ".join(outcome.changed)
    return outcome


def _wait(process, start: float, timeout: float | None, stop) -> str | None:
    """Wait for the worker; end it and return the reason on timeout or stop."""
    while True:
        try:
            process.wait(timeout=0.2)
            return None
        except subprocess.TimeoutExpired:
            late = timeout is not None and time.monotonic() - start > timeout
            if late or (stop is not None and stop.is_set()):
                _end(process.pid)
                process.wait()
                return TIMEOUT if late else CANCELLED


def _end(pid: int) -> None:
    """Terminate a process and everything below it (the kernel has a group of its own)."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
        for signal in ("terminate", "kill"):
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(member, signal)()
            _, family = psutil.wait_procs(family, timeout=5)


def _keep_failed(run: Run, word: str, message: str) -> None:
    """Keep what was executed as ``<stem>.failed.ipynb``; a part that was cut off is no notebook."""
    import nbformat

    with contextlib.suppress(OSError):
        try:
            notebook = nbformat.read(run.part, as_version=4)
            notebook.metadata["reproduce"] = {"outcome": word, "message": message}
            text = nbformat.writes(notebook)
        except Exception:  # nothing was written yet, or the disk was full
            run.part.unlink(missing_ok=True)
        else:
            files.write_atomic(run.path(".failed.ipynb"), text.encode())
            run.part.unlink(missing_ok=True)
