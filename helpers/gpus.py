"""Which GPUs there are, and who has which: parallel runs on one machine share none."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence


def visible() -> list[str]:
    """The GPUs that a process started now would see: CUDA_VISIBLE_DEVICES, else all."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [card.strip() for card in chosen.split(",") if card.strip() not in ("", "-1")]
    command = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


class Cards:
    """GPUs that runs take and give back."""

    def __init__(self, cards: Sequence[str]):
        self.total, self._free = len(cards), list(cards)
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, count: int, stop: threading.Event) -> Iterator[dict[str, str]]:
        """Variables that show a process `count` GPUs of its own; waits until they are free.

        Nothing is set for a run that asks for none, nor on a machine without GPUs. A run that
        asks for more than there are gets all. Waiting ends early when `stop` is set.
        """
        count = min(count, self.total)
        if count == 0:
            yield {}
            return
        with self._changed:
            while len(self._free) < count and not stop.is_set():
                self._changed.wait(timeout=0.5)
            mine, self._free = self._free[:count], self._free[count:]
        try:
            yield {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
        finally:
            with self._changed:
                self._free += mine
                self._changed.notify_all()
