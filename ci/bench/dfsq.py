"""DFSQ's hot paths against the straightforward forms, as ratios measured in one run."""

import torch
from torch import Tensor

from helpers import bench
from helpers.layer_inputs import Layer
from helpers.notebooks import load
from helpers.subsets import SortedRows, brute_force, nearest_in_rows

D = load("dfsq")
SHAPE = (1, 64, 96, 96)


def by_channel(z: Tensor, points: Tensor) -> Tensor:
    """The nearest points with a distance matrix a channel."""
    found = torch.empty_like(z)
    for channel, row in enumerate(points):
        values = z[:, channel].flatten()
        found[:, channel] = row[(values[:, None] - row).abs().argmin(1)].view_as(z[:, channel])
    return found


def by_search(z: Tensor, points: Tensor) -> Tensor:
    """The nearest points by binary search among the borders."""
    rows = z.transpose(0, 1)
    return nearest_in_rows(rows.flatten(1), points).view(rows.shape).transpose(0, 1)


def by_staircase(z: Tensor, points: Tensor) -> Tensor:
    """The nearest points as a sum of steps, one pass over the data a point."""
    shape = (len(points), -1, 1, 1)
    middle = ((points[:, 1:] + points[:, :-1]) / 2).view(*shape)
    steps, found = points.diff().view(*shape), points[:, 0].view(-1, 1, 1).expand_as(z).clone()
    for k in range(middle.shape[1]):
        found += steps[:, k] * (z > middle[:, k])
    return found


def snapping(bits: int) -> None:
    x = torch.randn(SHAPE)
    layer = Layer(x, False, D.normalise)
    points = D.by_kmeans(layer, bits, layer.rows)
    z, rows, snap = D.normalise(x)[0], points.float(), D.Snap(points)
    contenders = {"distances, by channel": lambda: by_channel(z, rows)}
    contenders["binary search"] = lambda: by_search(z, rows)
    if bits <= 4:
        contenders["staircase"] = lambda: by_staircase(z, rows)
    contenders["table (ours)"] = lambda: snap(z)
    for name, way in contenders.items():
        assert torch.equal(way(), snap(z)), name
    rows = bench.compare(contenders, baseline="distances, by channel")
    bench.print_table(rows, f"round {SHAPE} to {2**bits} points a channel")

    quantizer = D.SubsetQuantizer(points)

    def plain() -> Tensor:
        mu = x.mean((2, 3), keepdim=True)
        scale = (x - mu).abs().amax((2, 3), keepdim=True) + 1e-8
        return by_channel((x - mu) / scale, points.float()) * scale + mu

    torch.testing.assert_close(plain(), quantizer(x))
    contenders = {"straightforward": plain, "ours": lambda: quantizer(x)}
    rows = bench.compare(contenders, baseline="straightforward")
    bench.print_table(rows, f"the whole quantizer, {2**bits} points")


def plain_kmeans(x: Tensor, free: Tensor, rounds: int) -> Tensor:
    """Lloyd's rounds with a distance matrix, channel by channel: x [C, M], free [C, K - 1]."""
    found = []
    for values, centers in zip(x, free, strict=True):
        centers = torch.cat([centers, centers.new_zeros(1)])
        for _ in range(rounds):
            nearest = (values[:, None] - centers).abs().argmin(1)
            total = torch.zeros_like(centers).index_add(0, nearest, values)
            count = torch.zeros_like(centers).index_add(0, nearest, torch.ones_like(values))
            centers = torch.where(count > 0, total / count, centers)
            centers[-1] = 0
        found.append(centers.sort().values)
    return torch.stack(found)


def kmeans(channels: int, values: int, k: int, rounds: int = 20) -> None:
    x = (0.3 * torch.randn(channels, values, dtype=torch.float64)).clamp(-1, 1)
    free = x[:, : k - 1].contiguous()

    def plain() -> Tensor:
        return plain_kmeans(x, free, rounds)

    def ours() -> Tensor:
        return D.lloyd(SortedRows(x), free[:, None], max_iter=rounds, tol=0)[:, 0]

    torch.testing.assert_close(plain(), ours())
    rows = bench.compare(
        {"distances": plain, "sorted prefix sums": ours}, baseline="distances", rounds=2
    )
    bench.print_table(
        rows, f"{rounds} rounds of K-means, {channels} x {values} values, {k} centres"
    )


def selection() -> None:
    z = (0.3 * torch.randn(2000, dtype=torch.float64)).clamp(-1, 1)
    universal = D.universal_set(D.SQ_WORDS)

    def enumerated() -> tuple:
        return brute_force(z, universal, 3)

    def path() -> tuple:
        return D.optimal_points(z, universal, 3)

    assert torch.equal(enumerated()[0], path()[0])
    contenders = {"all 3,654 subsets": enumerated, "longest path": path}
    rows = bench.compare(contenders, baseline="all 3,654 subsets")
    bench.print_table(rows, "best 3 of 29 points for 2,000 values")


def main() -> None:
    """Print all tables; about a minute on two cores."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for bits in (4, 8):
        snapping(bits)
    kmeans(8, 9216, 16)
    kmeans(4, 73728, 16)
    selection()


if __name__ == "__main__":
    main()
