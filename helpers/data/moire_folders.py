"""Pairs of moire and clear pictures on disk, in the layouts of LCDMoire (AIM 2019) and FHDMi."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from helpers.data.digits import check_split
from helpers.data.folders import data_folder
from helpers.data.moire import SOURCES, rephotographed

PICTURES = (".jpg", ".jpeg", ".png")
FOLDERS = (("source", "target"), ("moire", "clear"))
SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
HOW_TO_GET = (
    "expected <root>/train and <root>/test (or val, valid, validation), each with source/src_*.png "
    "and target/tar_*.png (FHDMi, https://github.com/PKU-IMRE/FHDe2Net) or moire/* and clear/* "
    "with equal names (LCDMoire of AIM 2019, https://competitions.codalab.org/competitions/20165)"
)
DATASETS = (*SOURCES, "images", "lcdmoire", "fhdmi")


def read_image(path: Path) -> Tensor:
    """A picture file as uint8 (3, h, w)."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


class MoireFolder(Sequence):
    """(moire, clear) pairs (3, h, w), float in [0, 1], read when asked for.

    root: has <split>/source and target, or <split>/moire and clear, or those without <split>.
    size: (h, w) that both pictures are resized to; None leaves them.
    Pictures are paired by name, without the prefixes src_ and tar_ and without the suffix.
    Raises FileNotFoundError for a missing or empty folder and ValueError for a picture without
    its partner, naming the first one.
    """

    def __init__(self, root: str | Path, split: str, size: Sequence[int] | None = None):
        check_split(split)
        self.size = None if size is None else tuple(size)
        self.folders = _folders(Path(root), split)
        moire, clear = map(_listing, self.folders)
        for mine, other, folder in ((moire, clear, 1), (clear, moire, 0)):
            alone = sorted(mine.keys() - other.keys())
            if alone:
                raise ValueError(
                    f"{mine[alone[0]]} has no partner in {self.folders[folder]} "
                    f"({len(moire)} moire and {len(clear)} clear pictures); {HOW_TO_GET}"
                )
        self.names = sorted(moire)
        self._paths = [(moire[name], clear[name]) for name in self.names]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        moire, clear = (read_image(path).float() / 255 for path in self._paths[index])
        if self.size is None and moire.shape != clear.shape:
            shapes = tuple(moire.shape), tuple(clear.shape)
            raise ValueError(f"{self._paths[index][0]} and its partner differ in shape: {shapes}")
        return self._resized(moire), self._resized(clear)

    def _resized(self, image: Tensor) -> Tensor:
        if self.size in (None, tuple(image.shape[1:])):
            return image
        options = {"mode": "bicubic", "antialias": True, "align_corners": False}
        return F.interpolate(image[None], self.size, **options)[0].clamp(0, 1)


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    places = [root / name for name in SPLITS[split]] + [root]
    for place in places:
        for pair in FOLDERS:
            found = place / pair[0], place / pair[1]
            if all(folder.is_dir() for folder in found):
                return found
    raise FileNotFoundError(f"no {split} pairs in {root}: {HOW_TO_GET}")


def _listing(folder: Path) -> dict[str, Path]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES]
    if not files:
        raise FileNotFoundError(f"{folder} has no pictures: {HOW_TO_GET}")
    return {path.stem.removeprefix("src_").removeprefix("tar_"): path for path in files}


def moire_pairs(
    name: str,
    split: str,
    *,
    root: Path | None = None,
    size: Sequence[int] = (192, 288),
    views: int = 6,
    seed: int = 0,
) -> Sequence:
    """(moire, clear) pairs by the name of their data set.

    name: "screen" and "gratings" (embedded photographs), "images" (pictures of root/<split>, seen
    through `screen_camera`), "lcdmoire" or "fhdmi" (`MoireFolder` of root or root/name).
    Raises ValueError for another name, FileNotFoundError when root lacks the data.
    """
    if name not in DATASETS:
        raise ValueError(f"data set is {name!r}; allowed: {', '.join(DATASETS)}")
    if name in SOURCES:
        return rephotographed(split, views=views, size=size, seed=seed, source=name)
    root = data_folder(root, name)
    if name == "images":
        folder = root / split
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
        if not files:
            raise FileNotFoundError(f"no pictures in {folder}; expected any *.png or *.jpg there")
        pictures = [read_image(path) for path in files]
        return rephotographed(split, views=views, size=size, seed=seed, pictures=pictures)
    inner = root / name
    return MoireFolder(inner if inner.is_dir() else root, split, size)
