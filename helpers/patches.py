"""Images as patches with levels: the checks of arguments, and looking patches up in images."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def check_images(images: Tensor) -> None:
    """Raise TypeError or ValueError unless images are floating point (B, 3, H, W)."""
    if not torch.is_floating_point(images):
        raise TypeError(
            f"images must be floating point RGB in [0, 1], got {images.dtype}; divide by 255 first"
        )
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")


def check_range(images: Tensor, slack: float = 0.5) -> None:
    """`check_images`, and raise ValueError for values outside [0, 1] by more than `slack`."""
    check_images(images)
    low, high = images.aminmax()
    if not (low >= -slack and high <= 1 + slack):
        raise ValueError(f"images must have values in [0, 1], got {low:.3g} to {high:.3g}")


def check_divides(patch_size: int | Sequence[int], image_size: Sequence[int]) -> None:
    """Raise ValueError, with the nearest size that fits, unless the patches fill the image."""
    steps = (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size)
    if len(steps) != 2 or min(steps) < 1:
        raise ValueError(f"patch_size must be (height, width) of 1 or more, got {steps}")
    if any(side % step for side, step in zip(image_size, steps, strict=True)):
        pairs = zip(image_size, steps, strict=True)
        nearest = tuple(max(1, math.floor(side / step + 0.5)) * step for side, step in pairs)
        raise ValueError(
            f"image size {tuple(image_size)} is not divisible by {steps}; nearest: {nearest}"
        )


def check_width(width: float) -> None:
    """Raise ValueError unless 0 < width <= 1."""
    if not 0 < width <= 1:
        raise ValueError(f"width is {width}; allowed: above 0, at most 1")


def check_widths(widths: Sequence[float], levels: int) -> None:
    """Raise ValueError unless there is one width a level, each in (0, 1], falling or all equal."""
    for width in widths:
        check_width(width)
    falling = all(a > b for a, b in pairwise(widths))
    if len(widths) != levels or not (falling or len(set(widths)) == 1):
        raise ValueError(f"widths must be {levels} strictly decreasing numbers, got {widths}")


def check_scores(scores: Tensor, levels: int, counts: Sequence[int] | None) -> None:
    """Raise ValueError unless scores (..., N) are finite and the levels can be filled."""
    if scores.dim() not in (1, 2) or scores.numel() == 0:
        raise ValueError(f"scores must have shape (N,) or (B, N), got {tuple(scores.shape)}")
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity: ranks would mean nothing")
    n = scores.shape[-1]
    if counts is None:
        if not 1 <= levels <= n:
            raise ValueError(f"levels is {levels}; allowed with {n} patches: 1..{n}")
    elif len(counts) != levels or min(counts) < 0 or sum(counts) != n:
        raise ValueError(
            f"counts must be {levels} numbers of 0 or more that sum to {n}, got {tuple(counts)}"
        )


def split_patches(image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Non-overlapping patches (N, C, h, w), row by row, of an image (C, H, W).

    Raises ValueError, with the nearest size that fits, unless the patches fill the image.
    """
    check_divides(patch_size, image.shape[1:])
    h, w = patch_size
    rows = image.unfold(1, h, h).unfold(2, w, w)  # C, rows, columns, h, w
    return rows.permute(1, 2, 0, 3, 4).flatten(0, 1)


def merge_patches(patches: Tensor, image_size: Sequence[int]) -> Tensor:
    """Put patches (N, C, h, w) back together: (C, H, W) with image_size (H, W).

    Raises ValueError unless as many patches as given fill the image.
    """
    n, c, h, w = patches.shape
    check_divides((h, w), image_size)
    rows, columns = (side // step for side, step in zip(image_size, (h, w), strict=True))
    if rows * columns != n:
        raise ValueError(f"{n} patches of {(h, w)} do not make an image of {tuple(image_size)}")
    return patches.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, *image_size)


def patch_at(image: Tensor, index: int, patch_size: Sequence[int]) -> Tensor:
    """View (C, h, w) of patch `index`, counted row by row, of an image (C, H, W)."""
    height, width = patch_size
    row, column = divmod(index, image.shape[2] // width)
    return image[:, row * height :, column * width :][:, :height, :width]


def shared_counts(wide: int, patches: int, levels: int) -> list[int]:
    """Patches at each level when `wide` are at the first and the rest is shared evenly."""
    rest = patches - wide
    return [wide] + [rest // (levels - 1) + (i < rest % (levels - 1)) for i in range(levels - 1)]
