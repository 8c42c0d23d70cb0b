"""Pairs of low and high resolution images: the layouts of the field, and embedded photographs.

All images are float32 (3, h, w) in 0..255. A missing low-resolution side is made as the field
does: bicubic with antialiasing, rounded to 8 bits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from helpers.data.folders import data_folder
from helpers.data.photographs import photo

# embedded photographs that networks are trained on, and those that are held out
PHOTOGRAPHS = {
    "train": ("retina", "hubble_deep_field", "ihc", "rocket", "china", "astronaut",
              "motorcycle_left"),
    "test": ("chelsea", "coffee", "flower"),
}  # fmt: skip
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
LAYOUTS = """
  {root}/DIV2K/DIV2K_train_HR/0001.png      and .../DIV2K_train_LR_bicubic/X{scale}/0001x{scale}.png
  {root}/benchmark/Set5/HR/NAME.png         and .../Set5/LR_bicubic/X{scale}/NAMEx{scale}.png
  {root}/Set5/HR/NAME.png                   the low-resolution side may be left out, it is made
  {root}/data/Set5/image_SRF_{scale}/img_001_SRF_{scale}_HR.png and ..._LR.png
  {root}/NAME/*.png                         any folder of pictures"""


class Pair(NamedTuple):
    """One image twice: lr (3, h, w) and hr (3, scale h, scale w)."""

    name: str
    lr: Tensor
    hr: Tensor


def downscale(hr: Tensor, scale: int) -> Tensor:
    """The bicubic low-resolution side (3, h // scale, w // scale) of hr (3, h, w), 0..255."""
    height, width = (size // scale for size in hr.shape[1:])
    whole = hr[None, :, : scale * height, : scale * width].float()
    small = F.interpolate(whole, (height, width), mode="bicubic", antialias=True)
    return small[0].clamp(0, 255).round()


def align(name: str, lr: Tensor, hr: Tensor, scale: int) -> Pair:
    """Cut what is left over of hr.

    Raises ValueError when hr is then not `scale` times lr.
    """
    size = tuple(scale * side for side in lr.shape[1:])
    spare = [have - need for have, need in zip(hr.shape[1:], size, strict=True)]
    if min(spare) < 0 or max(spare) >= scale:
        raise ValueError(
            f"{name}: a high-resolution image of {tuple(hr.shape[1:])} is not {scale} times its "
            f"low-resolution side {tuple(lr.shape[1:])}"
        )
    return Pair(name, lr, hr[:, : size[0], : size[1]])


class Pairs(Sequence):
    """Pairs in files, decoded when they are first asked for and kept as 8-bit numbers.

    files: (hr, lr or None) paths. DIV2K's 800 training images take 9 GB once all are decoded.
    """

    def __init__(self, files: Sequence[tuple[Path, Path | None]], scale: int):
        self.files, self.scale, self._kept = list(files), scale, {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        hr_file, lr_file = self.files[index]
        if index not in self._kept:
            hr = _read(hr_file)
            lr = downscale(hr, self.scale).byte() if lr_file is None else _read(lr_file)
            self._kept[index] = align(hr_file.stem, lr, hr, self.scale)
        return self._kept[index]


def _read(path: Path) -> Tensor:
    array = np.array(Image.open(path).convert("RGB"))  # a grey image becomes three equal channels
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def photograph_pairs(names: Sequence[str], scale: int) -> list[Pair]:
    """Embedded photographs with their low-resolution sides, 8-bit."""
    return [align(n, downscale(photo(n), scale).byte(), photo(n), scale) for n in names]


def sr_pairs(
    name: str, root: Path | None, scale: int, *, split: str = "test", count: int = 0
) -> Sequence[Pair]:
    """A set by name, 8-bit pairs in the order of their file names.

    name: "photographs" (embedded; `split` "train" or "test"), or a set in one of LAYOUTS under
    `root`. count: the first images only, 0 for all.
    Raises FileNotFoundError with the layouts when there is none.
    """
    if name == "photographs":
        return photograph_pairs(PHOTOGRAPHS[split], scale)[: count or None]
    root = data_folder(root, name)
    files = _find(root, name, scale)
    if not files:
        layouts = LAYOUTS.format(root=root, scale=scale)
        raise FileNotFoundError(f"no images of {name!r} for scale {scale}; expected{layouts}")
    return Pairs(files[: count or None], scale)


def _find(root: Path, name: str, scale: int) -> list[tuple[Path, Path | None]]:
    """(hr, lr or None) files of the first layout that fits."""
    for base in (root / name, root / "benchmark" / name, root / "data" / name):
        srf = sorted(base.glob(f"image_SRF_{scale}/*_HR.png"))
        if srf:
            return [(hr, _if_there(hr.with_name(hr.name[:-6] + "LR.png"))) for hr in srf]
        for high, low in (("HR", "LR_bicubic"), (f"{name}_train_HR", f"{name}_train_LR_bicubic")):
            if pictures := _pictures(base / high):
                small = base / low / f"X{scale}"
                return [(hr, _if_there(small / f"{hr.stem}x{scale}.png")) for hr in pictures]
        if pictures := _pictures(base):
            return [(hr, None) for hr in pictures]
    return []


def _if_there(path: Path) -> Path | None:
    """None when the whole low-resolution folder is missing, an error when one file is."""
    if path.is_file():
        return path
    if path.parent.is_dir() and path.parent.name.startswith("X"):
        raise FileNotFoundError(f"{path} is missing beside the other low-resolution images")
    return None


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
