"""CIFAR-10 from disk: torchvision's batches, folders of pictures, or a tar of such folders."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from helpers.data.digits import check_split
from helpers.data.folders import data_folder
from helpers.files import write_atomic

PICTURES = (".jpg", ".jpeg", ".png")
HOW_TO_GET = (
    "put there cifar-10-batches-py/ (https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, "
    "unpacked), or train/<class>/*.png and test/<class>/*.png, or one cifar10.tar of those"
)


def cifar10(root: str | Path | None, split: str) -> tuple[Tensor, Tensor]:
    """CIFAR-10's images uint8 [n, 3, 32, 32] and labels [n], from `root` or `root`/cifar10.

    Folder classes are numbered by sorted name, which is CIFAR-10's own order. Pictures are decoded
    once: the result is cached under $XDG_CACHE_HOME, keyed by the listing.
    Raises FileNotFoundError with the expected layout.
    """
    check_split(split)
    root = data_folder(root, "cifar10")
    for base in (root, root / "cifar10"):
        if (base / "cifar-10-batches-py").is_dir():
            return _batches(base, split)
        if (base / split).is_dir():
            files = sorted(p for p in (base / split).glob("*/*") if p.suffix.lower() in PICTURES)
            listing = [(f"{p.parent.name}/{p.name}", p.stat().st_size) for p in files]
            return _decoded(base / split, listing, (path.read_bytes() for path in files))
        if base.with_suffix(".tar").is_file():
            return _tar(base.with_suffix(".tar"), split)
    raise FileNotFoundError(f"no CIFAR-10 in {root} or {root / 'cifar10'}: {HOW_TO_GET}")


def _batches(base: Path, split: str) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(str(base), train=split == "train", download=False)
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


def _tar(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Members .../<split>/<class>/<picture> of a tar, read without unpacking it."""
    with tarfile.open(path) as archive:
        members = {
            "/".join(Path(member.name).parts[-2:]): member
            for member in archive
            if member.isfile()
            and Path(member.name).suffix.lower() in PICTURES
            and split in Path(member.name).parts[:-2]
        }
        names = sorted(members)
        listing = [(name, members[name].size) for name in names]
        contents = (archive.extractfile(members[name]).read() for name in names)
        return _decoded(path, listing, contents)


def _decoded(
    place: Path, listing: list[tuple[str, int]], contents: Iterator[bytes]
) -> tuple[Tensor, Tensor]:
    if not listing:
        raise FileNotFoundError(f"{place} has no <class>/*.jpg or *.png: {HOW_TO_GET}")
    key = hashlib.sha256(repr((str(place.resolve()), listing)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reproduce-cv"
    stored = cache / f"cifar10-{key}.safetensors"
    if stored.is_file():
        data = load_file(stored)
        return data["images"], data["labels"]
    pictures = [np.array(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]
    classes = sorted({name.split("/")[0] for name, _ in listing})
    data = {
        "images": torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(),
        "labels": torch.tensor([classes.index(name.split("/")[0]) for name, _ in listing]),
    }
    cache.mkdir(parents=True, exist_ok=True)
    write_atomic(stored, save(data))
    return data["images"], data["labels"]
