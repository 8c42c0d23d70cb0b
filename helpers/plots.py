"""One visual style for ten notebooks, image grids, and the control that teachers move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct without colour vision; black is kept for references
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B")
REFERENCE = "#222222"
_labels: dict[str, str] = {}


def use_style() -> None:
    """Apply the collection's matplotlib settings; start() calls it."""
    plt.rcParams.update(
        {
            "figure.figsize": (7, 3.6),
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "legend.frameon": False,
            "image.interpolation": "nearest",
        }
    )


def color(label: str) -> str:
    """The colour of a label; the same label has the same colour in every figure of a run.

    References ("dense", "uncompressed", "teacher", "full precision") are black; other labels take
    the palette's colours in the order in which they are first asked for.
    """
    if label in ("dense", "uncompressed", "teacher", "full precision"):
        return REFERENCE
    return _labels.setdefault(label, PALETTE[len(_labels) % len(PALETTE)])


def image_grid(
    images, titles: Sequence[str] | None = None, columns: int = 8, size: float = 1.5
) -> Figure:
    """Draw images side by side.

    Args:
        images: tensor or sequence [n, 3 or 1, height, width] with values in [0, 1].
        titles: one a image, or None.
        columns: images a row.
        size: inches an image.

    Raises:
        ValueError: no image, or as many titles as there are images is not what was given.
    """
    images = list(images)
    if not images or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"got {len(images)} images and {len(titles or [])} titles")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    height = size * (1.2 if titles else 1.0)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size, rows * height), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for index, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        picture = image.detach().cpu().clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy()
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        if titles is not None:
            axis.set_title(titles[index], fontsize=8)
    return figure


def play(draw: Callable[..., Figure], **controls) -> None:
    """Show ``draw(**values)`` and the ipywidgets controls that redraw it in place.

    The first state is an ordinary static figure, so that a page without a kernel (GitHub,
    nbconvert, a headless run) shows it; in a live notebook moving a control replaces it.

    Args:
        draw: returns a matplotlib Figure; its keyword arguments are the controls' names.
        controls: ipywidgets with a ``value`` and a ``description``.
    """
    import ipywidgets
    from IPython.display import display

    def picture() -> Figure:
        figure = draw(**{name: control.value for name, control in controls.items()})
        plt.close(figure)  # the inline backend would show it a second time
        return figure

    display(ipywidgets.VBox(list(controls.values())))
    shown = display(picture(), display_id=True)
    for control in controls.values():
        control.observe(lambda change: shown.update(picture()), names="value")
