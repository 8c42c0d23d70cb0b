"""Figures about small generators: what they cost, how far changes go, what their maps show."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from helpers.plots import color

Counts = tuple[int, int, int]  # parameters, exact MACs, MACs with transposed ones at output size


def draw_costs(counts: Mapping[int, Counts], original: Counts, ratios: tuple[int, int]) -> Figure:
    """Parameters and multiply-adds over the width; stars: the original, lines: a ratio below it.

    ratios: of parameters and of multiply-adds. Both ways to count get a star of their colour.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.3))
    widths = sorted(counts)
    labels = ("separable", "exact", "at output resolution")
    for axis, columns, ratio in zip(axes, ((0,), (1, 2)), ratios, strict=True):
        for column in columns:
            shade = ("#0072B2", "#0072B2", "#D55E00")[column]
            values = [counts[width][column] for width in widths]
            axis.loglog(widths, values, "o-", color=shade, label=labels[column])
            axis.plot(64, original[column], "*", ms=12, color=shade)
        line = original[columns[-1]] / ratio
        axis.axhline(line, ls="--", color="0.4", lw=1, label=f"star / {ratio}")
        axis.plot([], [], "*", color="0.4", label="original, dense")
        axis.set_xticks(widths, widths)
        axis.minorticks_off()
        axis.set(xlabel="width c of the generator [channels]")
        axis.legend(fontsize=8)
    axes[0].set(ylabel="parameters")
    axes[1].set(ylabel="multiply-adds an image")
    return figure


def draw_bars(panels: Mapping[str, Mapping[str, Mapping[str, float]]], ylabel: str) -> Figure:
    """Grouped bars, {panel: {series: {group: value}}}."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9.5, 3.3), sharey=True, squeeze=False)
    for axis, (title, table) in zip(axes[0], panels.items(), strict=True):
        groups = list(next(iter(table.values())))
        width = 0.8 / len(table)
        for i, (series, values) in enumerate(table.items()):
            places = [g + (i - (len(table) - 1) / 2) * width for g in range(len(groups))]
            heights = [values[group] for group in groups]
            axis.bar(places, heights, width, color=color(series), label=series)
        axis.axhline(1, color="0.5", lw=0.8)
        axis.set_xticks(range(len(groups)), groups, fontsize=8)
        axis.set_title(title)
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(ylabel)
    axes[0, 0].legend(fontsize=8)
    return figure


def draw_strip(rows: Mapping[str, Sequence[Tensor]], columns: Sequence[str]) -> Figure:
    """Small pictures, a labelled row each: (3, h, w) stretched to its own range, or maps (h, w).

    All maps share one scale from 0, shown at the right.
    """
    shape = len(rows), len(columns)
    figure, axes = plt.subplots(*shape, figsize=(1.45 * shape[1] + 1.6, 1.35 * shape[0] + 0.3))
    top = max(float(p.max()) for row in rows.values() for p in row if p.dim() == 2)
    for line, (label, row) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, row, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            if picture.dim() == 2:
                drawn = axis.imshow(picture.cpu(), cmap="magma", vmin=0, vmax=top)
            else:
                axis.imshow(stretched(picture).permute(1, 2, 0).cpu())
        line[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=8)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.4)
    bar.set_label("mean |difference| of D's features", fontsize=8)
    return figure


def stretched(x: Tensor) -> Tensor:
    """x (3, h, w) with each channel moved to 0..1; a constant channel becomes 0."""
    low = x.amin((1, 2), keepdim=True)
    span = x.amax((1, 2), keepdim=True) - low
    return torch.where(span > 0, (x - low) / span.clamp(min=1e-12), torch.zeros_like(x))
