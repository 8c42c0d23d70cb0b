"""Digits over photographs in discrete hues: grey pictures whose colours a model has to choose.

A grey scene (the guide) says where things are, but not which of `HUES` the ground and the digit
have: all hues have the same mean over the channels. Clips move the digit and pan the ground.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.data.digits import mnist, random_crops
from helpers.flicker import distance_to_valid
from helpers.metrics import warping_error

COLOURS, SATURATION = 4, 0.25
_ANGLES = 2 * math.pi * (torch.arange(COLOURS)[:, None] / COLOURS - torch.arange(3) / 3)
HUES = SATURATION * torch.cos(_ANGLES)  # [colours, 3], each of mean 0


class Scene(NamedTuple):
    """A grey scene [n, 1, h, w] in [0, 1], and the digit's share of each pixel, likewise."""

    guide: Tensor
    mask: Tensor


def windows(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Cut [n, c, size, size] out of images [n, c, h, w] at (top[i], left[i]); outside is 0."""
    padded = F.pad(images, (size,) * 4).permute(0, 2, 3, 1)
    rows, columns = (side[:, None] + size + torch.arange(size) for side in (top, left))
    index = torch.arange(len(images))[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def compose(ground: Tensor, digit: Tensor) -> Scene:
    """A scene from the grey ground [n, 1, h, w] and the digit's mask, both in [0, 1]."""
    dark = 0.25 + 0.3 * ground
    return Scene(dark + digit * (0.72 - dark), digit)


def tint(scene: Scene, ground: Tensor, digit: Tensor) -> Tensor:
    """Colour a scene: images [n, 3, h, w] from hue indices [n] of the ground and the digit."""
    hues = (HUES[index][:, :, None, None] for index in (ground, digit))
    below, above = hues
    return scene.guide + below + scene.mask * (above - below)


def valid_images(scene: Scene) -> Tensor:
    """Every colouring [colours * colours, n, 3, h, w] of a scene."""
    pairs = torch.cartesian_prod(torch.arange(COLOURS), torch.arange(COLOURS))
    return torch.stack([tint(scene, *(hue.expand(len(scene.mask)) for hue in p)) for p in pairs])


def _grounds(split: str, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Grey crops [count, 1, size, size] of the photographs, small ones at half the resolution."""
    shrink = 2 if size <= 48 else 1  # larger ones would not fit into most photographs
    crops = random_crops(split, count, shrink * size, generator)
    return F.avg_pool2d(crops.mean(1, keepdim=True), shrink)


def _digits(split: str, count: int, size: int, generator: torch.Generator) -> Tensor:
    images = mnist(split).images
    chosen = images[torch.randint(len(images), (count,), generator=generator)]
    return F.interpolate(chosen, size=28 * size // 32, mode="bilinear", antialias=True)


def random_scenes(split: str, count: int, size: int, generator: torch.Generator) -> Scene:
    """`count` scenes of random digits at random places over random crops of the photographs."""
    ground = _grounds(split, count, size, generator)
    digit = _digits(split, count, size, generator)
    top, left = torch.randint(-size // 4, size // 8 + 1, (2, count), generator=generator)
    return compose(ground, windows(digit, top, left, size))


def moving_digit(
    seed: int,
    frames: int = 8,
    size: int = 32,
    digit_step: tuple[int, int] = (1, 1),
    ground_step: tuple[int, int] = (0, -1),
) -> Scene:
    """A clip of one test digit over one photograph.

    Steps are pixels (rows, columns) by which what is seen moves a frame.
    """
    generator, time = torch.Generator().manual_seed(seed), torch.arange(frames)
    travel = frames * max(map(abs, (*ground_step, 1)))
    wide = _grounds("test", 1, size + 2 * travel, generator)
    top, left = (travel - time * step for step in ground_step)
    ground = windows(wide.expand(frames, -1, -1, -1), top, left, size)
    digit = _digits("test", 1, size, generator).expand(frames, -1, -1, -1)
    start = size // 16 + frames // 2
    top, left = (start - size // 8 - time * step for step in digit_step)
    return compose(ground, windows(digit, top, left, size))


def moving_regions(
    scene: Scene, digit_step: tuple[int, int] = (1, 1), ground_step: tuple[int, int] = (0, -1)
) -> dict[str, tuple[tuple[int, int], Tensor]]:
    """Shift and valid pixels [n - 1, h, w] of digit and ground, for `metrics.warping_error`."""
    regions = {}
    for name, step in {"digit": digit_step, "ground": ground_step}.items():
        shift = (-step[0], -step[1])
        part = scene.mask[:, 0] > 0.5 if name == "digit" else scene.mask[:, 0] < 0.02
        same = part[:-1].roll((step[0], step[1]), (1, 2))  # frame i at p + shift
        regions[name] = shift, part[1:] & same
    return regions


def scene_scores(frames: Tensor, scene: Scene) -> dict[str, float]:
    """Warping error of "digit" and "ground" and distance "off" to the valid images, in 1e-3.

    For clips of `moving_digit` with its default steps.
    """
    regions = moving_regions(scene).items()
    scores = {name: 1e3 * warping_error(frames, *region) for name, region in regions}
    return scores | {"off": 1e3 * distance_to_valid(frames, valid_images(scene))}


def noisy_batches(
    alphas: Tensor, size: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training pairs of a denoiser: `steps` batches (x, y).

    x: [b, 5, h, w], the noisy image in -1..1, the guide in -1..1 and a plane with the timestep;
    y: the "v" of the image, sqrt(a) noise - sqrt(1 - a) image.
    alphas: cumulative alpha products [T] of the noise schedule.
    """
    for _ in range(steps):
        scene = random_scenes("train", batch_size, size, generator)
        hues = torch.randint(COLOURS, (2, batch_size), generator=generator)
        image, guide = 2 * tint(scene, *hues) - 1, 2 * scene.guide - 1
        t = torch.randint(len(alphas), (batch_size, 1, 1, 1), generator=generator)
        noise, a = torch.randn(image.shape, generator=generator), alphas[t]
        noisy = a.sqrt() * image + (1 - a).sqrt() * noise
        plane = t.expand(-1, 1, size, size).float()
        yield torch.cat([noisy, guide, plane], 1), a.sqrt() * noise - (1 - a).sqrt() * image
