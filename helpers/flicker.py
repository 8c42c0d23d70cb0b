"""How good the frames of a video are: distance to valid images, sharpness. Flicker is in metrics.

A video that is grey everywhere does not flicker, so these stand beside `metrics.warping_error`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.metrics import psnr, warping_error


def distance_to_valid(frames: Tensor, valid: Tensor) -> float:
    """Mean over pixels of the squared distance to the nearest of the valid images.

    frames: [n, c, h, w]; valid: [k, n, c, h, w], the k values that each pixel may have.
    """
    return (frames - valid).double().square().mean(2).amin(0).mean().item()


def sharpness(frames: Tensor) -> float:
    """Variance of the Laplacian of the grey values, for frames without a known valid set."""
    grey = frames.mean(1)
    sides = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] + grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1]
    return (sides - 4 * grey[:, 1:-1, 1:-1]).double().var().item()


def sharpened(frames: Tensor, contrast: float = 1.0, sharp: float = 1.0) -> Tensor:
    """Against blur: contrast about the mean luma, then distance from a 3 x 3 smoothing, clamped.

    Factors of 1 change nothing (up to the clamp to 0..1).
    """
    luma = (frames * frames.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    middle = (luma.mean((1, 2)) * 255).round()[:, None, None, None] / 255
    frames = middle + contrast * (frames - middle)
    kernel = torch.ones(3, 3, device=frames.device)
    kernel[1, 1] = 5
    padded = torch.nn.functional.pad(frames, (1, 1, 1, 1), mode="replicate")
    channels = frames.shape[1]
    weight = (kernel / 13).expand(channels, 1, 3, 3)
    smooth = torch.nn.functional.conv2d(padded, weight, groups=channels)
    return (smooth + sharp * (frames - smooth)).clamp(0, 1)


def scores(
    frames: Tensor,
    step: tuple[int, int],
    clean: Tensor | None = None,
    valid: Tensor | None = None,
) -> dict[str, float]:
    """ "warp [1e-3]" along a pan; "PSNR [dB]" to clean frames, "off [1e-3]" to valid images."""
    found = {"warp [1e-3]": 1e3 * warping_error(frames, step)}
    if clean is not None:
        found["PSNR [dB]"] = psnr(frames, clean, 1.0)
    if valid is not None:
        found["off [1e-3]"] = 1e3 * distance_to_valid(frames, valid)
    return found


def plain_mean(frames: Tensor, window: int) -> Tensor:
    """Each frame [n, ...] averaged with its `window` neighbours on both sides, as they are."""
    total = torch.cat([torch.zeros_like(frames[:1]), frames.cumsum(0)])
    i = torch.arange(len(frames), device=frames.device)
    low, high = (i - window).clamp(min=0), (i + window + 1).clamp(max=len(frames))
    return (total[high] - total[low]) / (high - low).view(-1, *[1] * (frames.dim() - 1))


def count_remaps(blend: Callable, frames: int, window: int, mode: str) -> int:
    """How often blend(frames, window, remap, mode) redraws a frame."""
    calls = []
    blend(torch.zeros(frames, 1, 1, 1), window, lambda x, *pair: calls.append(pair) or x, mode)
    return len(calls)
