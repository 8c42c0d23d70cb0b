"""PointNet++: set abstraction and feature propagation on neighbours that were found beforehand.

Which points are centres and neighbours depends on coordinates alone, so `neighbourhood` finds them
once per room (farthest points, ball queries); the network only gathers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor, nn

from helpers.point_sets import ball_query, farthest_point_sample, interpolate, take, three_nearest


@dataclass(frozen=True)
class Level:
    """One set abstraction: centres, radius [m], samples in a ball, widths of its layers."""

    centres: int
    radius: float
    samples: int
    widths: tuple[int, ...]


@dataclass
class Neighbourhood:
    """Indices for R rooms: centres [R, S1] into the points, in farthest-point order (each level
    takes the first of them), groups (one [R, S_l, samples] a level, into the level below), and
    for each propagation, coarsest first, the 3 nearest [R, S_l, 3] and their weights.
    """

    centres: Tensor
    groups: list[Tensor]
    nearest: list[Tensor]
    weights: list[Tensor]

    def _map(self, change) -> Neighbourhood:
        parts = [getattr(self, field.name) for field in fields(self)]
        return Neighbourhood(
            *([change(t) for t in p] if isinstance(p, list) else change(p) for p in parts)
        )

    def __getitem__(self, rooms) -> Neighbourhood:
        """The rooms of an index or slice."""
        return self._map(lambda part: part[rooms])

    def to(self, device) -> Neighbourhood:
        """On another device."""
        return self._map(lambda part: part.to(device))

    @staticmethod
    def cat(parts: Sequence[Neighbourhood]) -> Neighbourhood:
        """Rooms of several neighbourhoods one after the other."""
        return Neighbourhood(
            torch.cat([p.centres for p in parts]),
            *(
                [torch.cat(level) for level in zip(*(getattr(p, name) for p in parts), strict=True)]
                for name in ("groups", "nearest", "weights")
            ),
        )


def neighbourhood(xyz: Tensor, levels: Sequence[Level], ups: int = 0) -> Neighbourhood:
    """The neighbourhoods of rooms [R, N, 3] for the levels and `ups` feature propagations."""
    centres = farthest_point_sample(xyz, levels[0].centres)
    below, groups, clouds = xyz, [], []
    ordered = take(xyz, centres)
    for level in levels:
        here = ordered[:, : level.centres]
        groups.append(ball_query(level.radius, level.samples, below, here)[0])
        clouds.append(here)
        below = here
    found = [three_nearest(clouds[-2 - up], clouds[-1 - up]) for up in range(ups)]
    return Neighbourhood(centres, groups, [index for index, _ in found], [w for _, w in found])


class BatchNormLast(nn.BatchNorm1d):
    """BatchNorm1d over the last dimension of [..., C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


NORMS = {"layer": nn.LayerNorm, "batch": BatchNormLast}


def shared_mlp(widths: Sequence[int], norm: str = "layer") -> nn.Sequential:
    """Linear, norm, ReLU for each pair of widths, on the last dimension."""
    layers = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o, bias=False), NORMS[norm](o), nn.ReLU()]
    return nn.Sequential(*layers)


class PointNet(nn.Module):
    """Levels of set abstraction, then `ups` feature propagations back to a finer level.

    forward(xyz [R, N, 3], feats [R, N, C], neighbourhood) gives the centres' coordinates and
    features of every level, [R, S_l, 3] and [R, S_l, C_l], the last one after the propagations:
    these are the seeds. With two levels more than `ups`, seeds are the centres of level
    len(levels) - ups.
    """

    def __init__(
        self, channels: int, levels: Sequence[Level], width: int, ups: int = 0, norm: str = "layer"
    ):
        super().__init__()
        self.radii, self.ups = [level.radius for level in levels], ups
        self.counts = [level.centres for level in levels]
        outs = [channels] + [level.widths[-1] for level in levels]
        self.down = nn.ModuleList(
            shared_mlp((3 + before, *level.widths), norm)
            for before, level in zip(outs[:-1], levels, strict=True)
        )
        coarse, self.up = outs[-1], nn.ModuleList()
        for up in range(ups):
            last = width if up == ups - 1 else coarse
            self.up.append(shared_mlp((coarse + outs[-2 - up], coarse, last), norm))
            coarse = last
        self.project = nn.Linear(coarse, width) if coarse != width else nn.Identity()

    def forward(self, xyz: Tensor, feats: Tensor, near: Neighbourhood):
        """[(coordinates, features)] of the first level and of the seeds."""
        ordered, below = take(xyz, near.centres), xyz
        levels = []
        for mlp, radius, count, group in zip(
            self.down, self.radii, self.counts, near.groups, strict=True
        ):
            here = ordered[:, :count]
            relative = (take(below, group) - here[:, :, None]) / radius
            feats = mlp(torch.cat([relative, take(feats, group)], -1)).amax(2)
            below = here
            levels.append((here, feats))
        for up, (mlp, index, weight) in enumerate(
            zip(self.up, near.nearest, near.weights, strict=True)
        ):
            here, skip = levels[-2 - up]
            feats = mlp(torch.cat([interpolate(feats, index, weight), skip], -1))
            below = here
        return levels[0], (below, self.project(feats))
