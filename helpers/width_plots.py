"""Figures of networks that serve several bit-widths: branches, levels, accuracy over cost."""

from collections.abc import Callable, Sequence
from itertools import product

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from helpers.bit_widths import Branches
from helpers.plots import PALETTE, REFERENCE, color
from helpers.quantization import uniform_quantize


def draw_switching(
    weight: Tensor, upper: float, errors: dict[str, Sequence[float]], widths: Sequence[int]
) -> Figure:
    """A histogram of weights with the levels of [-upper, upper]; switching errors by width."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
    left.hist(weight.flatten(), 80, color="0.75")
    for bits, height, shade in ((4, 0.35, PALETTE[0]), (2, 0.8, PALETTE[1])):
        levels = upper * torch.linspace(-1, 1, 2**bits)
        look = {"color": shade, "label": f"{2**bits} levels, {bits} bits"}
        left.vlines(levels, 0, height, transform=left.get_xaxis_transform(), **look)
    left.set(xlabel="weight", ylabel="number of weights")
    for (label, values), shade in zip(errors.items(), (*PALETTE[:2], REFERENCE), strict=True):
        right.plot(widths, values, "o-", color=shade, label=label)
    right.set(xlabel="bit-width k", ylabel="switching error against 8 bits")
    for axis in (left, right):
        axis.legend(fontsize=8)
    return figure


def draw_branches(
    axis: Axes, select: Callable[[int], Branches], num_branches: int, title: str, active: int = 0
) -> None:
    """Which branch serves which width, and how many even widths each serves.

    select(bits) -> chosen branches; active: the width to stand out, 0 for none.
    """
    rows = range(2, 2 * num_branches + 1)
    for bits in rows:
        for branch, share in select(bits):
            look = {"alpha": 1 if active in (0, bits) else 0.25, "color": PALETTE[branch % 8]}
            axis.barh(bits, 0.85 * share, 0.75, branch - 0.425, **look)
    even = [dict(select(bits)) for bits in rows if bits % 2 == 0]
    for branch in range(num_branches):
        served = f"{sum(branch in shares for shares in even)} of {len(even)}"
        axis.text(branch, max(rows) + 0.55, served, ha="center", fontsize=8)
    axis.set(xlabel="branch", ylabel="bit-width k", xticks=range(num_branches), yticks=rows)
    axis.set(xlim=(-0.6, num_branches - 0.4), ylim=(1.4, max(rows) + 1.1), title=title)
    axis.grid(False)


def draw_staircases(axis: Axes, bits: int) -> None:
    """Inputs at `bits` over weights at 2 bits."""
    t = torch.linspace(-0.1, 1.1, 1000)
    for levels, what, shade in ((bits, "inputs", PALETTE[0]), (2, "weights", REFERENCE)):
        q = uniform_quantize(t, 0, 1, levels)
        axis.plot(t, q, color=shade, label=f"{what}, {2**levels} levels")
    axis.set(xlabel="t, place in the clipping range", ylabel="q(t)")
    axis.legend(fontsize=8)


def draw_widths(
    axis: Axes, accuracies: dict[str, dict[int, float]], label: str, active: int
) -> None:
    """Accuracy [%] over the width, one line for each {bits: accuracy}; a ring at one point."""
    for name, values in accuracies.items():
        axis.plot(list(values), list(values.values()), "o-", color=color(name), label=name)
    value = accuracies.get(label, {}).get(active)
    if value is not None:
        axis.plot(active, value, "o", ms=11, mfc="none", color=REFERENCE)
    low, high = axis.get_ylim()
    axis.set_ylim(low - 1, high + 1)  # differences of tenths are noise and should look small
    axis.set_title(f"{label}: " + ("not trained" if value is None else f"{value:.1f} %"))
    axis.set(xlabel="bit-width k", ylabel="test accuracy [%]")
    axis.legend(fontsize=8)


def draw_costs(
    groups: dict[str, dict[str, tuple[list[float], Tensor]]], first: str, reference: float
) -> Figure:
    """Accuracy over cost, a panel for each group {title: {label: (costs, values)}}.

    costs [bit-operations] (widths,), values [%] (seeds, widths). first: the thick line.
    reference: accuracy of the full-precision network, 0 for none. Points of equal cost are moved
    apart a little.
    """
    figure, axes = plt.subplots(1, len(groups), figsize=(10, 3.8), sharey=True, squeeze=False)
    for axis, (title, curves) in zip(axes[0], groups.items(), strict=True):
        for place, (label, (costs, values)) in enumerate(curves.items()):
            look = {"lw": 3, "zorder": 3} if label == first else {"lw": 1.2}
            spread, shade = values.std(0, correction=0), PALETTE[place % len(PALETTE)]
            look |= {"marker": "o", "capsize": 3, "color": shade, "label": label}
            shifted = [cost * 1.04**place / 1e6 for cost in costs]
            axis.errorbar(shifted, values.mean(0), spread, **look)
        if reference:
            axis.axhline(reference, ls=":", color=REFERENCE, label="full precision")
        axis.set(xscale="log", xlabel="bit-operations of one image [million]", title=title)
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("test accuracy [%]")
    return figure


def draw_pairs(pairs: Tensor, widths: Sequence[int]) -> Figure:
    """Accuracy [%] (widths, widths) of weights at one width and inputs at another."""
    figure, axis = plt.subplots(figsize=(4.6, 3.4))
    axis.imshow(pairs, cmap="Blues", vmin=pairs.min() - 5, vmax=pairs.max() + 5)
    for i, j in product(range(len(widths)), repeat=2):
        look = {"ha": "center", "va": "center", "weight": "bold" if i == j else None}
        axis.text(j, i, f"{pairs[i, j]:.1f}", **look)
    axis.set_xticks(range(len(widths)), widths)
    axis.set_yticks(range(len(widths)), [f"{k} ({k // 2})" for k in widths])
    axis.set(xlabel="bits of the inputs", ylabel="bits of the weights (branches)")
    axis.set_title("test accuracy [%]; bold: trained")
    axis.grid(False)
    return figure
