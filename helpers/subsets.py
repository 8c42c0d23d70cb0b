"""What selection of quantization points shares: sorted rows with prefix sums, and checks."""

from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.quantization import check_finite


class SortedRows:
    """Rows (c, m), each in ascending order, with prefix sums: a range costs two look-ups.

    Everything is float64 on the CPU; a GPU does the sort of what lies there.
    x: (c, m) sorted; sums, squares: (c, m + 1) of the first 0, 1, ... m numbers of a row.
    """

    def __init__(self, rows: Tensor):
        rows = rows.detach()
        rows = rows if rows.device.type == "cuda" else rows.cpu()
        self.x = rows.sort(dim=1).values.cpu().double()
        self.sums = F.pad(self.x.cumsum(1), (1, 0))
        self.squares = F.pad(self.x.square().cumsum(1), (1, 0))

    def __len__(self) -> int:
        return len(self.x)

    def scaled(self, factor: float) -> "SortedRows":
        """The rows times a positive number, without a second sort."""
        other = object.__new__(SortedRows)
        other.x, other.sums = self.x * factor, self.sums * factor
        other.squares = self.squares * factor**2
        return other

    def below(self, borders: Tensor) -> Tensor:
        """How many numbers of its row are <= a border: (c, ...) -> integers of the same shape."""
        flat = borders.reshape(len(borders), -1).contiguous()
        return torch.searchsorted(self.x, flat, right=True).view(borders.shape)

    def cuts(self, points: Tensor) -> Tensor:
        """Where the numbers nearest to each point begin and end: (c, ..., k) -> (c, ..., k + 1).

        points ascend; a number in the middle goes to the smaller one, and of equal points the
        first takes all.
        """
        middle = (points[..., :-1] + points[..., 1:]) / 2
        middle = middle.masked_fill(points.diff() == 0, torch.inf)
        middle = middle.flip(-1).cummin(-1).values.flip(-1) if middle.numel() else middle
        return F.pad(F.pad(self.below(middle), (1, 0)), (0, 1), value=self.x.shape[1])

    def between(self, prefix: Tensor, cuts: Tensor) -> Tensor:
        """Differences of a prefix sum (c, m + 1) at neighbouring cuts (c, ..., k + 1)."""
        return prefix.gather(1, cuts.flatten(1)).view(cuts.shape).diff()

    def sse(self, points: Tensor) -> Tensor:
        """Sum of squared distances to the nearest point: ascending (c, ..., k) -> (c, ...)."""
        cuts = self.cuts(points)
        count, total = cuts.diff(), self.between(self.sums, cuts)
        squares = self.between(self.squares, cuts)
        return (squares - 2 * points * total + count * points.square()).sum(-1).clamp(min=0)


def check_images(x: Tensor) -> None:
    """Raise ValueError unless x is a batch [N, C, H, W] with something in it."""
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(
            f"expected activations [N, C, H, W], not empty, got shape {tuple(x.shape)}"
        )


def check_calibration(x: Tensor, post_relu: bool) -> None:
    """Raise ValueError for calibration data of a wrong shape, NaN, or negative after a ReLU."""
    check_images(x)
    check_finite("calibration data", x)
    if post_relu and x.min() < 0:
        raise ValueError(f"post_relu=True, but the calibration data go down to {x.min():.3g}")


def check_count(values: int, points: int) -> None:
    """Raise ValueError when a channel has fewer values than points."""
    if values < points:
        raise ValueError(f"need at least {points} values per channel, got {values}")


def check_points(points: Tensor, channels: int | None = None) -> None:
    """Raise ValueError unless points are finite, [C, K], with as many rows as x has channels."""
    check_finite("points", points)
    if points.dim() != 2:
        raise ValueError(f"points must be [C, K], got shape {tuple(points.shape)}")
    if channels is not None and len(points) != channels:
        raise ValueError(f"points has {len(points)} rows but x has {channels} channels")


def check_universal(universal: Tensor) -> None:
    """Raise ValueError unless the set is 1-D, finite, ascending, distinct and contains 0."""
    check_finite("universal", universal)
    if universal.dim() != 1 or bool((universal.diff() <= 0).any()):
        raise ValueError("universal must be 1-D, ascending and without duplicates")
    if not bool((universal == 0).any()):
        raise ValueError("universal must contain 0")


def nearest_in_rows(z: Tensor, points: Tensor) -> Tensor:
    """The nearest point of its row, the smaller of two: z (c, m), ascending points (c, k)."""
    borders = (points[:, :-1] + points[:, 1:]) / 2
    return points.gather(1, torch.searchsorted(borders.contiguous(), z.contiguous()))


def brute_force(z: Tensor, universal: Tensor, k: int) -> tuple[Tensor, float]:
    """The k elements of a set of least error for values z (m,), and that error: tries them all."""
    distances = (universal[:, None] - z).square()
    subsets = torch.combinations(torch.arange(len(universal)), k)
    sse = torch.cat([distances[part].amin(1).sum(1) for part in subsets.split(64)])
    return universal[subsets[sse.argmin()]], sse.min().item()


def seconds(fn: Callable[[], object], times: int = 3) -> float:
    """The least of a few measured times of fn(): for calls from milliseconds to seconds."""
    found = []
    for _ in range(times):
        began = perf_counter()
        fn()
        found.append(perf_counter() - began)
    return min(found)


class StraightThrough(torch.autograd.Function):
    """snap(z) forward, the unchanged gradient backward: `StraightThrough.apply(z, snap)`."""

    @staticmethod
    def forward(ctx, z: Tensor, snap: Callable[[Tensor], Tensor]) -> Tensor:
        return snap(z)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
