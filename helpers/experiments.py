"""Several methods on the same seeds: run them, tabulate them, draw them."""

from collections.abc import Hashable, Sequence
from itertools import product
from statistics import fmean, pstdev
from time import perf_counter

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

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
