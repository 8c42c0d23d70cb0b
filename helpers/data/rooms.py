"""Furnished rooms as labelled point clouds: synthetic scans with instances and boxes.

`furnished_room` stands real furniture models in a room and scans it from a few camera positions;
`primitive_room` is the quick kind from boxes, balls and cylinders. Both are deterministic by seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from helpers.data import furniture, layouts, primitives
from helpers.data.colours import COLOURS, colour_word, repaint
from helpers.data.scans import camera_path, visible, weighted_choice

PLAIN = set(
    furniture.words("toilet bathtub sink plant television computer fridge oven washer window")
)
CANDIDATES = 30_000  # points before the scan, at least: the z-buffer needs a dense surface


@dataclass
class Room:
    """A scanned room. N points, T instances; lengths in metres, the floor at z = 0.

    xyz [N, 3], rgb [N, 3] in [0, 1], normals [N, 3] of unit length, instance [N] int64 (-1 for
    floor and walls), boxes [T, 6] = (cx, cy, cz, w, h, d) around the points of each instance,
    with w, h, d along x, y, z, labels (class names, T), colours (a colour word or None, T),
    sizes [T, 3] (own width, depth, height of the whole piece, before yaw), yaws [T] radians,
    on [T] and under [T] (index of the instance it lies on or under, or -1), models [T] (index
    into the models' tuple), extent (width, depth, height), cameras [V, 3].
    """

    seed: int
    xyz: Tensor
    rgb: Tensor
    normals: Tensor
    instance: Tensor
    boxes: Tensor
    labels: list[str]
    colours: list[str | None]
    sizes: Tensor
    yaws: Tensor
    on: Tensor
    under: Tensor
    models: list[int]
    extent: tuple[float, float, float]
    cameras: Tensor

    def mask(self, target: int) -> Tensor:
        """The points [N] bool of one instance."""
        return self.instance == target


def instance_boxes(xyz: Tensor, instance: Tensor, count: int) -> Tensor:
    """Axis-aligned boxes [count, 6] (cx, cy, cz, w, h, d) around the points of each instance."""
    index = instance.clamp_min(0)[:, None].expand(-1, 3)
    inside = (instance >= 0)[:, None]
    low = torch.full((count, 3), torch.inf).scatter_reduce(
        0, index, xyz.where(inside, torch.inf), "amin"
    )
    high = torch.full((count, 3), -torch.inf).scatter_reduce(
        0, index, xyz.where(inside, -torch.inf), "amax"
    )
    return torch.cat([(low + high) / 2, high - low], 1)


def furnished_room(
    seed: int,
    num_points: int = 2048,
    pieces: tuple[int, int] = (4, 7),
    clutter: tuple[int, int] = (3, 5),
    side: tuple[float, float] = (2.8, 3.6),
    structure: float = 0.45,
    evenness: float = 0.5,
    openings: float = 0.0,
    repaint_share: float = 0.6,
    scan: bool = True,
    cameras: int = 4,
    noise: float = 0.004,
    normal_noise: float = 0.03,
    colour_noise: float = 0.03,
    min_points: int | None = None,
    theme: str | None = None,
) -> Room:
    """A room with `pieces` of furniture and `clutter` (lowest and highest number of each).

    `side` is the range of its width and depth in metres, `structure` the share of points on floor
    and walls, `evenness` (0 to 1) gives small pieces more points than their area would (at 0 all
    pieces have the same density, at 1 the same number), `openings` the chance of a door and
    that of a window, `repaint_share` the share of pieces in a colour of `colours.PALETTE`.
    With `scan` only points visible from `cameras` positions are kept, and normals look at the
    cameras; without it the whole surfaces are sampled. `noise` is in metres (each axis),
    `normal_noise` is added to unit normals, `colour_noise` to rgb (standard deviations).
    Instances with fewer than `min_points` points (default num_points / 250, at least 8) are taken
    out. `theme` is one of `layouts.THEMES`, drawn when None.
    Raises ValueError for an unknown theme or a number of points below 64.
    """
    rng = _start(seed, num_points)
    if theme is not None and theme not in layouts.THEMES:
        raise ValueError(f"theme is {theme!r}; allowed: {', '.join(layouts.THEMES)}")
    theme = theme or str(rng.choice(list(layouts.THEMES)))
    extent = rng.uniform(*side, 2)
    layout = layouts.Layout(rng, furniture.models(), furniture.by_class(), extent)
    for label in ("door", "window"):
        if rng.random() < openings:
            layout.add(label, "mount")
    names = layouts.THEMES[theme].split()
    head, tail = names[:2], list(rng.permutation(names[2:]))
    wanted = (head + tail)[: rng.integers(pieces[0], pieces[1] + 1)]
    if len(set(wanted)) == len(wanted):  # several pieces share a class
        wanted[-1] = wanted[rng.integers(len(wanted) - 1)] if len(wanted) > 1 else wanted[0]
    small = rng.permutation(layouts.CLUTTER)[: rng.integers(clutter[0], clutter[1] + 1)]
    layouts.furnish(layout, wanted, small.tolist(), layouts.AT_WALL)
    options = (num_points, structure, evenness, repaint_share, cameras if scan else 0)
    return _scan(
        rng, seed, layout, 2.0, options, (noise, normal_noise, colour_noise), min_points, PLAIN
    )


def primitive_room(
    seed: int,
    num_points: int = 2048,
    pieces: tuple[int, int] = (4, 6),
    clutter: tuple[int, int] = (2, 4),
    side: tuple[float, float] = (3.2, 3.2),
    structure: float = 0.5,
    evenness: float = 0.5,
    noise: float = 0.004,
    normal_noise: float = 0.03,
    colour_noise: float = 0.03,
    min_points: int | None = None,
) -> Room:
    """A room of boxes, balls, cylinders, chairs, L-shaped sofas and tables, all in plain colours.

    Whole surfaces, no cameras; the other arguments are those of `furnished_room`.
    """
    rng = _start(seed, num_points)
    models = primitives.models()
    by_class = {model.label: (index,) for index, model in enumerate(models)}
    layout = layouts.Layout(rng, models, by_class, rng.uniform(*side, 2))
    names = rng.permutation(primitives.THEMES["primitives"].split())
    small = rng.permutation(primitives.CLUTTER)[: rng.integers(clutter[0], clutter[1] + 1)]
    wanted = names[: rng.integers(pieces[0], pieces[1] + 1)].tolist()
    layouts.furnish(layout, wanted, small.tolist(), set())
    options = (num_points, structure, evenness, 1.0, 0)
    return _scan(
        rng, seed, layout, 1.6, options, (noise, normal_noise, colour_noise), min_points, set()
    )


def _start(seed: int, num_points: int) -> np.random.Generator:
    if num_points < 64:
        raise ValueError(f"num_points is {num_points}; allowed: 64 and more")
    return np.random.default_rng([1184, seed])


@cache
def _natural(model: furniture.Model) -> str | None:
    return colour_word(model.rgb)


def _scan(rng, seed, layout, height, options, noises, min_points, plain) -> Room:
    """Sample, look at and label the furnished room."""
    num_points, structure, evenness, repaint_share, cameras = options
    min_points = max(8, num_points // 250) if min_points is None else min_points
    xyz, normals, rgb, piece, weight, words = _surfaces(
        rng, layout, height, max(CANDIDATES, 4 * num_points), repaint_share, plain
    )
    where = np.zeros((0, 3), np.float32)
    if cameras:
        blocked = np.array([[*p.xy, np.hypot(*p.half[:2])] for p in layout.pieces])
        where = camera_path(rng, layout.extent, blocked.reshape(-1, 3), cameras)
        seen = visible(xyz, normals, where)
        xyz, normals, rgb, piece, weight = (
            part[seen] for part in (xyz, normals, rgb, piece, weight)
        )
    weight = _shares(weight, piece, structure, evenness)
    chosen = weighted_choice(rng, weight, num_points)
    count = np.bincount(piece[chosen][piece[chosen] >= 0], minlength=len(layout.pieces))
    if (count < min_points).any():
        weight = weight * ((piece < 0) | (count >= min_points)[piece])
        chosen = weighted_choice(rng, _shares(weight, piece, structure, 0.0), num_points)
    relabel = np.where(count >= min_points, np.cumsum(count >= min_points) - 1, -1)
    relabel = np.append(relabel, -1)  # for floor and walls, whose piece is -1
    instance = relabel[piece[chosen]]
    kept = [p for p, n in zip(layout.pieces, count, strict=True) if n >= min_points]
    words = [w for w, n in zip(words, count, strict=True) if n >= min_points]
    noisy = _noisy(rng, xyz[chosen], normals[chosen], rgb[chosen], noises)
    extent = (*layout.extent.tolist(), height)
    return _room(seed, noisy, instance, kept, words, relabel, extent, where)


def _shares(weight: np.ndarray, piece: np.ndarray, structure: float, evenness: float):
    """Sampling weights: each piece's area to the power 1 - evenness, `structure` on the rest."""
    area = np.bincount(piece + 1, weight)
    weight = weight * np.where(piece < 0, 1.0, np.maximum(area, 1e-9)[piece + 1] ** -evenness)
    total = np.bincount((piece >= 0).astype(int), weight, minlength=2)
    scale = np.array([structure, 1 - structure]) / np.maximum(total, 1e-9)
    return weight * scale[(piece >= 0).astype(int)]


def _surfaces(rng, layout, height, count, repaint_share, plain):
    """Candidates on all surfaces: xyz, normals, rgb, index of the piece or -1, area, colours."""
    models, pieces = layout.models, layout.pieces
    areas = [models[p.model].area * float(np.prod(p.scale)) ** (2 / 3) for p in pieces]
    width, depth = layout.extent
    shell = [(0, 0, height / 2, width, depth, height)]
    room_area = width * depth + 2 * height * (width + depth)
    density = count / (room_area + sum(areas))
    parts, words = [], []
    for index, (piece, area) in enumerate(zip(pieces, areas, strict=True)):
        cloud = models[piece.model]
        word = _natural(cloud)
        rgb = cloud.rgb
        if piece.label not in plain and rng.random() < repaint_share:
            word = str(rng.choice(COLOURS))
            rgb = repaint(rgb, word)
        words.append(word)
        many = max(int(area * density), 64)
        draw = np.arange(many) % len(cloud.xyz)
        repeated = (np.arange(many) >= len(cloud.xyz))[:, None]
        step = rng.uniform(-0.5, 0.5, (many, 3)) * (repeated * np.sqrt(area / len(cloud.xyz)))
        way = cloud.normals[draw]
        step -= (step * way).sum(1, keepdims=True) * way  # along the surface
        c, s = np.cos(piece.yaw), np.sin(piece.yaw)
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)
        way = way / piece.scale
        way = way / np.linalg.norm(way, axis=1, keepdims=True)
        xyz = (cloud.xyz[draw] * piece.scale + step) @ turn + [*piece.xy, piece.z]
        parts.append((xyz, way @ turn, rgb[draw], np.full(many, index), np.full(many, area / many)))
    many = int(room_area * density)
    xyz, way, whole = primitives.box_surface(rng, shell, int(many * 1.6))
    keep = way[:, 2] < 0.5  # no ceiling
    floor = way[keep, 2:] < -0.5
    paint = np.where(
        floor, rng.uniform(0.35, 0.7) * rng.uniform(0.85, 1, 3), rng.uniform(0.7, 0.95)
    )
    weight = np.where(floor[:, 0], 1.0, 0.4) * whole / len(keep)
    parts.append((xyz[keep], -way[keep], paint, np.full(keep.sum(), -1), weight))
    return *(np.concatenate(part) for part in zip(*parts, strict=True)), words


def _noisy(rng, xyz, normals, rgb, noises):
    """Float32 tensors of the chosen points with sensor noise; normals stay of unit length."""
    xyz = xyz + noises[0] * rng.standard_normal(xyz.shape)
    normals = normals + noises[1] * rng.standard_normal(xyz.shape)
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    rgb = (rgb + noises[2] * rng.standard_normal(xyz.shape)).clip(0, 1)
    return [torch.from_numpy(part.astype(np.float32)) for part in (xyz, normals, rgb)]


def _room(seed, noisy, instance, kept, words, relabel, extent, cameras) -> Room:
    xyz, normals, rgb = noisy
    instance = torch.from_numpy(instance.astype(np.int64))
    hosts = [[int(relabel[i]) for i in (p.on, p.under)] for p in kept]
    on, under = torch.tensor(hosts, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return Room(
        seed=seed,
        xyz=xyz,
        rgb=rgb,
        normals=normals,
        instance=instance,
        boxes=instance_boxes(xyz, instance, len(kept)),
        labels=[p.label for p in kept],
        colours=words,
        sizes=torch.tensor(np.array([2 * p.half for p in kept]), dtype=torch.float32),
        yaws=torch.tensor([p.yaw for p in kept], dtype=torch.float32),
        on=on,
        under=under,
        models=[p.model for p in kept],
        extent=extent,
        cameras=torch.from_numpy(np.asarray(cameras, np.float32)),
    )
