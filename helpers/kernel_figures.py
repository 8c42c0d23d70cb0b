"""Pictures of convolution kernels: what happens at each position, in a layer and over time."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

KEPT, OTHER, THIRD = "#0072B2", "#D55E00", "#009E73"


def draw_map(axis, values: Tensor, title: str):
    """One value in 0..1 a position (kh, kw) as colours and percentages; returns the image."""
    drawn = axis.imshow(values, cmap="viridis_r", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for (y, x), value in zip(
        torch.cartesian_prod(*map(torch.arange, values.shape)), values.flatten(), strict=True
    ):
        shade = "white" if value > 0.5 else "black"
        axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    return drawn


def draw_maps(rows: Sequence[dict[str, Tensor]], label: str) -> Figure:
    """A grid of `draw_map`: rows of {title: values (kh, kw)} with one colour scale."""
    figure, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=(8, 2.5 * len(rows)), layout="constrained", squeeze=False
    )
    for line, maps in zip(axes, rows, strict=True):
        for axis, (title, values) in zip(line, maps.items(), strict=True):
            drawn = draw_map(axis, values, title)
    figure.colorbar(drawn, ax=axes, label=label)
    return figure


def draw_history(steps: Sequence[int], seen: Sequence[dict], size: tuple[int, int]) -> Figure:
    """What a trace saw: "D" of each layer as lines, "S" (kh kw) of the last one as rows.

    size: (kh, kw). The dotted line is the chance level 1.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for index, line in enumerate(torch.tensor([look["D"] for look in seen]).T):
        left.plot(steps, line, label=f"sparse layer {index + 1}" if index < 4 else None)
    left.axhline(1, ls=":", color="0.4")
    left.set(xlabel="training step", ylabel="D of the main weights (1: chance)")
    left.legend(fontsize=8)
    strip = torch.stack([look["S"][-1] for look in seen])
    places = range(strip.shape[1])
    shades = {"cmap": "Blues", "vmin": 0, "vmax": 1.4, "interpolation": "nearest"}
    right.imshow(strip.T.float(), aspect="auto", extent=(0, steps[-1], len(places), 0), **shades)
    names = [f"row {k // size[1]}, column {k % size[1]}" for k in places]
    right.set_yticks([k + 0.5 for k in places], names, fontsize=7)
    right.set(xlabel="training step", title="S of the last sparse layer (dark: 1)")
    right.grid(False)
    return figure


def draw_kernels(kernels: dict[str, Tensor], positions: Tensor, top: float) -> Figure:
    """Kernels (O, I, kh, kw) of a layer: the first filter, and the layer's density at each place.

    positions (kh, kw): True ones get blue bars. top: upper end of the density axis in percent.
    """
    figure, axes = plt.subplots(
        2, len(kernels), figsize=(9, 4.2), height_ratios=[3, 1], layout="constrained"
    )
    shades = [KEPT if chosen else OTHER for chosen in positions.flatten()]
    for (above, below), (title, kernel) in zip(axes.T, kernels.items(), strict=True):
        one, density = kernel[0].flatten(1)[:32], (kernel != 0).double().mean((0, 1)).flatten()
        limit = max(one.abs().max(), 1e-12)
        above.imshow(one, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        above.set(title=title, xticks=range(len(density)))
        above.grid(False)
        below.bar(range(len(density)), 100 * density, color=shades)
        below.set(xlabel="kernel position", ylim=(0, top), xticks=range(len(density)))
    axes[0, 0].set_ylabel("input channel")
    axes[1, 0].set_ylabel("density [%]")
    return figure


def draw_densities(zeros: Tensor, chosen: Tensor, density: float, title: str) -> Figure:
    """Sparsity (kh, kw) with the chosen positions marked, and densities beside those of N:M.

    density: of the N:M pattern; the chosen positions have twice as much while training.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.2), width_ratios=[1, 2], layout="constrained"
    )
    figure.colorbar(draw_map(left, zeros, title), ax=left, label="sparsity (numbers: %)")
    rows, columns = chosen.nonzero(as_tuple=True)
    left.plot(columns, rows, "s", ms=22, mfc="none", mec="red", mew=1.5)
    places = torch.arange(zeros.numel())
    bars = {
        "unstructured": 1 - zeros.flatten(),
        "in training": density * (1 + chosen.flatten().int()),
    }
    for shift, colour, (label, values) in zip(
        (-0.2, 0.2), (THIRD, KEPT), bars.items(), strict=True
    ):
        right.bar(places + shift, 100 * values, 0.4, label=label, color=colour)
    right.axhline(100 * density, ls=":", color="0.4", label="N:M, folded")
    right.set(xlabel="kernel position, row by row", ylabel="density [%]")
    right.legend(fontsize=8)
    return figure
