"""Quick furniture from boxes, a ball and a cylinder, of the same type as the real models."""

from __future__ import annotations

from functools import cache

import numpy as np

from helpers.data.furniture import Model

THEMES = {"primitives": "sofa table chair sofa table chair box ball cylinder box"}
CLUTTER = ["box", "ball", "cylinder", "box", "ball"]


def _legs(width: float, depth: float, height: float, side: float = 0.05) -> list[tuple]:
    x, y = (width - side) / 2, (depth - side) / 2
    return [(i * x, j * y, height / 2, side, side, height) for i in (-1, 1) for j in (-1, 1)]


# class: boxes (centre x, y, z, width, depth, height) in metres, front towards -y
PARTS = {
    "box": [(0, 0, 0.14, 0.45, 0.3, 0.28)],
    "chair": [
        (0, 0, 0.44, 0.42, 0.42, 0.05),
        (0, 0.19, 0.68, 0.42, 0.04, 0.45),
        *_legs(0.42, 0.42, 0.42),
    ],
    "sofa": [
        (0, 0, 0.21, 1.6, 0.7, 0.42),
        (0, 0.27, 0.6, 1.6, 0.16, 0.4),
        (-0.55, -0.6, 0.21, 0.5, 0.5, 0.42),
    ],
    "table": [(0, 0, 0.71, 1.2, 0.7, 0.05), *_legs(1.2, 0.7, 0.69)],
}


def box_surface(rng, parts: list[tuple], count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """`count` points by area on boxes: xyz and outward normals [count, 3], and the whole area."""
    parts = np.asarray(parts, float)
    w, d, h = parts[:, 3:].T
    areas = np.stack([d * h, d * h, w * h, w * h, w * d, w * d], 1).ravel()
    face = rng.choice(len(areas), count, p=areas / areas.sum())
    part, side = face // 6, face % 6
    unit = rng.uniform(-0.5, 0.5, (count, 3))
    normals = np.zeros((count, 3))
    unit[np.arange(count), side // 2] = side % 2 - 0.5
    normals[np.arange(count), side // 2] = 2.0 * (side % 2) - 1
    return parts[part, :3] + unit * parts[part, 3:], normals, float(areas.sum())


@cache
def models(count: int = 1024, seed: int = 0) -> tuple[Model, ...]:
    """box, ball, chair, cylinder, sofa (L-shaped), table as point clouds of `count` points."""
    rng = np.random.default_rng(seed)
    clouds = {label: box_surface(rng, parts, count) for label, parts in PARTS.items()}
    normals = rng.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    clouds["ball"] = 0.16 * normals + [0, 0, 0.16], normals, 4 * np.pi * 0.16**2
    clouds["cylinder"] = _cylinder(rng, count, radius=0.14, height=0.4)
    grey = np.full((count, 3), 0.6, np.float32)
    return tuple(
        Model(label, label, "-", "-", xyz.astype(np.float32), way.astype(np.float32), grey, area)
        for label, (xyz, way, area) in sorted(clouds.items())
    )


def _cylinder(rng, count: int, radius: float, height: float) -> tuple:
    area = 2 * np.pi * radius * (radius + height)
    angle, which = rng.uniform(0, 2 * np.pi, count), rng.random(count) * area
    cap = which < 2 * np.pi * radius**2
    top = which < np.pi * radius**2
    r = np.where(cap, radius * np.sqrt(rng.random(count)), radius)
    z = np.where(cap, height * top, height * rng.random(count))
    side = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(count)])
    normals = np.where(cap[:, None], np.where(top[:, None], [0, 0, 1.0], [0, 0, -1.0]), side)
    return side * r[:, None] + z[:, None] * [0, 0, 1], normals, area
