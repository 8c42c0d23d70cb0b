"""Colour photographs that lie inside the scikit-image and scikit-learn wheels (no download)."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# package, file, licence as the package states it (data/README.md has the sources)
PHOTOS = (
    ("skimage", "data/astronaut.png", "public domain"),
    ("skimage", "data/chelsea.png", "CC0"),
    ("skimage", "data/coffee.png", "CC0"),
    ("skimage", "data/rocket.jpg", "public domain"),
    ("skimage", "data/hubble_deep_field.jpg", "public domain"),
    ("sklearn", "datasets/images/china.jpg", "CC BY 2.0"),
    ("sklearn", "datasets/images/flower.jpg", "CC BY 2.0"),
)

# Pictures of other kinds from the same wheels. Not among PHOTOS, whose crops lie behind the digits:
# a longer list would change every background.
MORE = (
    ("skimage", "data/retina.jpg", "CC0"),
    ("skimage", "data/ihc.png", "no known copyright restrictions"),
    ("skimage", "data/motorcycle_left.png", "not stated (Middlebury stereo 2014)"),
    ("skimage", "data/motorcycle_right.png", "not stated (Middlebury stereo 2014)"),
)


def photo_path(package: str, file: str) -> Path:
    """Where an installed package keeps one of its files, without importing the package.

    Raises FileNotFoundError naming the path when the installed version no longer ships it.
    """
    spec = find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / file if spec else Path(package) / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: this photograph comes with the pinned {package} wheel; reinstall it with "
            "`pip install --force-reinstall -c ci/constraints.txt scikit-image scikit-learn`"
        )
    return path


@cache
def photos() -> tuple[Tensor, ...]:
    """The embedded photographs in a fixed order: uint8 tensors [3, h, w], 300 to 1000 pixels."""
    return tuple(_read(package, file) for package, file, _ in PHOTOS)


@cache
def photo(name: str) -> Tensor:
    """One embedded picture by the name of its file without suffix, uint8 [3, h, w].

    Raises ValueError naming the pictures that there are.
    """
    files = {Path(file).stem: (package, file) for package, file, _ in PHOTOS + MORE}
    if name not in files:
        raise ValueError(f"photo is {name!r}; allowed: {', '.join(files)}")
    return _read(*files[name])


def _read(package: str, file: str) -> Tensor:
    array = np.array(Image.open(photo_path(package, file)).convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
