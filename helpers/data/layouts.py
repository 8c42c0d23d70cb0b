"""Where the furniture of a synthetic room stands: at walls, free, at tables, on, under, beside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.data.furniture import Model, words

THEMES = {
    "living": "sofa armchair table sofa plant shelf armchair table cabinet lamp bench",
    "dining": "table chair chair chair cabinet plant table chair shelf bench lamp",
    "office": "desk chair chair shelf desk chair cabinet plant table armchair",
    "bedroom": "bed cabinet wardrobe chair desk cabinet armchair bed plant lamp",
    "kitchen": "table chair stool fridge oven chair sink cabinet cabinet washer stool",
    "bathroom": "bathtub toilet sink washer cabinet stool bin chair plant",
}
CLUTTER = words("box box bin bag ball vase vase computer plant lamp television box")
AT_WALL = set(words("sofa bed cabinet wardrobe shelf fridge oven sink washer toilet bathtub desk"))
HOSTS = {
    "on": set(words("table desk cabinet sofa bed bench armchair washer bathtub")),
    "under": set(words("table desk bench")),
    "beside": set(words("sofa bed cabinet wardrobe shelf desk armchair fridge oven washer")),
    "at": {"table", "desk"},
}
LOW, HIGH = 0.12, 1.25  # heights in metres at which things can lie on other things


@dataclass
class Piece:
    """One placed model: centre (x, y) and underside z in metres, yaw in radians, scale [3].

    `on` and `under` are the index of the piece it lies on or under, or -1.
    """

    model: int
    label: str
    half: np.ndarray
    scale: np.ndarray
    xy: np.ndarray
    z: float
    yaw: float
    on: int = -1
    under: int = -1


def overlaps(a, b) -> np.ndarray:
    """Whether oriented rectangles (x, y, half width, half depth, yaw) [..., 5] overlap (SAT)."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    apart = np.zeros(a.shape[:-1], bool)
    offset = b[..., :2] - a[..., :2]
    cos, sin = np.cos(a[..., 4] - b[..., 4]), np.sin(a[..., 4] - b[..., 4])
    for one, other in ((a, b), (b, a)):
        c, s = np.cos(one[..., 4]), np.sin(one[..., 4])
        along = np.abs(offset[..., 0] * c + offset[..., 1] * s)
        across = np.abs(offset[..., 1] * c - offset[..., 0] * s)
        w, d = other[..., 2], other[..., 3]
        apart |= along >= one[..., 2] + w * np.abs(cos) + d * np.abs(sin)
        apart |= across >= one[..., 3] + w * np.abs(sin) + d * np.abs(cos)
    return ~apart


class Layout:
    """Pieces placed one after the other in a room of the given width and depth, without overlap.

    `models` are the furniture models, `by_class` maps a class to their indices.
    """

    def __init__(self, rng, models: tuple[Model, ...], by_class: dict, extent: np.ndarray):
        self.rng, self.models, self.by_class, self.extent = rng, models, by_class, extent
        self.pieces: list[Piece] = []

    def draw(self, label: str, low: float = 0.9, high: float = 1.12) -> tuple[int, np.ndarray]:
        """A random model of a class and its scale: common to the axes, times 4 % for each."""
        scale = self.rng.uniform(low, high) * self.rng.uniform(0.96, 1.04, 3)
        return int(self.rng.choice(self.by_class[label])), scale

    def add(self, label: str, how: str, tries: int = 32) -> bool:
        """Place one more piece of a class; False when no free place was found.

        `how` is wall, free, mount (in a wall), at (a seat at a table), beside (touching), on or
        under.
        """
        wide = how in ("on", "under")
        model, scale = self.draw(label, *((0.7, 1.15) if wide else (0.9, 1.12)))
        half = self.models[model].size * scale / 2
        host = self._host(how, half)
        if host is None:
            return False
        xy, yaw, z = getattr(self, f"_{how}")(half, host, tries)
        valid = self._valid(
            xy, yaw, z, half, host if how in ("at", "on", "under") else -1, how == "mount"
        )
        if how == "under":
            valid &= self._hits(host, xy, yaw, half) < 4
        if not valid.any():
            return False
        best = int(np.argmax(valid))
        relations = {"on": host if how == "on" else -1, "under": host if how == "under" else -1}
        where = (xy[best], float(z[best]), float(yaw[best]))
        self.pieces.append(Piece(model, label, half, scale, *where, **relations))
        return True

    def _host(self, how: str, half: np.ndarray) -> int | None:
        """A random piece that can carry the new one, -1 when none is needed, None when absent."""
        if how in ("wall", "free", "mount"):
            return -1
        fitting = [
            index
            for index, piece in enumerate(self.pieces)
            if piece.label in HOSTS[how] and piece.z < 0.05
            and (how in ("at", "beside") or max(half[:2]) < 0.9 * max(piece.half[:2]))
            and (how != "under" or 2 * half[2] < 1.5 * piece.half[2])
        ]  # fmt: skip
        return int(self.rng.choice(fitting)) if fitting else None

    def _valid(self, xy, yaw, z, half, host: int, in_wall: bool) -> np.ndarray:
        """Which candidate poses [K] lie inside the room and overlap no piece but their host."""
        rows = np.column_stack([xy, np.broadcast_to(half[:2], xy.shape), yaw])
        c, s = np.abs(np.cos(yaw)), np.abs(np.sin(yaw))
        reach = np.column_stack([half[0] * c + half[1] * s, half[0] * s + half[1] * c])
        valid = (np.abs(xy) + reach <= self.extent / 2 + (0.2 if in_wall else 0.01)).all(1)
        if self.pieces:
            others = np.array([[*p.xy, *(0.98 * p.half[:2]), p.yaw] for p in self.pieces])
            low = np.array([p.z for p in self.pieces])
            high = low + 2 * np.array([p.half[2] for p in self.pieces])
            tall = (z[:, None] + 2 * half[2] > low + 0.01) & (z[:, None] < high - 0.01)
            hit = overlaps(rows[:, None], others[None]) & tall
            if host >= 0:
                hit[:, host] = False
            valid &= ~hit.any(1)
        return valid

    def _wall(self, half, host, tries):
        """Back to a wall; a third of them a few degrees off."""
        side = self.rng.integers(0, 4, tries)
        turn = np.where(self.rng.random(tries) < 0.35, self.rng.uniform(-0.25, 0.25, tries), 0)
        yaw = side * np.pi / 2 + turn
        depth = half[1] * np.cos(turn) + half[0] * np.abs(np.sin(turn))
        gap = self.rng.uniform(0.02, 0.08, tries)
        along = self.rng.uniform(-0.5, 0.5, tries)
        back = np.column_stack([-np.sin(side * np.pi / 2), np.cos(side * np.pi / 2)])
        reach = (np.abs(back) @ self.extent / 2 - depth - gap)[:, None]
        sideways = np.column_stack([-back[:, 1], back[:, 0]])
        slide = (along * (np.abs(sideways) @ self.extent))[:, None]
        return back * reach + sideways * slide, yaw, np.zeros(tries)

    def _mount(self, half, host, tries):
        """In a wall (doors, windows); what is not as high as a door hangs 0.9 m above the floor."""
        xy, yaw, _ = self._wall(half, host, tries)
        yaw = np.round(yaw / (np.pi / 2)) * (np.pi / 2)
        back = np.column_stack([-np.sin(yaw), np.cos(yaw)])
        shift = np.abs(back) @ self.extent / 2 - 0.4 * half[1] - (xy * back).sum(1)
        return xy + back * shift[:, None], yaw, np.full(tries, 0.0 if half[2] > 0.85 else 0.9)

    def _free(self, half, host, tries):
        """Anywhere on the floor, at any angle."""
        xy = self.rng.uniform(-0.5, 0.5, (tries, 2)) * self.extent
        yaw = np.pi / 4 * self.rng.integers(0, 8, tries) + self.rng.uniform(-0.4, 0.4, tries)
        return xy, yaw, np.zeros(tries)

    def _local(self, host: int, u, v) -> np.ndarray:
        """Points (u, v) in the frame of a piece, in metres, as room coordinates [K, 2]."""
        piece = self.pieces[host]
        c, s = np.cos(piece.yaw), np.sin(piece.yaw)
        return piece.xy + np.column_stack([u * c - v * s, u * s + v * c])

    def _at(self, half, host, tries):
        """A seat that faces a table, its front a quarter to two thirds of its depth below it."""
        piece, side = self.pieces[host], self.rng.integers(0, 4, tries)
        if piece.label == "desk":
            side[:] = 0  # its front
        angle = side * np.pi / 2  # direction from the table's centre to the seat: (sin, -cos)
        reach = np.where(side % 2 == 0, piece.half[1], piece.half[0])
        width = np.where(side % 2 == 0, piece.half[0], piece.half[1])
        tucked = self.rng.uniform(0.25, 0.65, tries) * 2 * half[1]
        along = self.rng.uniform(-0.7, 0.7, tries) * np.maximum(width - half[0] / 2, 0.05)
        away = reach + half[1] - tucked
        u = np.sin(angle) * away + np.cos(angle) * along
        v = -np.cos(angle) * away + np.sin(angle) * along
        yaw = piece.yaw + angle + np.pi + self.rng.normal(0, 0.2, tries)
        return self._local(host, u, v), yaw, np.zeros(tries)

    def _beside(self, half, host, tries):
        """On the floor, touching the left or the right side of a piece."""
        piece, sign = self.pieces[host], self.rng.choice([-1, 1], tries)
        reach = half[0] * self.rng.uniform(1, 1.3, tries)  # turned, so that a corner may touch
        u = sign * (piece.half[0] + reach + 0.5 * half[1])
        v = piece.half[1] - half[1] - self.rng.uniform(0, 1, tries) * piece.half[1]
        yaw = piece.yaw + self.rng.uniform(0.3, 1.2, tries)
        return self._local(host, u, v), yaw, np.zeros(tries)

    def _on(self, half, host, tries):
        """Lying on a surface of a piece, best supported places first."""
        piece = self.pieces[host]
        u, v = self.rng.uniform(-0.85, 0.85, (2, tries)) * piece.half[:2, None]
        cloud = self.models[piece.model].xyz[::2] * piece.scale
        radius = max(min(half[0], half[1]), 0.05)
        gap = (cloud[:, 0] - u[:, None]) ** 2 + (cloud[:, 1] - v[:, None]) ** 2
        near = gap < radius**2
        top = np.where(near, cloud[:, 2], -1).max(1)
        flat = (near & (cloud[:, 2] > top[:, None] - 0.03)).sum(1) / np.maximum(near.sum(1), 1)
        flat = np.where((top > LOW) & (top < HIGH), flat, -1)
        order = np.argsort(-flat)[: max(tries // 4, 1)]
        z = piece.z + top[order] + 0.004
        yaw = self.rng.uniform(0, 2 * np.pi, len(order))
        return self._local(host, u[order], v[order]), yaw, z

    def _under(self, half, host, tries):
        """On the floor below a piece, possibly sticking out a little."""
        piece = self.pieces[host]
        u, v = self.rng.uniform(-0.8, 0.8, (2, tries)) * piece.half[:2, None]
        return self._local(host, u, v), self.rng.uniform(0, 2 * np.pi, tries), np.zeros(tries)

    def _hits(self, host, xy, yaw, half) -> np.ndarray:
        """How many points of a piece lie inside each candidate box [K] that stands on the floor."""
        piece = self.pieces[host]
        cloud = self.models[piece.model].xyz * piece.scale
        x, y = self._local(host, cloud[:, 0], cloud[:, 1]).T
        dx, dy = x - xy[:, :1], y - xy[:, 1:]
        c, s = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
        inside = (np.abs(dx * c + dy * s) < half[0]) & (np.abs(dy * c - dx * s) < half[1])
        return (inside & (cloud[:, 2] < 2 * half[2])).sum(1)


def furnish(layout: Layout, wanted: list[str], clutter: list[str], at_wall: set[str]) -> None:
    """Place the wanted pieces of furniture, then the small things, in this order."""
    rng = layout.rng
    for label in map(str, wanted):
        seat = label in ("chair", "stool")
        first = "at" if seat and rng.random() < 0.8 else "free"
        if label in at_wall:
            first = "wall" if rng.random() < 0.4 else "free"
        if label in ("cabinet", "plant", "bin", "washer") and rng.random() < 0.5:
            first = "beside"
        if label == "lamp":
            first = "on"
        _ = layout.add(label, first) or layout.add(label, "free")
    for label in clutter:
        choices = ["on", "under", "beside"] if label in ("box", "bin", "bag", "ball") else ["on"]
        for how in rng.permutation(choices).tolist():
            if layout.add(label, how):
                break
