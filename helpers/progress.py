"""Progress of a batch: live bars in a terminal, one line a change elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from helpers.plan import Run

MANY = 40  # runs, for whose bars a terminal is too small
Listener = Callable[[Run, dict[str, Any]], None]


@contextlib.contextmanager
def show(runs: Sequence[Run], console: Console) -> Iterator[Listener]:
    """Yield the ``on_event`` of helpers.batch.execute that draws the progress of ``runs``."""
    if not console.is_terminal or len(runs) > MANY:
        yield _lines(runs, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {
            run.path(""): bars.add_task(run.stem, total=None, start=False, state="waiting")
            for run in runs
        }

        def on_event(run: Run, event: dict[str, Any]) -> None:
            task = tasks[run.path("")]
            if event["event"] == "start":
                bars.start_task(task)
                bars.update(task, state="starting")
            elif event["event"] == "cell" and "done" in event:
                bars.update(task, total=event["cells"], completed=event["done"], state="running")
            elif event["event"] == "end":
                ended = event["outcome"]
                total = bars.tasks[task].total or 1
                bars.update(
                    task, total=total, state=_word(ended),
                    completed=total if ended.claims else bars.tasks[task].completed,
                )  # fmt: skip
                bars.stop_task(task)

        yield on_event


def _lines(runs: Sequence[Run], console: Console) -> Listener:
    lock, ended = threading.Lock(), []

    def on_event(run: Run, event: dict[str, Any]) -> None:
        with lock:
            if event["event"] == "start":
                console.print(f"{run.stem}: running", highlight=False)
            elif event["event"] == "end":
                ended.append(run)
                outcome = event["outcome"]
                console.print(
                    f"[{len(ended)}/{len(runs)}] {run.stem}: {_word(outcome)} "
                    f"({outcome.seconds:.0f} s)",
                    highlight=False, markup=False,
                )  # fmt: skip

    return on_event


def _word(outcome) -> str:
    return "finished before" if outcome.resumed and outcome.outcome == "ok" else outcome.outcome
