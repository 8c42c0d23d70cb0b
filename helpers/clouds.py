"""Neighbours, graphs and normals of point clouds, and the one place that imports open3d."""

from __future__ import annotations

import ctypes
from functools import cache
from types import ModuleType

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor


@cache
def open3d() -> ModuleType:
    """The open3d package, imported on first use.

    It links against libusb-1.0, which bare machines lack; the library inside the libusb-package
    wheel is loaded first there. Raises ImportError that says how to install it.
    """
    try:
        ctypes.CDLL("libusb-1.0.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        try:
            import libusb_package

            ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
        except (ImportError, OSError):
            pass  # open3d says below what is missing, if anything
    try:
        import open3d as package
    except (ImportError, OSError) as error:
        raise ImportError(
            f"open3d cannot be imported ({error}); on a machine without libusb-1.0 "
            "`pip install libusb-package` brings the missing library"
        ) from error
    return package


def _finite(points) -> np.ndarray:
    """The points as float64 [N, 3]; ValueError for another shape or for NaN and infinity."""
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"points has shape {tuple(array.shape)}; it must be (N, 3)")
    bad = int((~np.isfinite(array).all(1)).sum())
    if bad:
        raise ValueError(f"points has {bad} rows with NaN or infinite coordinates")
    return array


def neighbours(points, k: int) -> Tensor:
    """The `k` nearest other points of each point [N, 3]: indices [N, min(k, N - 1)] int64.

    Nearest first; of points at the same place any may come first.
    """
    array = _finite(points)
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if len(array) < 2:
        return torch.empty(len(array), 0, dtype=torch.int64)
    k = min(k, len(array) - 1)
    _, index = cKDTree(array).query(array, k + 1)
    own = index == np.arange(len(array))[:, None]
    own[~own.any(1), -1] = True  # hidden behind duplicates of itself: drop the farthest
    return torch.from_numpy(index[~own].reshape(len(array), k).astype(np.int64))


def knn_edges(points, k: int = 6) -> Tensor:
    """Edges [E, 2] int64 between every point [N, 3] and its `k` nearest, each pair once, a < b."""
    index = neighbours(points, k)
    ends = torch.stack([torch.arange(len(index))[:, None].expand_as(index), index], -1)
    return torch.unique(ends.reshape(-1, 2).sort(1).values, dim=0)


def estimate_normals(points, k: int = 16, viewpoint=None) -> Tensor:
    """Unit normals [N, 3] float32 of planes fitted to the `k` nearest points of each point.

    They look towards `viewpoint` [3] (metres), or away from the cloud's centre without one.
    """
    array = _finite(points)
    index = neighbours(array, k).numpy()
    if index.shape[1] < 2:
        raise ValueError(f"points has {len(array)} rows; a plane needs at least 3")
    local = np.concatenate([array[:, None], array[index]], 1)
    local -= local.mean(1, keepdims=True)
    _, vectors = np.linalg.eigh(np.einsum("nki,nkj->nij", local, local))
    normals = vectors[..., 0]
    view = array - array.mean(0) if viewpoint is None else np.asarray(viewpoint, float) - array
    normals[(normals * view).sum(1) < 0] *= -1
    return torch.from_numpy(normals.astype(np.float32))


def oriented(points, normals) -> tuple[np.ndarray, np.ndarray]:
    """Points and unit normals as float64 [N, 3]; ValueError with the count of bad rows."""
    points, normals = _finite(points), np.asarray(normals, np.float64)
    if points.shape != normals.shape:
        raise ValueError(f"{len(points)} points, but {len(normals)} normals")
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    if not (length > 0).all():
        raise ValueError(f"normals has {int((~(length > 0)).sum())} rows of length zero (or NaN)")
    return points, normals / length
