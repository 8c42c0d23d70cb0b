"""Two image domains: an embedded colouring task, and readers of the CycleGAN and pix2pix layouts.

All give float images in [-1, 1]. A set has a length and `batch(rows, generator)`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from helpers.data.cifar import cifar10
from helpers.data.digits import check_split
from helpers.data.photographs import photo

COLOURFUL = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower", "ihc")
TRAIN_SHARE = 0.7  # training crops lie left of this share of a photo's width, test crops right
SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = {"train": ("train",), "test": ("val", "test")}
DATASETS = ("photos", "cifar10", "images", "pix2pix", "cyclegan")
LICENCES = {  # of what a committed checkpoint was trained on
    "photos": "photographs in the public domain, CC0, CC BY 2.0 and without known restrictions "
    "(data/README.md)",
}
HOW_TO_GET = {
    "images": "put pictures (*.jpg, *.png, in subfolders if you like) there",
    "pix2pix": "expected <root>/train and <root>/val (or test) with pictures that hold input and "
    "target side by side (http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/)",
    "cyclegan": "expected <root>/trainA, trainB, valA, valB (or testA, testB) with pictures "
    "(http://efrosgans.eecs.berkeley.edu/cyclegan/datasets/)",
}


def check_images(x: Tensor, name: str = "images") -> Tensor:
    """Return x, float images in [-1, 1]; TypeError for integers, ValueError outside the range."""
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected float images in [-1, 1], got {x.dtype}")
    low, high = x.min().item(), x.max().item()
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"{name}: expected float images in [-1, 1], got {low:.3g} to {high:.3g}")
    return x


def grey_blurred(colour: Tensor) -> Tensor:
    """The colouring task's input: grey (ITU-R 601), halved by averaging, enlarged; 3 channels."""
    weights = colour.new_tensor([0.299, 0.587, 0.114])
    grey = torch.einsum("nchw,c->nhw", colour, weights)[:, None]
    small = F.avg_pool2d(grey, 2)
    large = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    return large.expand_as(colour)


def photo_crops(split: str, count: int, size: int = 64, seed: int = 0) -> Tensor:
    """Random colour crops of the embedded photographs at half resolution, uint8 (count, 3, s, s).

    Training crops come from the left 70 % of each photo and test crops from the rest, so that no
    pixel is in both; training crops are mirrored at random. Photos take turns.
    """
    check_split(split)
    generator = torch.Generator().manual_seed(1000 * seed + (split == "test"))
    regions = []
    for name in COLOURFUL:
        half = F.avg_pool2d(photo(name).float()[None], 2)[0].round().byte()
        border = int(TRAIN_SHARE * half.shape[2])
        regions.append(half[:, :, :border] if split == "train" else half[:, :, border:])
    narrowest = min(min(region.shape[1:]) for region in regions)
    if not 1 <= size <= narrowest:
        raise ValueError(f"size must be in 1..{narrowest} for {split} crops of photos, got {size}")
    crops = []
    for index in range(count):
        region = regions[index % len(regions)]
        free = torch.tensor(region.shape[1:]) - size + 1
        top, left = (torch.rand(2, generator=generator) * free).long().tolist()
        crop = region[:, top : top + size, left : left + size]
        mirror = split == "train" and torch.rand((), generator=generator) < 0.5
        crops.append(crop.flip(2) if mirror else crop)
    return torch.stack(crops)


class ColouringTask:
    """Targets in memory, uint8 (n, 3, h, w), enlarged to `size`; the input is `grey_blurred`."""

    paired = True

    def __init__(self, targets: Tensor, size: int):
        self.targets, self.size = targets, size

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Tensor, generator: torch.Generator | None = None):
        """(input, target) of these rows; they are the same for any generator."""
        target = self.targets[rows].float() / 127.5 - 1
        if target.shape[-1] != self.size:
            options = {"mode": "bicubic", "align_corners": False, "antialias": True}
            target = F.interpolate(target, (self.size, self.size), **options).clamp(-1, 1)
        return grey_blurred(target), target


class ImageFiles:
    """Pictures on disk, read when asked for, resized to size * 286 / 256 and cropped to size.

    files: one list (of targets, or of both halves side by side), or two for domains A and B.
    make: (n, 3, size, size or 2 size) pictures -> (a, b); unused with two lists.
    A generator draws crop positions, mirroring and partners (of unpaired sets); without one, a
    picture is resized to `size` and its partner has the same row, modulo the length of B.
    """

    def __init__(self, files: Sequence[list[Path]], size: int, make: Callable | None, double: bool):
        self.files, self.size, self.make, self.double = files, size, make, double
        self.paired = len(files) == 1

    def __len__(self) -> int:
        return len(self.files[0])

    def _read(self, job: tuple[Path, list[float] | None]) -> Tensor:
        path, draws = job
        side = self.size if draws is None else round(self.size * 286 / 256)
        with Image.open(path) as image:
            wide = (2 * side if self.double else side, side)
            array = np.array(image.convert("RGB").resize(wide, Image.Resampling.BICUBIC))
        picture = torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1
        halves = picture.chunk(2, 2) if self.double else (picture,)
        if draws is not None:
            top, left = (int(u * (side - self.size + 1)) for u in draws[:2])
            halves = [h[:, top : top + self.size, left : left + self.size] for h in halves]
            halves = [h.flip(2) if draws[2] < 0.5 else h for h in halves]
        return torch.cat(tuple(halves), 2)

    def batch(self, rows: Tensor, generator: torch.Generator | None = None):
        """(a, b), each float (n, 3, size, size) in [-1, 1]."""
        domains = [rows.tolist()]
        if not self.paired:
            other = len(self.files[1])
            partners = rows % other
            if generator is not None:
                partners = torch.randint(other, rows.shape, generator=generator)
            domains.append(partners.tolist())
        images = []
        for files, chosen in zip(self.files, domains, strict=True):
            draws = [None] * len(chosen)
            if generator is not None:
                draws = torch.rand(len(chosen), 3, generator=generator).tolist()
            jobs = [(files[i], d) for i, d in zip(chosen, draws, strict=True)]
            with ThreadPoolExecutor(min(8, len(jobs))) as pool:
                images.append(torch.stack(list(pool.map(self._read, jobs))))
        return tuple(images) if self.make is None else self.make(images[0])


def _pictures(folder: Path, kind: str) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no pictures in {folder}: {HOW_TO_GET[kind]}")
    return files


def _folder(root: Path, split: str, kind: str, domain: str = "") -> Path:
    places = [root / f"{name}{domain}" for name in SPLITS[split]]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"no folder {' or '.join(map(str, places))}: {HOW_TO_GET[kind]}")


def image_pairs(
    name: str,
    split: str,
    *,
    size: int,
    count: int = 0,
    root: str | Path | None = None,
    seed: int = 0,
) -> ColouringTask | ImageFiles:
    """The "train" or "test" split of a two-domain data set, by name.

    photos: embedded, `count` crops. cifar10: enlarged to size. images: pictures of root/train and
    root/val (or test), coloured from grey. pix2pix: input and target side by side in one picture.
    cyclegan: trainA, trainB, ... count > 0 keeps only the first ones.
    Raises ValueError for another name and FileNotFoundError naming the folder that is missing.
    """
    check_split(split)
    if name not in DATASETS:
        raise ValueError(f"data set is {name!r}; allowed: {', '.join(DATASETS)}")
    if name == "photos":
        return ColouringTask(photo_crops(split, count, size, seed), size)
    if name == "cifar10":
        return ColouringTask(cifar10(root, split)[0][: count or None], size)
    if root is None:
        raise FileNotFoundError(
            f"the data set {name!r} is read from disk: give data_root; {HOW_TO_GET[name]}"
        )
    root = Path(root)
    if name == "cyclegan":
        folders = [_folder(root, split, name, domain) for domain in "AB"]
        return ImageFiles([_pictures(f, name)[: count or None] for f in folders], size, None, False)
    files = [_pictures(_folder(root, split, name), name)[: count or None]]
    if name == "images":
        return ImageFiles(files, size, lambda b: (grey_blurred(b), b), False)
    return ImageFiles(files, size, lambda both: tuple(both.chunk(2, 3)), True)
