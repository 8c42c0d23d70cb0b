"""Latency and peak memory on CPU and CUDA, thin over torch.utils.benchmark."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, interquartile range, and the number of calls measured."""

    median: float
    iqr: float
    runs: int

    def __str__(self) -> str:
        return f"{1e3 * self.median:.3f} ms (IQR {1e3 * self.iqr:.3f}, {self.runs} calls)"


@dataclass(frozen=True)
class Row:
    """One contender of `compare`; ratio = median over rounds of baseline time / own time."""

    name: str
    timing: Timing
    ratio: float


def latency(fn: Callable[[], object], *, session=None, seconds: float = 1.0) -> Timing:
    """Time fn() for about `seconds`, after a warm-up; CUDA work is waited for.

    session: give one to run under its precision (autocast).
    """
    timed = fn if session is None else _under(session, fn)
    return compare({"fn": timed}, baseline="fn", seconds=seconds)[0].timing


def _under(session, fn):
    def run():
        with session.autocast():
            return fn()

    return run


def compare(
    contenders: dict[str, Callable[[], object]],
    *,
    baseline: str,
    seconds: float = 1.0,
    rounds: int = 5,
) -> list[Row]:
    """Time functions in turn, `rounds` times, so that a busy moment hits all of them alike.

    seconds: for each contender, all rounds together. A ratio above 1 means faster than `baseline`.
    """
    # importing it looks for a CUDA compiler and warns on machines that have one and no GPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    if baseline not in contenders:
        raise ValueError(f"baseline {baseline!r} is not one of {sorted(contenders)}")
    times = {name: [] for name in contenders}
    calls = dict.fromkeys(contenders, 0)
    for _ in range(rounds):
        for name, fn in contenders.items():
            timer = Timer("fn()", globals={"fn": fn}, num_threads=torch.get_num_threads())
            measurement = timer.blocked_autorange(min_run_time=seconds / rounds)
            times[name].append(measurement.median)
            calls[name] += len(measurement.times) * measurement.number_per_run
    rows = []
    for name, own in times.items():
        low, median, high = np.percentile(own, [25, 50, 75])
        ratio = float(np.median(np.divide(times[baseline], own)))
        rows.append(Row(name, Timing(float(median), float(high - low), calls[name]), ratio))
    return rows


def print_table(rows: list[Row], title: str = "") -> None:
    """Print the rows of `compare`: milliseconds and speed relative to the baseline."""
    width = max(len(row.name) for row in rows)
    print(title or "contender", "[ms per call, interquartile range, speed-up]")
    for row in rows:
        median, iqr = 1e3 * row.timing.median, 1e3 * row.timing.iqr
        print(f"  {row.name:<{width}}  {median:10.3f}  ±{iqr:8.3f}  {row.ratio:7.2f}x")


def peak_memory(fn: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Most bytes that tensors made inside fn() held at once, on top of what was there before."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        fn()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        fn()
    events = record.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])])
    return int(max(0, held.max(initial=0)))
