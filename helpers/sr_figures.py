"""Figures about activations of super-resolution networks, their points, and their images."""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from helpers.plots import color


def draw_ranges(panels: dict[str, dict[str, Tensor]]) -> Figure:
    """Box plots of every channel: {title: {image: activations [C, M]}}, a panel a title.

    Channels are sorted by the largest magnitude in the first image of the first panel. A box
    holds the middle half of the values, its whiskers reach from the least to the largest.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 3.4), squeeze=False)
    first = next(iter(next(iter(panels.values())).values()))
    order = first.abs().amax(1).argsort(descending=True)
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]
    for axis, (title, images) in zip(axes[0], panels.items(), strict=True):
        for shift, (label, x) in zip((-0.2, 0.2), images.items(), strict=False):
            keys = ("whislo", "q1", "med", "q3", "whishi")
            rows = np.quantile(x[order].numpy(), levels, axis=1).T.tolist()
            boxes = [dict(zip(keys, row, strict=True)) for row in rows]
            style = {"color": color(label)}
            drawn = axis.bxp(
                boxes, np.arange(len(boxes)) + shift, widths=0.3, showfliers=False,
                boxprops=style, whiskerprops=style, medianprops=style, capprops={"lw": 0},
            )  # fmt: skip
            drawn["boxes"][0].set_label(label)
        axis.set_xticks(range(0, len(order), 8), range(0, len(order), 8))
        axis.set(title=title, xlabel="channel, by decreasing range", ylabel=f"{title} activation")
    axes[0, 0].legend(fontsize=8)
    return figure


def draw_staircases(
    channels: dict[str, tuple[Tensor, dict[str, tuple[Tensor, float]]]], universal: Tensor
) -> Figure:
    """Values of a channel and the quantizers made for them, a panel a channel.

    channels: {title: (z [M], {quantizer: (ascending points [K], its SSE)})}. Grey: how many
    values there are (logarithmic). Ticks at the bottom: the universal set.
    """
    figure, axes = plt.subplots(1, len(channels), figsize=(5.5 * len(channels), 3.8))
    for axis, (title, (z, stairs)) in zip(np.atleast_1d(axes), channels.items(), strict=True):
        behind, low = axis.twinx(), min(-0.05, float(z.min()) - 0.05)
        behind.hist(z.numpy(), bins=80, color="0.8", log=True)
        behind.set_axis_off()
        axis.set_zorder(behind.get_zorder() + 1)
        axis.patch.set_visible(False)
        grid = torch.linspace(low, 1.05, 2000, dtype=torch.float64)
        for style, (label, (points, sse)) in zip(cycle(("-", "-", "--")), stairs.items()):
            nearest = points[(grid[:, None] - points).abs().argmin(1)]
            text = f"{label}: SSE {sse:.3g}"
            axis.plot(grid, nearest, style, lw=1.3, color=color(label), label=text)
        inside = universal[universal >= low]
        axis.plot(inside, torch.full_like(inside, low), "|", color="0.3", ms=7)
        axis.set(title=title, xlabel="normalised value z", ylabel="quantized value q(z)")
        axis.set(xlim=(low, 1.05), ylim=(low - 0.05, 1.1))
        axis.grid(visible=False)
        axis.legend(fontsize=8, loc="upper left")
    return figure


def draw_results(
    curves: dict[str, dict[int, float]], images: dict[str, Tensor], zoom: Sequence[int]
) -> Figure:
    """Fidelity over bits beside a detail of some images.

    curves: {method: {bits: dB}}. images: {title: image [3, h, w] in 0..255}: the true one, that
    of full precision, and others, which are drawn with 8 times their difference to the second.
    zoom: top, left, size of the detail in pixels, moved into a smaller image.
    """
    (truth, true_image), (full, full_image), *others = images.items()
    images = {truth: true_image, full: full_image}
    for title, image in others:
        images |= {title: image, f"difference of {title}": 128 + 8 * (image - full_image)}
    rows = -(-len(images) // 2)
    figure = plt.figure(figsize=(10, 1.75 * rows))
    left, right = figure.subfigures(1, 2, width_ratios=[1.6, 1])
    axis = left.subplots()
    for label, values in curves.items():
        bits = sorted(values)
        axis.plot(bits, [values[b] for b in bits], "o-", color=color(label), label=label)
    axis.set(xlabel="bits of an activation", ylabel="PSNR to the full-precision output [dB]")
    axis.set_xticks(sorted({b for values in curves.values() for b in values}))
    axis.legend(fontsize=8)
    height, width = true_image.shape[1:]
    size = min(zoom[2], height, width)
    top, edge = min(zoom[0], height - size), min(zoom[1], width - size)
    for panel, (title, image) in zip(right.subplots(rows, 2).flat, images.items(), strict=False):
        detail = image[:, top : top + size, edge : edge + size].float().clamp(0, 255) / 255
        panel.imshow(detail.permute(1, 2, 0))
        panel.set_title(title, fontsize=8)
        panel.set_axis_off()
    return figure


def draw_costs(times: dict[str, dict[int, float]], counted: dict[str, dict[int, float]]) -> Figure:
    """Seconds over the number of points, both logarithmic; `counted` ones are dotted."""
    figure, axis = plt.subplots(figsize=(7.5, 3.8))
    for style, curves in (("o-", times), (":", counted)):
        for label, values in curves.items():
            name = label if style == "o-" else f"{label}, extrapolated by its count"
            axis.loglog(list(values), list(values.values()), style, color=color(label), label=name)
    axis.set(xlabel="points K to select", ylabel="time for one channel [s]")
    ticks = sorted({k for values in [*times.values(), *counted.values()] for k in values})
    axis.set_xticks(ticks, ticks)
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return figure
