"""Figures of rooms as point clouds: colours, superpoints, seeds, masks, boxes, and their scores."""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from helpers.plots import PALETTE, REFERENCE
from helpers.point_sets import scatter_mean

CORNERS = torch.tensor(list(product((-0.5, 0.5), repeat=3)))
SIDES = [(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1]
GREY, RED = "#C9C9C9", "#D62728"


def shuffled_colours(ids: torch.Tensor) -> np.ndarray:
    """One colour [N, 3] an id, neighbouring ids far apart."""
    hue = (np.arange(int(ids.max()) + 1) * 0.618) % 1
    value = 0.55 + 0.4 * ((np.arange(len(hue)) * 0.377) % 1)
    table = plt.cm.hsv(hue)[:, :3] * value[:, None]
    return table[ids.numpy()]


def room_axes(panels: int, width: float = 3.6, height: float = 3.6) -> tuple[Figure, list]:
    """A row of 3D axes."""
    figure = plt.figure(figsize=(panels * width, height), dpi=80)  # small files
    return figure, [figure.add_subplot(1, panels, i + 1, projection="3d") for i in range(panels)]


def dress(axis, xyz: torch.Tensor, title: str, view: tuple = (48, -62)) -> None:
    """Equal scales, few ticks, labels in metres; view: elevation and azimuth in degrees."""
    low, high = xyz.amin(0).numpy(), xyz.amax(0).numpy()
    axis.set_box_aspect(high - low, zoom=0.98)
    axis.set(xlabel="x [m]", ylabel="y [m]", zlabel="z [m]")
    axis.tick_params(labelsize=7, pad=-2)
    axis.xaxis.labelpad = axis.yaxis.labelpad = axis.zaxis.labelpad = -6
    for way in (axis.xaxis, axis.yaxis, axis.zaxis):
        way.set_major_locator(plt.MaxNLocator(3))
    axis.view_init(*view)
    axis.set_title(title, fontsize=9)


def cloud(axis, xyz: torch.Tensor, colours, size: float = 2.5, alpha: float = 1.0) -> None:
    """Points with colours [N, 3], or one colour."""
    axis.scatter(*xyz.T.numpy(), c=colours, s=size, alpha=alpha, linewidths=0, depthshade=False)


def box(axis, box_: torch.Tensor, colour: str, label: str | None = None, style: str = "-") -> None:
    """The 12 edges of a box (cx, cy, cz, w, h, d)."""
    points = (box_[:3] + CORNERS * box_[3:]).numpy()
    for number, (a, b) in enumerate(SIDES):
        ends = points[[a, b]].T
        axis.plot(*ends, color=colour, lw=1.4, ls=style, label=label if number == 0 else None)


def draw_clouds(xyz: torch.Tensor, panels: dict[str, torch.Tensor], view=(48, -62)) -> Figure:
    """One panel a title: colours [N, 3], or ids [N], of points xyz [N, 3]."""
    figure, axes = room_axes(len(panels))
    for axis, (title, paint) in zip(axes, panels.items(), strict=True):
        cloud(axis, xyz, shuffled_colours(paint) if paint.dim() == 1 else paint.clamp(0, 1).numpy())
        dress(axis, xyz, title, view)
    return figure


def mask_colours(rgb: torch.Tensor, mask: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """Pale colours of the room; hits green, misses orange, false alarms red."""
    colours = (0.25 * rgb + 0.7).clamp(0, 1).numpy().copy()
    for where, colour in ((mask & truth, PALETTE[2]), (truth & ~mask, PALETTE[4])):
        colours[where.numpy()] = plt.matplotlib.colors.to_rgb(colour)
    colours[(mask & ~truth).numpy()] = plt.matplotlib.colors.to_rgb(RED)
    return colours


MASK_KEY = "hit green, missed orange, false red"


def draw_masks(xyz, rgb, truth, panels: dict[str, tuple]) -> Figure:
    """One panel a title: (mask [N] bool, box or None); the target's points truth [N]."""
    figure, axes = room_axes(len(panels))
    for axis, (title, (mask, box_)) in zip(axes, panels.items(), strict=True):
        cloud(axis, xyz, mask_colours(rgb, mask, truth), 3)
        if box_ is not None:
            box(axis, box_, PALETTE[0])
        dress(axis, xyz, title)
    figure.suptitle(MASK_KEY, fontsize=9)
    return figure


def draw_branch(scenes, sentences, room, answers, number: int) -> Figure:
    """A sentence's room in four panels: colours, superpoints, pooled seeds, the answer."""
    r, xyz = int(sentences.room[number]), room.xyz
    ids, pooled = scenes.superpoint[r], scenes.pooled[r]
    many, seeds = int(ids.max()) + 1, xyz[scenes.seeds[r]]
    empty, truth = scenes.empty[r, :many], room.instance == int(sentences.target[number])
    figure, axes = room_axes(4, 3.3, 3.5)
    cloud(axes[0], xyz, room.rgb.clamp(0, 1).numpy())
    cloud(axes[1], xyz, shuffled_colours(ids))
    centre = scatter_mean(xyz, ids)
    cloud(axes[2], seeds, GREY, 5)
    for m in range(many):
        ends = torch.stack([centre[m], seeds[pooled[m, 0]]]).T.numpy()
        axes[2].plot(*ends, color=RED if empty[m] else PALETTE[0], lw=1)
    for bad, colour in ((False, PALETTE[0]), (True, RED)):
        cloud(axes[2], centre[empty == bad], colour, 8)
    cloud(axes[3], xyz, mask_colours(room.rgb, answers.mask[number][ids], truth), 3)
    box(axes[3], answers.box[number], PALETTE[0])
    titles = (
        "points", f"{many} superpoints", f"a seed for each ({int(empty.sum())} empty balls, red)",
        sentences.texts[number],
    )  # fmt: skip
    for axis, name in zip(axes, titles, strict=True):
        dress(axis, xyz, name)
    return figure


def draw_play(
    xyz, rgb, superpoint, mask, truth, box_, name: str, title: str, turn: float = -62
) -> Figure:
    """Superpoints, and the mask and box that answer a sentence, seen from azimuth `turn`."""
    figure, axes = room_axes(2, 4.2, 3.9)
    cloud(axes[0], xyz, shuffled_colours(superpoint))
    cloud(axes[1], xyz, mask_colours(rgb, mask, truth), 3)
    if box_ is not None:
        box(axes[1], box_, PALETTE[0])
    dress(axes[0], xyz, name, (48, turn))
    dress(axes[1], xyz, f"{title}\n{MASK_KEY}", (48, turn))
    return figure


def draw_costs(macs: dict[str, float], seconds: dict[str, float], share: float) -> Figure:
    """Multiply-adds and measured times (log scales) with a line at `share` of the first bar."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.0))
    units = ((macs, 1e9, "multiply-adds [G]"), (seconds, 1e-3, "time, one thread [ms]"))
    for axis, (values, unit, label) in zip(axes, units, strict=True):
        numbers = [value / unit for value in values.values()]
        bars = axis.bar(list(values), numbers, color=PALETTE[: len(values)], width=0.6)
        axis.bar_label(bars, fmt="%.3g", fontsize=8)
        name = f"{share:.0%} of {next(iter(values))}"
        axis.axhline(share * numbers[0], color=REFERENCE, ls="--", lw=1, label=name)
        axis.legend(loc="upper center", fontsize=8)
        axis.set(yscale="log", ylabel=label)
        axis.set_ylim(min(numbers) / 3, max(numbers) * 6)
    return figure


def draw_iou(values: dict[str, tuple], ceilings: dict[str, float]) -> Figure:
    """Mean IoU with 95 % intervals, {name: (mean, low, high)}, and horizontal ceilings."""
    figure, axis = plt.subplots(figsize=(7.4, 3.4))
    mean, low, high = np.array(list(values.values())).T
    bars = axis.bar(list(values), mean, 0.6, color=PALETTE[: len(values)],
                    yerr=np.stack([mean - low, high - mean]), capsize=4)  # fmt: skip
    axis.bar_label(bars, [f"{m:.3f}" for m in mean], label_type="center", color="white")
    styles = ("--", "-.", ":")
    for style, (name, value) in zip(styles, ceilings.items(), strict=False):
        axis.axhline(value, color=REFERENCE, ls=style, lw=1.2, label=f"{name} {value:.2f}")
    axis.set(ylabel="mean IoU of point masks", ylim=(0, 1))
    axis.legend(fontsize=8, loc="upper left", ncols=len(ceilings))
    return figure


def draw_logits(logits, scores, scenes, sentences, number: int) -> Figure:
    """Logits [Q, M] of a sentence, rows by falling score [Q], the target's superpoints first."""
    counts, title = scenes.counts[int(sentences.room[number])], sentences.texts[number]
    true = 2 * sentences.hits[number] > counts
    logits = logits[:, : int((counts > 0).sum())]
    true, counts = true[: logits.shape[1]], counts[: logits.shape[1]]
    columns = torch.argsort(true.float() * counts, descending=True, stable=True)
    rows = scores.argsort(descending=True)
    figure, axis = plt.subplots(figsize=(9.5, 3.4))
    shown, limit = logits[rows][:, columns].numpy(), float(logits.abs().quantile(0.98))
    picture = axis.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.axvline(int(true.sum()) - 0.5, color=REFERENCE, lw=1.5)
    axis.set(xlabel=f"superpoint (left of the line: the target's {int(true.sum())})",
             ylabel="query, best score first", title=title)  # fmt: skip
    axis.grid(False)
    figure.colorbar(picture, label="logit (mask where > 0)", pad=0.01)
    return figure


def draw_losses(curves: dict[str, list[float]], label: str, window: int = 15) -> Figure:
    """Running means of losses by step."""
    figure, axis = plt.subplots(figsize=(6, 3.2))
    for name, values in curves.items():
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        axis.plot(np.arange(len(smooth)) + window, smooth, label=name)
    axis.set(xlabel=f"step (running mean of {window})", ylabel=label, ylim=(0, None))
    axis.legend()
    return figure


def draw_ceilings(table: dict[str, dict[int, float]], label: str) -> Figure:
    """Curves {name: {number of seeds: value}}."""
    figure, axis = plt.subplots(figsize=(6, 3.2))
    for name, points in table.items():
        axis.plot(list(points), list(points.values()), marker="o", ms=4, label=name)
    axis.set(xlabel="number of seeds", ylabel=label, ylim=(0, 1))
    axis.legend(fontsize=8)
    return figure
