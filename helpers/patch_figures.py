"""Pictures of images that are treated patch by patch: what each patch scores, gets and becomes."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from helpers.plots import color

LEVELS = ("#D55E00", "#009E73", "#0072B2")  # widest, middle, narrowest
WIDE = {"layout": "constrained"}


def show(axis, image: Tensor, title: str = "") -> None:
    """Draw an image (3, h, w) in [0, 1] without ticks."""
    axis.imshow(image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy())
    _bare(axis, title)


def _bare(axis, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def _cells(values: Tensor, image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """One value a patch (N,) as a grid (rows, columns)."""
    return values.view(image.shape[1] // patch_size[0], image.shape[2] // patch_size[1]).cpu()


def draw_pairs(images: Mapping[str, Sequence[Tensor]]) -> Figure:
    """A grid of images: {row label: images (3, h, w)}."""
    rows, columns = len(images), max(map(len, images.values()))
    figure, axes = plt.subplots(
        rows, columns, figsize=(3 * columns, 2.1 * rows), squeeze=False, **WIDE
    )
    for line, (label, row) in zip(axes, images.items(), strict=True):
        for axis, image in zip(line, row, strict=True):
            show(axis, image)
        line[0].set_ylabel(label)
    return figure


def draw_damage(
    moire: Tensor, clear: Tensor, damage: Tensor, all_damage: Tensor, patch_size: Sequence[int]
) -> Figure:
    """An image, its damage a patch (N,) as a map, and the sorted damage of all images (n, N)."""
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.6), width_ratios=[1.2, 1.3, 1], **WIDE)
    show(axes[0], moire, "photograph of the screen")
    cells = axes[1].imshow(1e3 * _cells(damage, moire, patch_size), cmap="magma")
    figure.colorbar(cells, ax=axes[1], label="squared error [0.001]")
    _bare(axes[1], "damage of each patch")
    ranked = 1e3 * all_damage.sort(descending=True)[0].T.cpu()
    axes[2].plot(range(1, len(ranked) + 1), ranked, color="0.7", lw=0.8)
    axes[2].plot(range(1, len(ranked) + 1), ranked.mean(1), color=LEVELS[0], lw=2.5, label="mean")
    axes[2].set(xlabel="patch of an image, worst first", ylabel="squared error [0.001]")
    axes[2].legend(fontsize=8)
    return figure


def draw_prior(rows: Mapping[str, Mapping], cutoff: float) -> Figure:
    """What a prior sees in patches.

    rows: {title: {"patch" (3, h, w), "filtered" (h, w), "numbers" {symbol: value}}}.
    """
    figure, axes = plt.subplots(len(rows), 4, figsize=(10, 2.5 * len(rows)), **WIDE)
    limit = max(row["filtered"].abs().max() for row in rows.values())
    for line, (title, row) in zip(axes, rows.items(), strict=True):
        patch = row["patch"].cpu()
        show(line[0], patch, title)
        _differences(line[1], patch)
        _spectrum(line[2], patch.mean(0), cutoff)
        shades = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        drawn = line[3].imshow(row["filtered"].cpu(), **shades)
        _bare(line[3], ", ".join(f"{symbol} = {v:.3g}" for symbol, v in row["numbers"].items()))
        figure.colorbar(drawn, ax=line[3], label="high-pass luma")
    return figure


def _differences(axis, patch: Tensor) -> None:
    r, g, b = patch
    for name, values, shade in (
        ("rg = R - G", r - g, "#D55E00"),
        ("yb = (R + G) / 2 - B", (r + g) / 2 - b, "#0072B2"),
    ):
        axis.hist(values.flatten().numpy(), bins=40, range=(-0.6, 0.6), histtype="step",
                  color=shade, label=name)  # fmt: skip
    axis.set(xlabel="colour difference", ylabel="pixels")
    axis.legend(fontsize=7)


def _spectrum(axis, luma: Tensor, cutoff: float) -> None:
    power = torch.fft.fftshift(torch.fft.fft2(luma - luma.mean())).abs()
    height, width = luma.shape
    extent = (-width / 2 - 0.5, width / 2 - 0.5, height / 2 - 0.5, -height / 2 - 0.5)
    axis.imshow(torch.log10(power + 1e-2), cmap="viridis", extent=extent, vmin=-2, vmax=2.5)
    axis.add_patch(Circle((0, 0), cutoff, fill=False, color="white", lw=1.2))
    axis.set(xlabel="cycles per patch (circle: cut-off)", title="spectrum")
    axis.grid(False)


def draw_routing(
    moire: Tensor,
    clear: Tensor,
    restored: Tensor,
    scores: Tensor,
    levels: Tensor,
    patch_size: Sequence[int],
    widths: Sequence[float],
) -> Figure:
    """Photograph, prior, level map, restored image and error, with the widths as a legend."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 4.8), **WIDE)
    show(axes[0, 0], moire, "photograph of the screen")
    cells = axes[0, 1].imshow(1e3 * _cells(scores, moire, patch_size), cmap="magma")
    figure.colorbar(cells, ax=axes[0, 1], label="prior S [0.001]")
    _bare(axes[0, 1], "moire prior of each patch")
    draw_levels(axes[0, 2], moire, levels, patch_size, widths)
    for axis, image, title in (
        (axes[1, 0], restored, "restored"),
        (axes[1, 1], clear, "clear original"),
    ):
        show(axis, image, title)
    error = (restored - clear).abs().mean(0).cpu()
    drawn = axes[1, 2].imshow(error, cmap="magma", vmin=0, vmax=0.2)
    figure.colorbar(drawn, ax=axes[1, 2], label="|error| (0 to 1)")
    _bare(axes[1, 2], "what is left")
    return figure


def draw_levels(
    axis, image: Tensor, levels: Tensor, patch_size: Sequence[int], widths: Sequence[float]
) -> None:
    """The level of each patch as a colour over the image, with a legend of widths."""
    show(axis, 0.5 * image + 0.25, "width of each patch")
    grid = _cells(levels, image, patch_size)
    extent = (-0.5, image.shape[2] - 0.5, image.shape[1] - 0.5, -0.5)
    shades = {"cmap": ListedColormap(LEVELS), "vmin": -0.5, "vmax": len(LEVELS) - 0.5}
    axis.imshow(grid, extent=extent, alpha=0.55, **shades)
    marks = [Rectangle((0, 0), 1, 1, color=LEVELS[k], alpha=0.7) for k in range(len(widths))]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": len(widths)}
    axis.legend(marks, [f"{width:g}" for width in widths], fontsize=8, **below)


def draw_turns(losses: Sequence[float], widths: Sequence[float], window: int = 20) -> Figure:
    """Loss over the steps of each width's turns, smoothed over `window` of its steps."""
    figure, axis = plt.subplots(figsize=(7.5, 3), **WIDE)
    for k, width in enumerate(widths):
        own = torch.tensor(losses[k :: len(widths)])
        span = max(1, min(window, len(own)))
        smooth = own.unfold(0, span, 1).mean(1)
        steps = len(widths) * torch.arange(span, len(own) + 1)
        axis.plot(steps, smooth, color=LEVELS[k % 3], lw=2, label=f"width {width:g}")
    axis.set(xlabel="training step", ylabel="mean |error| of a batch", ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def draw_tradeoff(
    points: Mapping[str, tuple[float, Sequence[float]]], marked: Sequence[str], xlabel: str
) -> Figure:
    """PSNR over cost: {label: (cost, PSNR [dB] of each repeat)}; mean and range of the repeats.

    marked: the labels drawn in grey and named beside their points, joined by a line.
    """
    figure, axis = plt.subplots(figsize=(8, 4), **WIDE)
    means = {name: (x, sum(ys) / len(ys)) for name, (x, ys) in points.items()}
    axis.plot(*zip(*sorted(means[name] for name in marked), strict=True), color="0.75", lw=1)
    for name, (x, ys) in points.items():
        y, grey = means[name][1], name in marked
        spread = [[max(0.0, y - min(ys))], [max(0.0, max(ys) - y)]]
        look = {"color": "0.6" if grey else color(name), "ms": 9 if name == "DDA" else 6}
        axis.errorbar(x, y, spread, fmt="o", capsize=3, label=None if grey else name, **look)
        if grey:
            axis.annotate(name, (x, y), (6, -10), textcoords="offset points", fontsize=8)
    axis.set(xlabel=xlabel, ylabel="PSNR [dB]")
    figure.legend(fontsize=8, loc="outside right center")
    return figure


def draw_thirds(errors: Mapping[str, Tensor]) -> Figure:
    """Mean squared error of the patches at each level: {label: (K,)}, log scale."""
    figure, axis = plt.subplots(figsize=(7.5, 3), **WIDE)
    count = len(next(iter(errors.values())))
    for i, (label, values) in enumerate(errors.items()):
        places = torch.arange(count) + (i - (len(errors) - 1) / 2) * 0.8 / len(errors)
        axis.bar(places, 1e3 * values, 0.8 / len(errors), label=label, color=color(label))
    names = ["highest prior", *["middle"] * (count - 2), "lowest prior"][-count:]
    axis.set_xticks(range(count), names)
    axis.set(ylabel="mean squared error [0.001]")
    axis.legend(fontsize=8)
    return figure


def draw_speed(
    curve: Sequence[tuple[float, float]], label: str, points: Mapping[str, tuple[float, float]]
) -> Figure:
    """PSNR [dB] over latency [ms]: a curve of (latency, PSNR) and single named points."""
    figure, axis = plt.subplots(figsize=(7.5, 3.4), **WIDE)
    axis.plot(*zip(*curve, strict=True), ".-", color=color("DDA"), label=label)
    for name, place in points.items():
        axis.plot(*place, "o", color=color(name), label=name)
    axis.set(xlabel="latency of an image [ms]", ylabel="PSNR [dB]")
    axis.legend(fontsize=8)
    return figure
