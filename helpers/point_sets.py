"""Operations on point sets: means by group, farthest points, ball queries, interpolation.

Coordinates are float32 metres; keep them in float32 under autocast (bfloat16 loses centimetres).
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = "donot_use_mm_for_euclid_dist"  # the matrix form of cdist loses small distances
CHUNK = 4_000_000  # distances held at a time


def check_finite(name: str, xyz: Tensor) -> None:
    """ValueError with the count when coordinates [..., 3] hold NaN or infinity."""
    if xyz.shape[-1] != 3:
        raise ValueError(f"{name} has shape {tuple(xyz.shape)}; the last dimension must be 3")
    bad = int((~torch.isfinite(xyz).all(-1)).sum())
    if bad:
        raise ValueError(f"{name} has {bad} points with NaN or infinite coordinates")


def check_superpoint(superpoint, count):
    """Ids (..., N) int64 from 0 without gaps for N = count points, or ValueError."""
    if superpoint.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        raise ValueError(f"superpoint must hold integers, not {superpoint.dtype}")
    if superpoint.shape[-1] != count:
        raise ValueError(f"superpoint has length {superpoint.shape[-1]}, points have {count}")
    if superpoint.numel() and int(superpoint.min()) < 0:
        raise ValueError("superpoint has negative ids")
    for ids in superpoint.reshape(-1, count):
        if len(ids.unique()) != int(ids.max()) + 1:
            raise ValueError("ids must be contiguous from 0: relabel with torch.unique")


def scatter_mean(src: Tensor, index: Tensor, dim: int = 0, dim_size: int | None = None) -> Tensor:
    """Mean of the slices of `src` along `dim` that share an id of index [n] int64.

    The result has `dim_size` (default: largest id + 1) slices along `dim`; missing ids give 0.
    """
    if dim_size is None:
        dim_size = int(index.max()) + 1 if index.numel() else 0
    src = src.movedim(dim, 0)
    total = src.new_zeros(dim_size, *src.shape[1:]).index_add_(0, index, src)
    count = torch.bincount(index, minlength=dim_size).clamp_min(1).to(src.dtype)
    return (total / count.view(-1, *[1] * (src.dim() - 1))).movedim(0, dim)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of values [B, N, C] at index [B, ...] int64: [B, ..., C]."""
    batch, count, channels = values.shape
    start = torch.arange(batch, device=index.device) * count
    flat = (index + start.view(-1, *[1] * (index.dim() - 1))).reshape(-1)
    return values.reshape(-1, channels).index_select(0, flat).view(*index.shape, channels)


def farthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """Indices [B, npoint] int64 of points of xyz [B, N, 3], each the farthest from those before.

    Starts at point 0. Raises ValueError when npoint is not in 1..N.
    """
    batch, count, _ = xyz.shape
    if not 1 <= npoint <= count:
        raise ValueError(f"npoint is {npoint}; allowed: 1 to {count}, the number of points")
    check_finite("xyz", xyz)
    chosen = torch.zeros(npoint, batch, dtype=torch.int64, device=xyz.device)
    away = xyz.new_full((batch, count), torch.inf)
    rows = torch.arange(batch, device=xyz.device)
    last = chosen[0]
    for step in range(1, npoint):
        away = torch.minimum(away, (xyz - xyz[rows, last][:, None]).square().sum(-1))
        last = chosen[step] = away.argmax(1)
    return chosen.T.contiguous()


def ball_query(
    radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor, fallback: str = "nearest"
) -> tuple[Tensor, Tensor]:
    """The first `nsample` points of xyz [B, S, 3] nearer than radius to each of new_xyz [B, P, 3].

    First in the order of xyz, nearer strictly; short lists repeat their first hit. Returns idx
    [B, P, nsample] int64 and empty [B, P] bool. An empty ball gets the nearest point, or with
    fallback="first" point 0, as the CUDA kernel of PointNet++ does. Raises ValueError for a radius
    or nsample that is not positive and for another fallback.
    """
    if radius <= 0 or nsample < 1:
        raise ValueError(f"radius is {radius}, nsample is {nsample}; both must be positive")
    if fallback not in ("nearest", "first"):
        raise ValueError(f"fallback is {fallback!r}; allowed: nearest, first")
    check_finite("xyz", xyz)
    check_finite("new_xyz", new_xyz)
    step = max(1, CHUNK // (len(xyz) * xyz.shape[1]))
    parts = [_balls(radius, nsample, xyz, part, fallback) for part in new_xyz.split(step, 1)]
    index, empty = zip(*parts, strict=True)
    return torch.cat(index, 1), torch.cat(empty, 1)


def _balls(radius, nsample, xyz, new_xyz, fallback):
    count = xyz.shape[1]
    distance = torch.cdist(new_xyz.float(), xyz.float(), compute_mode=EXACT)
    order = torch.arange(count, device=xyz.device, dtype=torch.int32)
    key = torch.where(distance < radius, order, count)
    hits = key.topk(min(nsample, count), largest=False).values.sort(-1).values.long()
    hits = torch.nn.functional.pad(hits, (0, nsample - hits.shape[-1]), value=count)
    empty = hits[..., 0] == count
    spare = distance.argmin(-1) if fallback == "nearest" else torch.zeros_like(hits[..., 0])
    first = torch.where(empty, spare, hits[..., 0])
    return torch.where(hits == count, first[..., None], hits), empty


def three_nearest(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The up to 3 nearest of known [B, m, 3] for unknown [B, n, 3]: indices and weights [B, n, 3].

    Weights are 1 / (distance + 1e-8), divided by their sum.
    """
    step, found = max(1, CHUNK // (len(known) * known.shape[1])), []
    for part in unknown.float().split(step, 1):
        distance = torch.cdist(part, known.float(), compute_mode=EXACT)
        found.append(distance.topk(min(3, known.shape[1]), largest=False))
    weight = 1 / (torch.cat([near.values for near in found], 1) + 1e-8)
    index = torch.cat([near.indices for near in found], 1)
    return index, weight / weight.sum(-1, keepdim=True)


def interpolate(feats: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows of feats [B, m, C] at index [B, n, 3]: [B, n, C]."""
    return sum(take(feats, index[..., j]) * weight[..., j, None] for j in range(index.shape[-1]))


def three_nn_interpolate(unknown: Tensor, known: Tensor, feats: Tensor) -> Tensor:
    """Features [B, C, n] at unknown [B, n, 3] from feats [B, C, m] at known [B, m, 3].

    Inverse distances to the three nearest (PointNet++, section 3.4).
    """
    index, weight = three_nearest(unknown, known)
    return interpolate(feats.transpose(1, 2), index, weight.to(feats.dtype)).transpose(1, 2)
