"""One face for the labelled sets: training batches, test batches and the number of classes."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from helpers.data.folders import data_folder

Batches = Iterable[tuple[Tensor, Tensor]]
SETS = ("digits", "cifar10", "images")


class Labelled(NamedTuple):
    """A data set whose batches are (images [b, 3, h, w], labels [b])."""

    num_classes: int
    train: Callable[[int, int, torch.Generator], Batches]  # batch_size, steps, generator
    test: Callable[[int], Batches]  # batch_size; the same images in the same order every time


def labelled(
    name: str,
    root: Path | None,
    *,
    size: int = 32,
    count: int = 0,
    seed: int = 0,
    transforms: tuple[Callable, Callable] | None = None,
    workers: int = 0,
) -> Labelled:
    """Open a labelled data set by name.

    name: "digits" (embedded, over photographs), "cifar10", or "images" (train/ and val/ folders).
    size: side of the digits' canvas. count: number of test images, 0 for all of them.
    seed: backgrounds of the digits. transforms: of training and test pictures ("images" only).
    workers: loader processes ("images" only).
    Raises ValueError for another name, FileNotFoundError when `root` lacks the data.
    """
    if name not in SETS:
        raise ValueError(f"data set is {name!r}; allowed: {', '.join(SETS)}")
    if name == "digits":
        return _digits(size, count or None, seed)
    root = data_folder(root, name)
    if name == "cifar10":
        return _cifar(root, count)
    return _images(root, count, transforms or (None, None), workers)


def _digits(size: int, count: int | None, seed: int) -> Labelled:
    from helpers.data.digits import DigitsOnPhotos

    data = DigitsOnPhotos("train", size, seed=seed)
    held_out = DigitsOnPhotos("test", size, count=count, seed=seed)

    def train(batch_size: int, steps: int, generator: torch.Generator) -> Batches:
        for _ in range(steps):
            index = torch.randint(len(data), (batch_size,), generator=generator)
            yield data.redraw(index, generator), data.labels[index]

    return Labelled(10, train, lambda batch_size: _split(held_out, batch_size))


def _split(data, batch_size: int) -> Batches:
    return list(zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True))


def _cifar(root: Path, count: int) -> Labelled:
    from helpers.data.cifar import cifar10
    from helpers.data.digits import Digits
    from helpers.training import crop_flip, minibatches

    def train(batch_size: int, steps: int, generator: torch.Generator) -> Batches:
        batches = minibatches(
            *cifar10(root, "train"), batch_size=batch_size, steps=steps, generator=generator
        )
        for images, labels in batches:
            yield crop_flip(images.float() / 255, generator), labels

    images, labels = cifar10(root, "test")
    # the test files are sorted by class: an even stride keeps a subset balanced
    rows = torch.arange(0, len(labels), max(1, len(labels) // count) if count else 1)
    rows = rows[: count or None]
    held_out = Digits(images[rows].float() / 255, labels[rows])
    return Labelled(10, train, lambda batch_size: _split(held_out, batch_size))


def _images(root: Path, count: int, transforms: tuple, workers: int) -> Labelled:
    from helpers.data.folders import image_folder

    held_out = image_folder(root, "val", transforms[1])
    if count:
        stride = max(1, len(held_out) // count)
        held_out = Subset(held_out, range(0, len(held_out), stride)[:count])

    def train(batch_size: int, steps: int, generator: torch.Generator) -> Batches:
        return DataLoader(
            image_folder(root, "train", transforms[0]),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            generator=generator,
            persistent_workers=workers > 0,
        )

    return Labelled(
        1000, train, lambda batch_size: DataLoader(held_out, batch_size, num_workers=workers)
    )
