"""Figures of videos: strips of frames, slices through time, flicker against purity, trees."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from helpers.plots import PALETTE

Points = Mapping[str, Sequence[tuple[float, float]]]


def _picture(image: Tensor):
    return image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()


def draw_strips(clips: Mapping[str, Tensor], frames: int = 6, size: float = 0.65) -> Figure:
    """One row a clip [n, 3 or 1, h, w]: its first frames, with the clip's name on the left."""
    count = min(frames, *(len(clip) for clip in clips.values()))
    width, height = count * size + 1.3, len(clips) * size + 0.2
    figure, axes = plt.subplots(len(clips), count, figsize=(width, height), squeeze=False)
    for row, (name, clip) in zip(axes, clips.items(), strict=True):
        for axis, frame in zip(row, clip, strict=False):
            axis.imshow(_picture(frame.expand(3, -1, -1)))
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for k, axis in enumerate(axes[0]):
        axis.set_title(f"frame {k}", fontsize=8)
    return figure


def draw_slices(clips: Mapping[str, Tensor], row: int) -> Figure:
    """Image row `row` of every frame, stacked over time: one panel a clip [n, 3, h, w]."""
    columns = min(4, len(clips))
    lines = -(-len(clips) // columns)
    size = {"figsize": (2.5 * columns, 2.1 * lines), "sharex": True, "sharey": True}
    figure, axes = plt.subplots(lines, columns, squeeze=False, **size)
    for axis, (name, clip) in zip(axes.flat, clips.items(), strict=False):
        axis.imshow(_picture(clip[:, :, row].movedim(1, 0)), aspect="auto")
        axis.set_title(name, fontsize=9)
        axis.grid(visible=False)
    for axis in axes.flat[len(clips) :]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("column [pixels]")
    for axis in axes[:, 0]:
        axis.set_ylabel("time [frames]")
    return figure


def draw_tradeoff(
    points: Points, path: Sequence[str], mark: str = "", axis: plt.Axes | None = None
) -> Figure:
    """Flicker (log) against distance to the valid images: small dots are clips, large ones means.

    points: {name: (warping error, distance) of every clip}. path: names joined by arrows.
    mark: the name that gets a ring.
    """
    if axis is None:
        _, axis = plt.subplots(figsize=(7, 4))
    means = {}
    for k, (name, pairs) in enumerate(points.items()):
        x, y = zip(*pairs, strict=True)
        means[name] = fmean(x), fmean(y)
        style = {"color": PALETTE[k % len(PALETTE)], "ls": "none"}
        axis.plot(x, y, marker=".", ms=4, alpha=0.5, **style)
        marker = "os"[k // len(PALETTE) % 2]
        axis.plot(*means[name], marker=marker, ms=8, label=name, **style)
    arrow = {"arrowstyle": "->", "color": "0.3", "shrinkA": 6, "shrinkB": 6}
    for start, end in pairwise(path):
        axis.annotate("", means[end], means[start], arrowprops=arrow)
    if mark in means:
        axis.plot(*means[mark], "o", ms=18, mfc="none", mec="black", mew=2)
    axis.set(xscale="log", xlabel="warping error [1e-3]", ylabel="distance to valid images [1e-3]")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return axis.figure


def draw_accumulation(curves: Mapping[str, Mapping[int, Sequence[float]]]) -> Figure:
    """Warping error of the clean estimates over the denoising steps.

    curves: {name: {timestep: values of the clips}}; the band reaches from the least to the most.
    """
    figure, axis = plt.subplots(figsize=(7, 3.4))
    for color, (name, steps) in zip(PALETTE, curves.items(), strict=False):
        times = list(steps)
        axis.plot(times, [fmean(steps[t]) for t in times], "o-", ms=3, color=color, label=name)
        low, high = ([f(steps[t]) for t in times] for f in (min, max))
        axis.fill_between(times, low, high, color=color, alpha=0.15)
    axis.set(xlabel="timestep t (denoising runs to the right)", yscale="log")
    axis.set_ylabel("warping error of\nthe clean estimate [1e-3]")
    axis.invert_xaxis()
    axis.legend(fontsize=8)
    return figure


def draw_tree(
    nodes: Sequence[tuple[int, int]],
    window: tuple[int, int],
    counts: Mapping[str, Mapping[int, int]],
    frames: int,
) -> Figure:
    """The blocks of a binary tree that cover a window, beside remap counts over window sizes.

    nodes: (frame, level). window: its first and last frame. counts: {mode: {window: remaps}}.
    """
    options = {"figsize": (9.5, 3.2), "gridspec_kw": {"width_ratios": (1.5, 1)}}
    figure, (left, right) = plt.subplots(1, 2, **options)
    last = window[1] + 2
    for level in range(last.bit_length()):
        for end in range(2**level - 1, last, 2**level):
            used = (end, level) in nodes
            box = {"facecolor": "#0072B2" if used else "0.88", "edgecolor": "white", "lw": 1.5}
            left.add_patch(plt.Rectangle((end - 2**level + 0.5, level - 0.4), 2**level, 0.8, **box))
    left.axvspan(window[0] - 0.5, window[1] + 0.5, color="#E69F00", alpha=0.15)
    left.set(xlim=(-0.6, last - 0.4), ylim=(-0.6, last.bit_length() - 0.4), xlabel="frame")
    left.set(yticks=range(last.bit_length()), ylabel="level of the table")
    left.set_title(f"blue: the blocks that cover frames {window[0]} to {window[1]}")
    left.grid(visible=False)
    for color, (mode, found) in zip(PALETTE, counts.items(), strict=False):
        right.plot(list(found), list(found.values()), "o-", ms=4, color=color, label=mode)
    right.set(xscale="log", yscale="log", xlabel="window k [frames]", ylabel="remaps")
    right.set_title(f"{frames} frames")
    right.legend(fontsize=8)
    return figure


def draw_stereo(views: Mapping[str, Tensor], true: Tensor, found: Tensor, errors: Tensor) -> Figure:
    """Pictures [3, h, w] above; below true and found disparities [h, w], and their errors [n]."""
    figure, axes = plt.subplots(2, 3, figsize=(6.6, 3.0))
    for axis, (name, view) in zip(axes[0], views.items(), strict=True):
        axis.imshow(_picture(view))
        axis.set_title(name, fontsize=8)
    shown, limit = torch.where(true.isfinite(), true, torch.nan), true[true.isfinite()].max().item()
    names = "true disparity [pixels]", "found disparity [pixels]"
    for axis, image, name in zip(axes[1], (shown, found), names, strict=False):
        drawn = axis.imshow(image.cpu(), cmap="viridis", vmin=0, vmax=limit)
        figure.colorbar(drawn, ax=axis, shrink=0.8)
        axis.set_title(name, fontsize=8)
    for axis in axes.flat[:5]:
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    ordered = errors.cpu().sort().values
    axes[1, 2].plot(ordered, torch.linspace(0, 100, len(ordered)), color="#0072B2")
    axes[1, 2].set(xlim=(0, 6), xlabel="end-point error [pixels]", ylabel="pixels below [%]")
    return figure


def draw_choice(points: Points, path: Sequence[str], name: str, clip: Tensor) -> Figure:
    """`draw_tradeoff` with one variant marked, above the frames [n, 3, h, w] of its first clip."""
    figure, axes = plt.subplot_mosaic(
        [["points"] * len(clip), [f"frame {k}" for k in range(len(clip))]],
        figsize=(9, 4.8), height_ratios=(3, 1),
    )  # fmt: skip
    draw_tradeoff(points, path, name, axes["points"])
    axes["points"].set_title(name)
    for k, frame in enumerate(clip):
        axis = axes[f"frame {k}"]
        axis.imshow(_picture(frame))
        axis.set(xticks=[], yticks=[], title=f"frame {k}")
        axis.grid(visible=False)
    return figure
