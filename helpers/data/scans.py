"""What a camera sees of a point cloud, and which of the points a scan keeps."""

from __future__ import annotations

import numpy as np


def visible(xyz, normals, cameras, cell: float = 0.035, slack: float = 0.04) -> np.ndarray:
    """Which points [N] at least one camera [V, 3] sees: a z-buffer over directions.

    Directions are binned into cells of about `cell` radians. In each cell the points within
    `slack` metres of the nearest one stay, plus what the slope of their surface adds across one
    cell. Points whose surface looks away from a camera are hidden from it.
    """
    seen = np.zeros(len(xyz), bool)
    lines, columns = int(np.pi / cell), int(2 * np.pi / cell)
    for camera in np.asarray(cameras, np.float32):
        ray = xyz - camera
        distance = np.sqrt((ray * ray).sum(1))
        facing = -(ray * normals).sum(1) / np.maximum(distance, 1e-6)
        line = ((ray[:, 2] / np.maximum(distance, 1e-6) + 1) / 2 * lines).astype(np.int32)
        column = ((np.arctan2(ray[:, 1], ray[:, 0]) / (2 * np.pi) + 0.5) * columns).astype(np.int32)
        key = line * (columns + 1) + column
        nearest = np.full((lines + 1) * (columns + 1), np.inf, np.float32)
        np.minimum.at(nearest, key, distance)
        slope = cell * distance / np.maximum(facing, 0.25)
        seen |= (facing > 0) & (distance <= nearest[key] + slack + slope)
    return seen


def camera_path(rng, extent, blocked, count: int, height: float = 1.5, tries: int = 64):
    """`count` camera positions [count, 3] inside a room [width, depth], away from the furniture.

    `blocked` holds the pieces as circles (x, y, radius) [P, 3]. The positions are spread: each is
    the candidate farthest from those before it, as one walks through the room to scan it.
    """
    xy = rng.uniform(-0.42, 0.42, (tries, 2)) * extent
    gap = np.hypot(*(xy[:, None] - blocked[None, :, :2]).transpose(2, 0, 1)) - blocked[:, 2]
    room = gap.min(1, initial=np.inf)
    xy = xy[np.argsort(-room)[: max(tries // 2, count)]]
    chosen = [0]
    far = np.full(len(xy), np.inf)
    for _ in range(count - 1):
        far = np.minimum(far, np.hypot(*(xy - xy[chosen[-1]]).T))
        chosen.append(int(np.argmax(far)))
    z = height + rng.uniform(-0.15, 0.35, count)
    return np.column_stack([xy[chosen], z]).astype(np.float32)


def weighted_choice(rng, weights: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` draws without replacement, in random order (Efraimidis and Spirakis).

    Weights of zero are never drawn, so that fewer than `count` may come back.
    """
    keys = rng.exponential(size=len(weights)) / np.maximum(weights, 1e-300)
    count = min(count, int((weights > 0).sum()))
    order = np.argpartition(keys, count)[:count] if count < len(keys) else np.arange(count)
    return rng.permutation(order)
