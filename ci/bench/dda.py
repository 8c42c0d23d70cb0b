"""DDA's hot paths against the straightforward forms, as ratios measured in one run."""

import math
import shutil

import numpy as np
import torch

from helpers import bench
from helpers.notebooks import load
from helpers.patches import split_patches

D = load("dda")
WIDTHS = (0.75, 0.5, 0.25)


def looped_filter(height: int, width: int, cutoff: float = 5.0) -> np.ndarray:
    """The high-pass filter by a loop over its entries."""
    found = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            square = (i - height // 2) ** 2 + (j - width // 2) ** 2
            found[i, j] = 1 - math.exp(-square / (2 * cutoff**2))
    return found


def shifted_prior(patch: torch.Tensor, kept: np.ndarray) -> float:
    """The prior of one patch (3, h, w) with complex transforms and two shifts."""
    r, g, b = patch.numpy().astype(np.float64)
    rg, yb = r - g, (r + g) / 2 - b
    colour = np.sqrt(rg.var(ddof=1) + yb.var(ddof=1)) + 0.3 * np.hypot(rg.mean(), yb.mean())
    spectrum = np.fft.fftshift(np.fft.fft2(0.299 * r + 0.587 * g + 0.114 * b))
    return colour * np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum * kept))).mean()


def priors(height: int, width: int, count: int) -> None:
    parts = torch.rand(count, 3, height, width)
    kept = looped_filter(height, width)
    expected = torch.tensor([shifted_prior(part, kept) for part in parts]).float()
    torch.testing.assert_close(D.moire_prior(parts), expected, rtol=1e-4, atol=1e-6)
    contenders = {
        "filter loop and patches": lambda: [
            shifted_prior(part, k) for k in [looped_filter(height, width)] for part in parts
        ],
        "complex, patch by patch": lambda: [shifted_prior(part, kept) for part in parts],
        "real, one batch (ours)": lambda: D.moire_prior(parts),
    }
    rows = bench.compare(contenders, baseline="complex, patch by patch", rounds=3)
    bench.print_table(rows, f"prior of {count} patches of {height} x {width}")


@torch.inference_mode()
def images(architecture: dict, side: int, rows: int, columns: int) -> None:
    """The network on one image: full, patch by patch, grouped, exported, and compiled."""
    torch.manual_seed(0)
    network = D.DMCNN(**architecture).eval()
    image, size = torch.rand(3, rows * side, columns * side), (side, side)
    parts, exported = split_patches(image, size), [D.export(network, w) for w in WIDTHS]
    contenders = {
        "full, one batch": lambda: network(parts),
        "DDA, patch by patch": lambda: D.patch_by_patch(network, image, size, WIDTHS),
        "DDA, grouped": lambda: D.dda_forward(network, image, size, WIDTHS)[0],
        "DDA, exported (ours)": lambda: D.dda_forward(exported, image, size, WIDTHS)[0],
    }
    if shutil.which("c++") or torch.cuda.is_available():
        fast = [torch.compile(net, dynamic=False) for net in exported]
        contenders["DDA, compiled"] = lambda: D.dda_forward(fast, image, size, WIDTHS)[0]
    expected = contenders["DDA, patch by patch"]()
    for name, run in contenders.items():
        if name.startswith("DDA"):
            torch.testing.assert_close(run(), expected, rtol=1e-3, atol=1e-4)
    rows = bench.compare(contenders, baseline="full, one batch")
    bench.print_table(rows, f"image of {image.shape[1]} x {image.shape[2]}, patches of {side}")


def main() -> None:
    """Print all tables; a minute or two on two cores."""
    torch.set_num_threads(1)
    priors(48, 48, 24)
    priors(512, 640, 6)
    images({"channels": (16, 24, 24, 24), "body_depth": 3, "residual": True}, 48, 4, 6)
    images({"residual": True}, 128, 2, 3)


if __name__ == "__main__":
    main()
