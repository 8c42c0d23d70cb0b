"""Furniture models as coloured point clouds: the embedded file data/furniture.npz.

`helpers.data.make_furniture` made it once from meshes; data/README.md lists the models, their
authors and licences.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from helpers import ROOT
from helpers.files import sha256, write_atomic

PATH = ROOT / "data" / "furniture.npz"
STEP = 0.002  # metres per unit of a stored coordinate
TEXTS = ("classes", "names", "authors", "licences", "sources")


@dataclass(frozen=True, eq=False)
class Model:
    """One piece of furniture, standing on z = 0, centred in x and y, its front towards -y.

    xyz [n, 3] metres, normals [n, 3] of unit length pointing outwards, rgb [n, 3] in [0, 1];
    area is the visible surface in square metres; `size` is (width, depth, height) in metres.
    """

    label: str
    name: str
    author: str
    licence: str
    xyz: np.ndarray
    normals: np.ndarray
    rgb: np.ndarray
    area: float

    @property
    def size(self) -> np.ndarray:
        return self.xyz.max(0) - self.xyz.min(0)


@cache
def models() -> tuple[Model, ...]:
    """All models of the embedded file, sorted by class.

    Raises FileNotFoundError when the file is missing, ValueError when its hash is wrong.
    """
    entry = json.loads((ROOT / "data" / "manifest.json").read_text()).get("furniture")
    restore = f"`git checkout -- {PATH} data/manifest.json` restores it"
    if entry is None or not PATH.is_file():
        raise FileNotFoundError(f"{PATH} or its entry in data/manifest.json is missing; {restore}")
    if sha256(PATH) != entry["sha256"]:
        raise ValueError(f"{PATH} is corrupted: its sha256 is not the manifest's; {restore}")
    with np.load(PATH) as file:
        arrays = dict(file)
    xyz = arrays["xyz"].astype(np.float32) * STEP
    normals = arrays["normals"].astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    rgb = arrays["rgb"].astype(np.float32) / 255
    rows = zip(*(arrays[key].tolist() for key in TEXTS[:4]), strict=True)
    clouds = zip(xyz, normals, rgb, arrays["areas"].tolist(), strict=True)
    return tuple(Model(*row, *cloud) for row, cloud in zip(rows, clouds, strict=True))


@cache
def by_class() -> dict[str, tuple[int, ...]]:
    """Class name -> indices into `models()`."""
    labels = [model.label for model in models()]
    return {
        label: tuple(i for i, other in enumerate(labels) if other == label)
        for label in sorted(set(labels))
    }


def words(text: str) -> list[str]:
    """The blank-separated words of a text: how lists of classes are written here."""
    return text.split()


def pack(clouds: list[tuple], rows: list[tuple]) -> dict[str, np.ndarray]:
    """The stored arrays: xyz int16 in steps of 2 mm, normals int8, rgb uint8 [M, n, 3], texts."""
    xyz, normals, rgb, areas = (np.stack(part) for part in zip(*clouds, strict=True))
    arrays = {
        "areas": areas.astype(np.float32),
        "xyz": np.round(xyz / STEP).astype(np.int16),
        "normals": np.round(normals * 63).astype(np.int8),
        "rgb": (np.round(rgb * 63) * 255 / 63).clip(0, 255).astype(np.uint8),
    }
    columns = zip(*rows, strict=True)
    return arrays | {key: np.array(column) for key, column in zip(TEXTS, columns, strict=True)}


def encode(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz file with fixed time stamps, so that the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as file:
        for key in sorted(arrays):
            member = io.BytesIO()
            np.save(member, arrays[key], allow_pickle=False)
            info = zipfile.ZipInfo(f"{key}.npy", (2020, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_LZMA
            file.writestr(info, member.getvalue())
    return buffer.getvalue()


def register(content: bytes, arrays: dict[str, np.ndarray], path: Path = PATH) -> None:
    """Write the manifest entry that vouches for the file."""
    manifest = path.parent / "manifest.json"
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "recipe": "python -m helpers.data.make_furniture on Debian's sweethome3d-furniture 1.8-1",
        "licence": "CC0, CC BY 3.0 and CC BY 3.0 US, per model (data/README.md)",
        "models": len(arrays["classes"]),
        "points_per_model": int(arrays["xyz"].shape[1]),
    }
    entries = json.loads(manifest.read_text()) | {"furniture": entry}
    write_atomic(manifest, (json.dumps(dict(sorted(entries.items())), indent=2) + "\n").encode())


def table(arrays: dict[str, np.ndarray]) -> str:
    """The models as a Markdown table for data/README.md, one line per class and licence."""
    lines: dict[tuple[str, str], list[str]] = {}
    for label, name, author, own, _ in zip(*(arrays[key] for key in TEXTS), strict=True):
        lines.setdefault((str(label), str(own)), []).append(f"{name} ({author})")
    rows = [f"| {a} | {'; '.join(v)} | {b} |" for (a, b), v in lines.items()]
    return "\n".join(["| class | models (author) | licence |", "|---|---|---|", *rows]) + "\n"
