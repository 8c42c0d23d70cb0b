"""Where data sets lie, and folders of labelled pictures in ImageNet's layout, read by timm."""

from collections.abc import Callable
from pathlib import Path

from torch.utils.data import Dataset


def data_folder(root: str | Path | None, name: str) -> Path:
    """The folder given for a data set. Raises FileNotFoundError saying how to give one."""
    if root is None:
        raise FileNotFoundError(
            f"the data set {name!r} is read from disk: give its folder as data_root "
            "(`-p data_root=...`; the layouts are in data/README.md)"
        )
    return Path(root)


def image_folder(root: str | Path | None, split: str, transform: Callable | None = None) -> Dataset:
    """(image, label) pairs of `root`/`split`/<class>/*, or of a tar `root`/`split`.tar of those.

    Labels number the classes in sorted order, as torchvision's ImageFolder does; but where all
    classes are WordNet ids of ImageNet-1k they keep their index there, so that a part of the data
    set is labelled like the whole.
    Raises FileNotFoundError with the expected layout.
    """
    from timm.data import ImageNetInfo, create_dataset

    root = data_folder(root, "images")
    folder, archive = root / split, root / f"{split}.tar"
    if not folder.is_dir() and not archive.is_file():
        raise FileNotFoundError(
            f"no pictures in {folder}; expected {folder}/<class>/*.JPEG or {archive} "
            "(ImageNet-1k: https://image-net.org/download.php, validation pictures sorted into "
            "one folder per WordNet id)"
        )
    place = folder if folder.is_dir() else archive
    try:
        dataset = create_dataset("", root=str(place), search_split=False)
    except RuntimeError as error:  # timm's "Found 0 images"
        raise FileNotFoundError(f"{place} has no <class>/*.JPEG: {error}") from None
    imagenet = {name: index for index, name in enumerate(ImageNetInfo().label_names())}
    if {Path(file).parent.name for file in dataset.filenames()} <= imagenet.keys():
        dataset = create_dataset("", root=str(place), search_split=False, class_map=imagenet)
    dataset.transform = transform
    return dataset
