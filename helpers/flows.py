"""Dense motion between frames: warping by it, and how much a video flickers along it.

A flow [2, h, w] (rows, columns) from frame i to frame j says that pixel p of frame i shows what
frame j shows at p + flow(p).
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Fetch image [c, h, w] along a flow, bilinear, the border repeated outside."""
    height, width = image.shape[1:]
    rows = torch.arange(height, device=image.device)[:, None] + flow[0]
    columns = torch.arange(width, device=image.device) + flow[1]
    grid = torch.stack([2 * columns / max(1, width - 1) - 1, 2 * rows / max(1, height - 1) - 1], -1)
    options = {"padding_mode": "border", "align_corners": True}
    return F.grid_sample(image[None], grid[None].to(image.dtype), **options)[0]


def pan_flows(step: tuple[int, int], size: tuple[int, int]) -> Callable[[int, int], Tensor]:
    """flow(i, j) of a clip whose frame i + 1 at p shows frame i at p + step."""
    one = torch.tensor(step, dtype=torch.float32)[:, None, None].expand(2, *size)
    return lambda i, j: (i - j) * one


def raft_flows(guide: Tensor, weights: str) -> Callable[[int, int], Tensor]:
    """flow(i, j) between frames of a guide [n, 3, h, w] by torchvision's RAFT, kept once computed.

    weights: torchvision's raft_large file. Height and width must be multiples of 8, at least 128.
    Raises FileNotFoundError naming the parameter.
    """
    from torchvision.models.optical_flow import raft_large

    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"raft_weights: no file {weights}; torchvision's raft_large_C_T_SKHT_V2 is meant "
            '(leave it "" for clips of known motion)'
        )
    network = raft_large(weights=None)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network, known = network.to(guide.device).eval().requires_grad_(False), {}

    @torch.no_grad()
    def flow(i: int, j: int) -> Tensor:
        if (i, j) not in known:
            pair = (2 * guide[k : k + 1] - 1 for k in (i, j))
            known[i, j] = network(*pair)[-1][0].flip(0)  # RAFT says columns first
        return known[i, j]

    return flow


def consistent(forward: Tensor, backward: Tensor, tolerance: float = 1.0) -> Tensor:
    """Where [h, w] a flow and the flow back cancel (to `tolerance` pixels), inside the image."""
    height, width = forward.shape[1:]
    rows = torch.arange(height, device=forward.device)[:, None] + forward[0]
    columns = torch.arange(width, device=forward.device) + forward[1]
    inside = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
    return inside & ((forward + warp(backward, forward)).square().sum(0).sqrt() <= tolerance)


def flow_error(frames: Tensor, flow: Callable[[int, int], Tensor]) -> float:
    """`helpers.metrics.warping_error` along any flow, where it is consistent both ways.

    Raises ValueError for fewer than 2 frames or when no pixel is consistent.
    """
    if len(frames) < 2:
        raise ValueError(f"a warping error needs 2 frames or more, got {len(frames)}")
    total, count = 0.0, 0
    for i in range(len(frames) - 1):
        there = flow(i + 1, i).to(frames.device)
        valid = consistent(there, flow(i, i + 1).to(frames.device))
        error = (frames[i + 1] - warp(frames[i], there)).double().square().mean(0)
        total, count = total + error[valid].sum().item(), count + int(valid.sum())
    if count == 0:
        raise ValueError("the flow is consistent nowhere")
    return total / count


def flow_smoothing(
    frames: Tensor, flow: Callable[[int, int], Tensor], decay: float = 0.8, reach: int = 1
) -> Tensor:
    """Each frame averaged with neighbours fetched along the flow, weights decay ** distance."""
    count, means = len(frames), []
    for i in range(count):
        span = range(max(0, i - reach), min(count, i + reach + 1))
        weights = [decay ** abs(j - i) for j in span]
        drawn = [
            weight * (frames[j] if j == i else warp(frames[j], flow(i, j).to(frames)))
            for weight, j in zip(weights, span, strict=True)
        ]
        means.append(sum(drawn) / sum(weights))
    return torch.stack(means)
