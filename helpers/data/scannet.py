"""Readers of the real formats: ScanNet v2 scenes, ScanRefer sentences, SR3D and NR3D tables.

Layout under the data folder: `scans/<id>/<id>_vh_clean_2.ply`,
`<id>_vh_clean_2.0.010000.segs.json`, `<id>.aggregation.json` (or
`<id>_vh_clean.aggregation.json`), `<id>.txt`; `ScanRefer_filtered_{train,val}.json`; `sr3d.csv`,
`nr3d.csv`.
"""

from __future__ import annotations

import ast
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.data.expressions import END, ROLES, Spans
from helpers.data.furniture import words
from helpers.data.rooms import instance_boxes

WHERE = "ScanNet v2 is given out by its authors: http://www.scan-net.org (terms of use)"
PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2",
    "ushort": "<u2", "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4",
    "uint32": "<u4", "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8",
}  # fmt: skip
COLOUR_WORDS = set(
    words(
        "red orange yellow green blue purple violet pink brown black white gray grey beige tan "
        "silver gold golden dark light"
    )
)
ADJECTIVES = COLOUR_WORDS | set(
    words(
        "large larger largest big bigger biggest small smaller smallest tall taller tallest short "
        "shorter shortest long wide narrow round square rectangular wooden metal glass leather "
        "plastic empty open closed first second third last left leftmost right rightmost middle"
    )
)
PRONOUNS = {"it", "this", "that", "which", "its", "one"}
RELATIONS = set(
    words(
        "near beside next by on above over under below beneath behind front left right between "
        "closest nearest farthest furthest facing against inside in atop corner adjacent"
    )
)


@dataclass
class Scene:
    """A scanned scene. N points, T objects, metres, axis-aligned.

    xyz [N, 3], rgb [N, 3] in [0, 1], superpoint [N] int64 from 0 without gaps (ScanNet's
    segments), instance [N] int64 (-1 unlabelled), boxes [T, 6] (cx, cy, cz, w, h, d) of the points
    read, labels (T names), object_ids (T), vertex [N] (index in the file). An object whose points
    were not drawn is left out.
    """

    scene_id: str
    xyz: Tensor
    rgb: Tensor
    superpoint: Tensor
    instance: Tensor
    boxes: Tensor
    labels: list[str]
    object_ids: list[int]
    vertex: Tensor


def _existing(path: Path, parameter: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing (looked up from {parameter}); {WHERE}")
    return path


def read_ply(path: Path) -> dict[str, np.ndarray]:
    """The vertex properties of a binary little-endian PLY file, by name, each [N].

    Raises ValueError for another format, or when the vertices are not the file's first element.
    """
    content = Path(path).read_bytes()
    end = content.find(b"end_header")
    start = content.find(b"\n", end) + 1
    lines = content[: max(end, 0)].decode("ascii", "replace").split("\n")
    lines = [line.split() for line in lines if line.strip()]
    if end < 0 or lines[0] != ["ply"] or ["format", "binary_little_endian", "1.0"] not in lines:
        raise ValueError(f"{path}: not a PLY file of format binary_little_endian 1.0")
    elements = [i for i, line in enumerate(lines) if line[0] == "element"]
    if not elements or lines[elements[0]][1] != "vertex":
        raise ValueError(f"{path}: the first element must be vertex")
    last = elements[1] if len(elements) > 1 else len(lines)
    fields = [line[1:] for line in lines[elements[0] + 1 : last] if line[0] == "property"]
    if any(len(item) != 2 or item[0] not in PLY_TYPES for item in fields):
        raise ValueError(f"{path}: vertices must have scalar properties only")
    dtype = np.dtype([(name, PLY_TYPES[kind]) for kind, name in fields])
    count = int(lines[elements[0]][2])
    if len(content) - start < count * dtype.itemsize:
        raise ValueError(f"{path}: cut off, {count} vertices are announced")
    table = np.frombuffer(content, dtype, count, start)
    return {name: table[name].copy() for name in dtype.names}


def read_alignment(path: Path) -> np.ndarray:
    """The 4 x 4 matrix of the line `axisAlignment = ` (row-major); the identity without one."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "axisAlignment":
            numbers = [float(item) for item in value.split()]
            if len(numbers) != 16:
                raise ValueError(f"{path}: axisAlignment has {len(numbers)} numbers, not 16")
            return np.array(numbers).reshape(4, 4)
    return np.eye(4)


def read_scene(
    data_root: str | Path, scene_id: str, num_points: int = 50_000, seed: int = 1184
) -> Scene:
    """One ScanNet v2 scene, axis-aligned, with `num_points` vertices drawn without replacement.

    A scene with fewer vertices gives all of them, none twice. Raises FileNotFoundError naming the
    exact path and the parameter, ValueError when the files do not fit each other.
    """
    folder, where = Path(data_root) / "scans" / scene_id, "data_root"
    mesh = _existing(folder / f"{scene_id}_vh_clean_2.ply", where)
    segments_path = _existing(folder / f"{scene_id}_vh_clean_2.0.010000.segs.json", where)
    groups_path = folder / f"{scene_id}.aggregation.json"
    if not groups_path.is_file() and (folder / f"{scene_id}_vh_clean.aggregation.json").is_file():
        groups_path = folder / f"{scene_id}_vh_clean.aggregation.json"
    groups_path = _existing(groups_path, where)
    matrix = read_alignment(_existing(folder / f"{scene_id}.txt", where))
    vertices = read_ply(mesh)
    segments = np.asarray(json.loads(segments_path.read_text())["segIndices"], np.int64)
    count = len(vertices["x"])
    if len(segments) != count:
        raise ValueError(f"{segments_path}: {len(segments)} segments for {count} vertices")
    groups = json.loads(groups_path.read_text())["segGroups"]
    xyz = np.stack([vertices[axis] for axis in "xyz"], 1).astype(np.float64)
    xyz = xyz @ matrix[:3, :3].T + matrix[:3, 3]
    rgb = np.stack([vertices[name] for name in ("red", "green", "blue")], 1) / 255
    vertex = np.arange(count)
    if num_points < count:
        vertex = np.sort(np.random.default_rng(seed).choice(count, num_points, replace=False))
    return _scene(scene_id, xyz[vertex], rgb[vertex], segments[vertex], groups, vertex)


def _scene(scene_id, xyz, rgb, segments, groups, vertex) -> Scene:
    names, superpoint = np.unique(segments, return_inverse=True)
    owner = np.full(len(names), -1)
    ids, labels = [], []
    for group in groups:
        mine = np.isin(names, group["segments"])
        if mine.any():
            owner[mine] = len(ids)
            ids.append(int(group["objectId"]))
            labels.append(str(group["label"]))
    instance = owner[superpoint]
    left = np.unique(instance[instance >= 0])  # a later group may have taken all the segments
    relabel = np.full(len(ids) + 1, -1)
    relabel[left] = np.arange(len(left))
    instance = torch.from_numpy(relabel[instance].astype(np.int64))
    xyz = torch.from_numpy(xyz.astype(np.float32))
    return Scene(
        scene_id=scene_id,
        xyz=xyz,
        rgb=torch.from_numpy(rgb.astype(np.float32)),
        superpoint=torch.from_numpy(superpoint.astype(np.int64)),
        instance=instance,
        boxes=instance_boxes(xyz, instance, len(left)),
        labels=[labels[i] for i in left],
        object_ids=[ids[i] for i in left],
        vertex=torch.from_numpy(vertex),
    )


def read_scanrefer(path: str | Path, parameter: str = "data_root") -> list[dict]:
    """ScanRefer's list of {scene_id, object_id, object_name, ann_id, token, description}.

    `object_id` becomes an int; `object_name` has blanks instead of underscores.
    """
    records = json.loads(_existing(Path(path), parameter).read_text())
    keys = {"scene_id", "object_id", "object_name", "ann_id", "token", "description"}
    for number, record in enumerate(records):
        if keys - set(record):
            raise ValueError(f"{path}: record {number} lacks {sorted(keys - set(record))}")
    return [
        record
        | {
            "object_id": int(record["object_id"]),
            "object_name": record["object_name"].replace("_", " "),
        }
        for record in records
    ]


def write_scanrefer(path: str | Path, records: list[dict]) -> None:
    """Write records of ScanRefer's layout as JSON."""
    Path(path).write_text(json.dumps(records, indent=1) + "\n")


def read_referit3d(path: str | Path, parameter: str = "data_root") -> list[dict]:
    """The rows of SR3D's or NR3D's csv in ScanRefer's layout.

    Reads scan_id, target_id, instance_type, utterance and tokens (a Python list as text; the
    utterance is split at blanks where the column is missing).
    """
    with _existing(Path(path), parameter).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    needed = {"scan_id", "target_id", "instance_type", "utterance"}
    if rows and needed - set(rows[0]):
        raise ValueError(f"{path}: columns {sorted(needed - set(rows[0]))} are missing")
    return [
        {
            "scene_id": row["scan_id"],
            "object_id": int(row["target_id"]),
            "object_name": row["instance_type"],
            "ann_id": str(number),
            "token": _tokens(row),
            "description": row["utterance"],
        }
        for number, row in enumerate(rows)
    ]


def _tokens(row: dict) -> list[str]:
    if row.get("tokens"):
        return [str(token) for token in ast.literal_eval(row["tokens"])]
    return row["utterance"].lower().split()


def parse_sentence(
    tokens: list[str], object_name: str, class_names: set[str] | None = None
) -> tuple[tuple[str, ...], Spans] | None:
    """Tokens with the two end tokens, and the spans per role; None when the name does not occur.

    A small rule parser: main = the object's name (every mention, plural too), attribute = the
    adjectives and colours directly before it, pronoun, relation = words of fixed lists, auxiliary
    = the other class names of the scene.
    """
    heard = [token.lower() for token in tokens]
    spans: Spans = {role: [] for role in ROLES}
    taken = _mentions(heard, object_name)
    if not taken:
        return None
    spans["main"] = list(taken)
    used = {i for first, last in taken for i in range(first, last)}
    for first, _ in taken:
        before = first - 1
        while before >= 0 and heard[before] in ADJECTIVES and before not in used:
            used.add(before)
            spans["attribute"].append((before, before + 1))
            before -= 1
    others = sorted((class_names or set()) - {object_name}, key=lambda name: (-len(name), name))
    for name in others:
        for first, last in _mentions(heard, name):
            if not used & set(range(first, last)):
                used |= set(range(first, last))
                spans["auxiliary"].append((first, last))
    for role, allowed in (("pronoun", PRONOUNS), ("relation", RELATIONS)):
        spans[role] = [
            (i, i + 1) for i, word in enumerate(heard) if word in allowed and i not in used
        ]
        used |= {first for first, _ in spans[role]}
    return (*heard, *END), {role: sorted(found) for role, found in spans.items()}


def _mentions(heard: list[str], name: str) -> list[tuple[int, int]]:
    """Where a name of one or more words stands, its last word possibly in the plural."""
    parts = name.lower().replace("_", " ").split()
    size = len(parts)
    last = {parts[-1], parts[-1] + "s", parts[-1] + "es"} if parts else set()
    return [
        (i, i + size)
        for i in range(len(heard) - size + 1)
        if size and heard[i : i + size - 1] == parts[:-1] and heard[i + size - 1] in last
    ]
