"""3DRefTR's hot paths against the straightforward forms, as ratios measured in one run."""

import numpy as np
import torch

from helpers import bench
from helpers.clouds import knn_edges
from helpers.data.expressions import ROLES
from helpers.data.rooms import furnished_room, primitive_room
from helpers.notebooks import load
from helpers.point_sets import EXACT

N = load("threedreftr")


class Components:
    """Union-find as in a textbook: NumPy arrays and a find function."""

    def __init__(self, count: int, k: float):
        self.parent, self.size = np.arange(count), np.ones(count, np.int64)
        self.threshold = np.full(count, k)

    def find(self, i: int) -> int:
        root = i
        while self.parent[root] != root:
            root = self.parent[root]
        self.parent[i] = root
        return root

    def join(self, a: int, b: int, weight: float, k: float) -> None:
        self.parent[b] = a
        self.size[a] += self.size[b]
        self.threshold[a] = weight + k / self.size[a]


def textbook(points, normals, edges, k, min_size):
    w = N.edge_weights(points, normals, edges)
    order, parts = np.argsort(w, kind="stable"), Components(len(points), k)
    for grow in (True, False):
        for e in order:
            a, b = (parts.find(int(i)) for i in edges[e])
            if a == b:
                continue
            small = parts.size[a] < min_size or parts.size[b] < min_size
            fits = w[e] <= parts.threshold[a] and w[e] <= parts.threshold[b]
            if fits if grow else small:
                parts.join(a, b, w[e], k)
    roots = np.array([parts.find(i) for i in range(len(points))])
    return torch.from_numpy(np.unique(roots, return_inverse=True)[1])


def superpoints(room, k: float, min_size: int) -> None:
    edges = knn_edges(room.xyz)
    args = (room.xyz, room.normals, edges, k, min_size)
    assert torch.equal(textbook(*args), N.felzenszwalb_superpoints(*args))
    rows = bench.compare(
        {
            "arrays and find()": lambda: textbook(*args),
            "lists of integers (ours)": lambda: N.felzenszwalb_superpoints(*args),
            "6 nearest neighbours": lambda: knn_edges(room.xyz),
        },
        baseline="arrays and find()",
        seconds=2.0,
    )
    bench.print_table(rows, f"superpoints of {len(room.xyz):,} points, {len(edges):,} edges")


def scene_by_scene(branch, seed_xyz, seed_feats, points, superpoint, query):
    """One grouping and one pooling a scene, centres by a loop over superpoints."""
    found, feats = [], branch.x_mask(seed_feats)
    kernel = branch.x_query(query.transpose(1, 2)).transpose(1, 2)
    for b in range(len(points)):
        many = int(superpoint[b].max()) + 1
        centres = torch.stack([points[b][superpoint[b] == m].mean(0) for m in range(many)])
        index, _ = N.ball_query(xyz=seed_xyz[b : b + 1], new_xyz=centres[None], **branch.ball)
        pooled = feats[b][:, index[0]].amax(2)
        found.append(kernel[b] @ pooled)
    return found


def branches(scenes: int, points: int, seeds: int, many: int, queries: int, dim: int) -> None:
    torch.manual_seed(0)
    branch = N.SuperpointMaskBranch(dim).eval()
    xyz = torch.rand(scenes, points, 3) * torch.tensor([5.0, 4, 2])
    centres = xyz[:, torch.randperm(points)[:many]]
    ids = torch.cdist(xyz, centres, compute_mode=EXACT).argmin(2)
    seed_xyz, feats = xyz[:, :seeds], torch.randn(scenes, dim, seeds)
    args = (seed_xyz, feats, xyz, ids, torch.randn(scenes, queries, dim))
    with torch.inference_mode():
        for a, b in zip(scene_by_scene(branch, *args), branch(*args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        index, _ = branch.group(seed_xyz, xyz, ids)
        rows = bench.compare(
            {
                "scene by scene": lambda: scene_by_scene(branch, *args),
                "one batch (ours)": lambda: branch(*args),
                "grouped beforehand": lambda: branch.masks(feats, index, args[-1]),
            },
            baseline="scene by scene",
            seconds=2.0,
        )
    bench.print_table(
        rows, f"mask branch, {scenes} scenes of {points:,} points, {many} superpoints"
    )


def differences(points: int, many: int, queries: int, targets: int) -> None:
    ids = torch.randint(0, many, (points,))
    ids[:many] = torch.arange(many)
    masks, logits = torch.rand(targets, points) < 0.1, torch.randn(queries, many)

    def at_points():
        return torch.cdist((logits > 0)[:, ids].float(), masks.float(), p=1)

    def at_superpoints():
        hits, count = N.superpoint_hits(ids, masks)
        return N.mask_difference(logits > 0, count, hits)

    assert torch.equal(at_points(), at_superpoints())
    rows = bench.compare(
        {"points, L1 cdist": at_points, "superpoint counts (ours)": at_superpoints},
        baseline="points, L1 cdist",
    )
    bench.print_table(rows, f"mask differences, {queries} queries, {targets} targets")


def losses(scenes: int, queries: int, tokens: int) -> None:
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    q, t = (
        unit(torch.randn(scenes, queries, 32), dim=-1),
        unit(torch.randn(scenes, tokens, 32), dim=-1),
    )
    maps = {role: torch.zeros(scenes, tokens) for role in ROLES}
    maps["main"][:, 1] = 1
    rows, best = torch.arange(scenes), torch.randint(0, queries, (scenes,))

    def one_by_one():
        return sum(
            N.semantic_alignment_loss(
                q[b], t[b], {r: m[b : b + 1] for r, m in maps.items()},
                (best[b : b + 1], torch.tensor([0])), scenes,
            )
            for b in range(scenes)
        )  # fmt: skip

    def together():
        return N.semantic_alignment_loss(q, t, maps, (rows * queries + best, rows), scenes)

    torch.testing.assert_close(one_by_one(), together())
    found = bench.compare(
        {"one by one": one_by_one, "one batch (ours)": together}, baseline="one by one"
    )
    bench.print_table(found, f"semantic alignment of {scenes} sentences, {queries} queries")


def main() -> None:
    """Print all tables; about a minute on two cores."""
    torch.manual_seed(0)
    superpoints(primitive_room(1000), 0.05, 5)
    superpoints(furnished_room(1000, 16_384), 0.05, 8)
    branches(8, 2048, 256, 64, 24, 64)
    branches(1, 50_000, 1024, 1354, 256, 288)
    differences(50_000, 1354, 256, 2)
    losses(90, 24, 14)


if __name__ == "__main__":
    main()
