"""Several methods on the same seeds: run them, tabulate them, draw them."""

from collections.abc import Callable, Hashable, Sequence
from itertools import product
from statistics import fmean, pstdev
from time import perf_counter

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from helpers.claims import paired
from helpers.plots import color
from helpers.training import launch

Runs = list[dict]  # what one method returned, seed by seed


def launch_all(
    notebook: str,
    function: str,
    jobs: dict[Hashable, dict],
    *,
    seeds: Sequence[int],
    processes: int = 1,
    **shared,
) -> dict[Hashable, Runs]:
    """`helpers.training.launch` of every job with every seed; a line says how far it is.

    jobs: {method: its keyword arguments}; `seed` and the shared ones are added to them.
    """
    from IPython.display import display

    total, began, line = len(jobs) * len(seeds), perf_counter(), display("", display_id=True)
    results = {method: [] for method in jobs}
    for method, seed in product(jobs, seeds):
        kwargs = {**shared, **jobs[method], "seed": seed}
        results[method].append(launch(notebook, function, kwargs, processes))
        done = sum(map(len, results.values()))
        if line is not None:  # None outside IPython
            line.update(f"{done} of {total} runs, {perf_counter() - began:.0f} s")
    return results


def outcome(results: dict[Hashable, Runs], method: Hashable, key: str) -> list[float]:
    """One number a seed; NaNs, as many as others have seeds, when the method was not run."""
    missing = [float("nan")] * max(map(len, results.values()))
    return [run[key] for run in results.get(method, [])] or missing


def print_results(results: dict[str, Runs], keys: Sequence[str]) -> None:
    """Print a row a method: the mean over the seeds of each key and its standard deviation."""
    width = max(map(len, results))
    print(" " * width + "".join(f"{key:>18}" for key in keys))
    for label, runs in results.items():
        columns = [[run[key] for run in runs] for key in keys]
        cells = "".join(f"{fmean(c):10.3f} ± {pstdev(c):5.3f}" for c in columns)
        print(f"{label:{width}}{cells}")


def print_gains(results: dict[str, Runs], base: str, keys: Sequence[str]) -> None:
    """Print the paired differences of each method from `base` with their 95 % intervals."""
    for label, runs in results.items():
        pairs = {
            key: [[run[key] for run in many] for many in (runs, results[base])] for key in keys
        }
        gains = ", ".join(f"{key} {paired(*pair)}" for key, pair in pairs.items())
        if label != base:
            print(f"{label} - {base}: {gains}")


class Trace:
    """Call `look()` at some `times` steps of a run; use as `on_step` of a training.

    at: the steps looked at; seen: what look() returned.
    """

    def __init__(self, look: Callable[[], object], steps: int, times: int = 60):
        self.look, self.steps, self.every = look, steps, max(1, steps // times)
        self.at, self.seen = [], []

    def __call__(self, step: int) -> None:
        if step % self.every == 0 or step == self.steps - 1:
            self.at.append(step)
            self.seen.append(self.look())


def draw_slopes(
    results: dict[str, Runs], keys: dict[str, str], references: dict[str, Runs]
) -> Figure:
    """A panel a key with a line a seed over the methods, black means, references dashed.

    keys: {key: axis label}. references: methods that are drawn as their mean only.
    """
    size = {"figsize": (4.5 * len(keys), 3.6), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(keys), **size)
    for axis, (key, ylabel) in zip(axes[0], keys.items(), strict=True):
        table = torch.tensor([[run[key] for run in runs] for runs in results.values()])
        axis.plot(table, "o-", lw=1, color="#0072B2", alpha=0.6)
        axis.plot(table.mean(1), "_", ms=30, mew=2, color="black", label="mean")
        for style, (label, runs) in zip(("--", ":", "-."), references.items(), strict=False):
            value = fmean(run[key] for run in runs)
            axis.axhline(value, ls=style, color="0.4", label=label)
        axis.set_xticks(range(len(results)), list(results))
        axis.set(ylabel=ylabel, xlim=(-0.5, len(results) - 0.5))
    shown = axes[0, 0].get_legend_handles_labels()
    figure.legend(*shown, fontsize=8, loc="outside upper center", ncols=5)
    return figure


def draw_losses(results: dict[str, Runs], title: str = "") -> Figure:
    """Training loss over the steps, smoothed over a sixteenth of them: mean and deviation."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    for label, runs in results.items():
        losses = torch.tensor([run["losses"] for run in runs])
        window = max(1, losses.shape[1] // 16)
        smooth = losses.unfold(1, window, 1).mean(2)
        middle, band = smooth.mean(0), smooth.std(0, correction=0)
        steps = range(window, losses.shape[1] + 1)
        axis.plot(steps, middle, color=color(label), label=label)
        axis.fill_between(steps, middle - band, middle + band, color=color(label), alpha=0.15)
    axis.set(xlabel="training step", ylabel="training loss", title=title)
    axis.legend(fontsize=8)
    return figure


def draw_tradeoff(
    results: dict[str, Runs], key: str, cost: str, xlabel: str, ylabel: str
) -> Figure:
    """One point a method: mean and deviation of a key over a cost.

    Points of equal cost are moved apart a little.
    """
    figure, axis = plt.subplots(figsize=(7, 3.4))
    places = [fmean(run[cost] for run in runs) for runs in results.values()]
    shift = 0.015 * ((max(places) - min(places)) or 1)
    for i, (label, runs) in enumerate(results.items()):
        values = [run[key] for run in runs]
        options = {"fmt": "o", "capsize": 3, "color": color(label), "label": label}
        place = places[i] + shift * places[:i].count(places[i])
        axis.errorbar(place, fmean(values), pstdev(values), **options)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(fontsize=8)
    return figure
