"""Figures of networks that are quantized unit by unit: losses along the depth, capacities."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from helpers.chains import Step, run, signature
from helpers.plots import color
from helpers.soft_rounding import QParams

Module = Sequence[Step]


def stage_starts(modules: Sequence[Module]) -> list[int]:
    """Modules that change width or resolution: those without a shortcut; the first is none."""
    starts = [i for i, steps in enumerate(modules) if not any(s.adds for s in steps)]
    return [i for i in starts if i > 0]


def equal_neighbours(modules: Sequence[Module]) -> list[int]:
    """Indices i whose module has the same architecture as module i + 1."""
    kinds = [signature(steps) for steps in modules]
    return [i for i in range(len(kinds) - 1) if kinds[i] == kinds[i + 1]]


def draw_profiles(
    axis: Axes, profiles: dict[str, Sequence[Sequence[float]]], modules: Sequence[Module], title=""
) -> None:
    """Losses over the depth: the mean of the rows [repeats][modules], their range shaded.

    Dotted lines mark the modules where a stage starts.
    """
    for name, rows in profiles.items():
        columns = list(zip(*rows, strict=True))
        depth = range(len(columns))
        mean = [sum(column) / len(column) for column in columns]
        axis.plot(depth, mean, "o-", ms=4, color=color(name), label=name)
        axis.fill_between(
            depth, [min(c) for c in columns], [max(c) for c in columns],
            color=color(name), alpha=0.2, lw=0,
        )  # fmt: skip
    for start in stage_starts(modules):
        if start < len(next(iter(profiles.values()))[0]):
            axis.axvline(start - 0.5, color="0.6", lw=0.8, ls=":")
    axis.set(xlabel="module (dotted: a stage starts)", ylabel="reconstruction loss", title=title)
    top = max(value for rows in profiles.values() for row in rows for value in row)
    axis.set_ylim(0, max(1.05 * top, axis.get_ylim()[1]))
    axis.legend(fontsize=8)


def draw_depth(outcomes: dict[str, Sequence], modules: Sequence[Module], title: str) -> Figure:
    """Losses at the end of the units (`losses`) and after every module (`inner`), repeat by repeat.

    The last module is left out.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
    panels = {"losses": "at the end of the unit", "inner": "after every module"}
    for axis, (key, panel) in zip(axes, panels.items(), strict=True):
        rows = {n: [getattr(outcome, key)[:-1] for outcome in outcomes[n]] for n in outcomes}
        draw_profiles(axis, rows, modules, panel)
    figure.suptitle(title)
    return figure


def draw_capacities(
    values: dict[str, Sequence[float]], pairs: dict[str, dict[str, Sequence[int]]]
) -> Figure:
    """Bars of the modules' capacities [bits], one panel a network, and arcs over joined pairs.

    values: {network: capacities}; pairs: {network: {rule: indices i of pairs (i, i + 1)}}.
    """
    figure, axes = plt.subplots(1, len(values), figsize=(5.2 * len(values), 3.6), squeeze=False)
    for axis, (network, bars) in zip(axes[0], values.items(), strict=True):
        axis.bar(range(len(bars)), bars, color="0.8")
        top = max(bars)
        for level, (rule, joined) in enumerate(pairs[network].items()):
            low, high = top * (1.06 + 0.14 * level), top * (1.13 + 0.14 * level)
            for count, i in enumerate(joined):
                shape = [low, high, high, low]
                label = rule if count == 0 else None
                axis.plot([i, i, i + 1, i + 1], shape, color=color(rule), lw=2, label=label)
        axis.set(xlabel="module", ylabel="capacity [bits]", title=network)
        axis.set_xticks(range(0, len(bars), 2))
        axis.legend(fontsize=8, loc="upper left")
    return figure


class Watcher:
    """A unit for a reconstruction loop that notes h of its soft weights in some steps (from 1).

    seen: {step: vector of h = soft / s - floor(w / s)} of the weights inside of their grid.
    """

    def __init__(self, chain: Module, weight_q: Sequence[QParams], at: Sequence[int]):
        self.chain, self.weight_q, self.at, self.step, self.seen = chain, weight_q, at, 0, {}

    def __call__(self, x: Tensor, weights: list[Tensor], quantizers: list) -> Tensor:
        self.step += 1
        if self.step in self.at:
            triples = zip(self.chain, weights, self.weight_q, strict=True)
            self.seen[self.step] = torch.cat([_fractions(*triple) for triple in triples])
        return run(self.chain, x, weights, quantizers)


def _fractions(step: Step, soft: Tensor, grid: QParams) -> Tensor:
    s, z = (v.view(-1, *[1] * (soft.dim() - 1)) for v in grid[:2])
    low = (step.weight / s).floor()
    inside = (low + z >= 0) & (low + z < 2 ** grid[2] - 1)
    return (soft.detach() / s - low)[inside].clamp(0, 1).cpu()


def draw_decisions(seen: dict[int, Tensor], steps: int) -> Figure:
    """Histograms of h, one for each step that was looked at."""
    size = {"figsize": (2.8 * len(seen), 2.6), "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(1, len(seen), **size)
    for axis, (step, h) in zip(axes[0], seen.items(), strict=True):
        axis.hist(h.numpy(), bins=20, weights=torch.full_like(h, 100 / len(h)).numpy())
        axis.set(title=f"step {step} of {steps}", xlabel="h (0: down, 1: up)")
    axes[0, 0].set_ylabel("share of the weights [%]")
    return figure
