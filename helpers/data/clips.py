"""Short clips with known motion, made from the embedded photographs, and a stereo pair."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.data.photographs import photo, photo_path

PANNED = ("chelsea", "coffee", "astronaut", "rocket")
TEXTURE, TRIES = 0.12, 50  # smallest deviation of the grey values; positions drawn
PALETTES = torch.tensor(
    [[0.8, 0.2, 0.2], [0.2, 0.7, 0.25], [0.2, 0.3, 0.85], [0.85, 0.75, 0.2]]
)  # red, green, blue, yellow


def panning_photo(
    seed: int,
    frames: int = 8,
    size: tuple[int, int] = (48, 48),
    step: tuple[int, int] = (1, 2),
    scale: int = 2,
) -> Tensor:
    """A clip [frames, 3, h, w] in [0, 1]: a window moves over a photograph.

    The photograph and the first position follow from the seed; positions over an empty part, where
    nothing seems to move, are drawn again. step: pixels (rows, columns) that the window moves a
    frame; so frame i+1 at p shows frame i at p + step. scale: the photograph is shrunk by this
    factor first.
    Raises ValueError when the window leaves the photograph.
    """
    name = PANNED[seed % len(PANNED)]
    image = F.avg_pool2d(photo(name).float()[None] / 255, scale)[0]
    travel = [(frames - 1) * abs(s) for s in step]
    free = [image.shape[i + 1] - size[i] - travel[i] for i in (0, 1)]
    if min(free) < 0:
        raise ValueError(
            f"{frames} frames of {size[0]} x {size[1]} pixels with steps {tuple(step)} need more "
            f"than {name} has: {image.shape[1]} x {image.shape[2]} pixels"
        )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(TRIES):
        corner = [int(torch.randint(f + 1, (), generator=generator)) for f in free]
        corner = [c + (t if s < 0 else 0) for c, t, s in zip(corner, travel, step, strict=True)]
        tops, lefts = ([corner[i] + time * step[i] for time in range(frames)] for i in (0, 1))
        places = zip(tops, lefts, strict=True)
        clip = torch.stack([image[:, t : t + size[0], l : l + size[1]] for t, l in places])
        if clip.mean(1).std() > TEXTURE:
            break
    return clip


def styled(guide: Tensor) -> Tensor:
    """The guide [n, 3, h, w] in each of the four palettes: [4, n, 3, h, w], its light kept."""
    grey = guide.mean(1, keepdim=True)
    colours = PALETTES.to(guide)[:, None, :, None, None]
    return (0.8 * colours + 0.5 * (grey - 0.5) + 0.05).clamp(0, 1)


def tinted_by_brightness(guide: Tensor) -> Tensor:
    """A clean clip: each pixel takes the palette of its local brightness (7 x 7 mean, quarters)."""
    grey = F.avg_pool2d(guide.mean(1, keepdim=True), 7, 1, 3, count_include_pad=False)
    edges = torch.tensor([0.25, 0.5, 0.75]).to(guide)
    band = torch.bucketize(grey, edges)[None].expand(-1, -1, 3, -1, -1)
    return styled(guide).gather(0, band)[0]


def flickering(clip: Tensor, generator: torch.Generator, offset: float, noise: float) -> Tensor:
    """A clip [n, 3, h, w] with a colour offset a frame, uniform within +-offset, and noise."""
    shift = (2 * torch.rand(len(clip), 3, 1, 1, generator=generator) - 1) * offset
    return (clip + (shift + noise * torch.randn(clip.shape, generator=generator)).to(clip)).clamp(
        0, 1
    )


def degraded(clip: Tensor, generator: torch.Generator, noise: float, offset: float) -> Tensor:
    """A clip [n, 3, h, w] with noise and a normal colour offset a frame; may leave 0..1."""
    grain = torch.randn(clip.shape, generator=generator)
    shift = torch.randn(len(clip), 3, 1, 1, generator=generator)
    return clip + (noise * grain + offset * shift).to(clip)


class StereoPair(NamedTuple):
    """Two views [3, h, w] in [0, 1]; left(row, column) is right(row, column - disparity)."""

    left: Tensor
    right: Tensor
    disparity: Tensor  # [h, w] in pixels; infinite where unknown


@cache
def stereo_pair(scale: int = 1) -> StereoPair:
    """Middlebury's motorcycle with its disparities, shrunk by a whole factor.

    Disparities are sampled, not averaged, and divided by the factor.
    """
    views = (photo(f"motorcycle_{side}").float() / 255 for side in ("left", "right"))
    with np.load(photo_path("skimage", "data/motorcycle_disp.npz")) as file:
        disparity = torch.from_numpy(file["arr_0"])
    left, right = (F.avg_pool2d(view[None], scale)[0] for view in views)
    centre = disparity[scale // 2 :: scale, scale // 2 :: scale]
    return StereoPair(left, right, centre[: left.shape[1], : left.shape[2]] / scale)
