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
    if len(array) < 3 or k < 2:
        raise ValueError(f"points has {len(array)} rows, k is {k}; a plane needs 3 points")
    library = open3d()
    cloud = library.geometry.PointCloud(library.utility.Vector3dVector(array))
    cloud.estimate_normals(library.geometry.KDTreeSearchParamKNN(k + 1))
    normals = np.asarray(cloud.normals)
    view = array - array.mean(0) if viewpoint is None else np.asarray(viewpoint, float) - array
    away = (normals * view).sum(1, keepdims=True) < 0
    return torch.from_numpy(np.where(away, -normals, normals).astype(np.float32))


def turnable(points, colours, box=None, title: str = "", size: int = 3):
    """A figure of a cloud that the mouse turns, for a notebook; works without a network.

    points [N, 3] in metres, colours [N, 3] in [0, 1], box [6] (centre and sizes) or None. About
    5 MB of plotly's script come with it, so it is nothing for stored outputs.
    """
    import html

    import plotly.graph_objects as go
    from IPython.display import HTML

    array, shades = _finite(points), (255 * np.asarray(colours)).round().astype(int)
    marks = {"size": size, "color": [f"rgb({r},{g},{b})" for r, g, b in shades]}
    x, y, z = array.T
    parts = [go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=marks, hoverinfo="skip")]
    if box is not None:
        x, y, z = _outline(np.asarray(box, dtype=float)).T
        parts.append(go.Scatter3d(x=x, y=y, z=z, mode="lines", line={"width": 5}, hoverinfo="skip"))
    figure = go.Figure(parts)
    axes = {f"{name}axis_title": f"{name} [m]" for name in "xyz"}
    figure.update_layout(title=title, showlegend=False, scene={"aspectmode": "data", **axes})
    page = html.escape(figure.to_html(include_plotlyjs=True))
    frame = f'<iframe srcdoc="{page}" width="100%" height="520" frameborder="0"></iframe>'
    return HTML(f"<div>{frame}</div>")


def _outline(box: np.ndarray) -> np.ndarray:
    """One line [16, 3] along all edges of a box (centre and sizes)."""
    corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
    path = [(x, y, 0) for x, y in corners] + [(x, y, 1) for x, y in corners]
    path += [(1, 0, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1), (0, 1, 1), (0, 1, 0)]
    return box[:3] + (np.array(path) - 0.5) * box[3:]


def oriented(points, normals) -> tuple[np.ndarray, np.ndarray]:
    """Points and unit normals as float64 [N, 3]; ValueError with the count of bad rows."""
    points, normals = _finite(points), np.asarray(normals, np.float64)
    if points.shape != normals.shape:
        raise ValueError(f"{len(points)} points, but {len(normals)} normals")
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    if not (length > 0).all():
        raise ValueError(f"normals has {int((~(length > 0)).sum())} rows of length zero (or NaN)")
    return points, normals / length
