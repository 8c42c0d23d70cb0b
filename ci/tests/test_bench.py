"""Timing and memory on functions of known cost."""

import time

import pytest
import torch

from helpers import bench
from helpers.session import start


def test_latency_of_a_known_wait():
    timing = bench.latency(lambda: time.sleep(0.02), seconds=0.3)
    assert 0.02 <= timing.median < 0.08
    assert timing.runs >= 5
    assert str(timing).startswith(f"{1e3 * timing.median:.3f} ms")


def test_latency_runs_under_the_sessions_precision():
    seen = set()
    session = start(device="cpu", precision="bf16", banner=False)
    bench.latency(lambda: seen.add(torch.is_autocast_enabled("cpu")), session=session, seconds=0.01)
    assert seen == {True}


def test_comparison_knows_the_slower_one(capsys):
    waits = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.004)}
    rows = {row.name: row for row in bench.compare(waits, baseline="slow", seconds=0.2, rounds=2)}
    assert rows["slow"].ratio == 1
    assert rows["fast"].ratio > 1.5
    bench.print_table(list(rows.values()), "waiting")
    shown = capsys.readouterr().out
    assert shown.startswith("waiting")
    assert "1.00x" in shown


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match="'c' is not one of"):
        bench.compare({"a": list, "b": dict}, baseline="c")


def test_peak_memory_counts_what_is_held_at_once():
    def one_after_the_other():
        for _ in range(3):
            torch.zeros(250_000)

    def together():
        return [torch.zeros(250_000) for _ in range(3)]

    assert 1e6 <= bench.peak_memory(one_after_the_other) < 1.1e6
    assert 3e6 <= bench.peak_memory(together) < 3.1e6
    assert bench.peak_memory(lambda: None) == 0
