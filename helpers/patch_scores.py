"""How well images are restored patch by patch: errors, PSNR under any choice of levels, speed."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from helpers import bench
from helpers.claims import paired
from helpers.patches import split_patches


@torch.no_grad()
def patch_errors(
    network: nn.Module, pairs: Sequence, patch_size: Sequence[int], widths: Sequence[float], device
) -> Tensor:
    """Mean squared error (n, N, K) of every patch of every pair restored at every width.

    Outputs are clamped to [0, 1]; float32. network(patches, width) returns patches.
    """
    network, rows = network.to(device).eval(), []
    for index in range(len(pairs)):
        given, clear = (split_patches(image, patch_size).to(device) for image in pairs[index])
        found = [network(given, width).clamp(0, 1) for width in widths]
        rows.append(torch.stack([(x - clear).square().mean((1, 2, 3)) for x in found], 1).cpu())
    return torch.stack(rows)


def patch_table(
    pairs: Sequence, patch_size: Sequence[int], scores: dict[str, Callable]
) -> dict[str, Tensor]:
    """{"damage": squared error of every patch (n, N), and the value of each score there}.

    scores: {name: function of (input patches, clear patches) -> (N,)}.
    """
    rows = []
    for index in range(len(pairs)):
        given, clear = (split_patches(image, patch_size) for image in pairs[index])
        row = {"damage": (given - clear).square().mean((1, 2, 3))}
        rows.append(row | {name: score(given, clear) for name, score in scores.items()})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def psnr_of(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [dB] of mean squared errors of images in [0, 1]."""
    return -10 * mse.clamp(min=1e-12).log10()


def image_psnr(errors: Tensor, levels: Tensor) -> Tensor:
    """PSNR [dB] of each image (n,) from patch errors (n, N, K) at the chosen levels (n, N)."""
    return psnr_of(errors.gather(2, levels[..., None]).mean((1, 2)))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Mean over rows of Spearman's correlation of a and b, both (n, N)."""
    from scipy.stats import spearmanr

    rows = zip(a.tolist(), b.tolist(), strict=True)
    return sum(float(spearmanr(*pair)[0]) for pair in rows) / len(a)


def image_quality(image: Tensor, clear: Tensor) -> dict[str, float]:
    """PSNR [dB], SSIM and CIEDE2000 of one image (3, h, w) in [0, 1] against its reference."""
    from skimage.color import deltaE_ciede2000, rgb2lab
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    image, clear = image.clamp(0, 1).cpu(), clear.cpu()
    labs = (rgb2lab(x.permute(1, 2, 0).double().numpy()) for x in (image, clear))
    return {
        "PSNR": psnr_of((image - clear).square().mean()).item(),
        "SSIM": ssim(image[None], clear[None], data_range=1.0).item(),
        "CIEDE2000": float(deltaE_ciede2000(*labs).mean()),
    }


def print_quality(restored: Mapping[str, Sequence[tuple]], inputs: Sequence[tuple]) -> None:
    """Print mean `image_quality` of (image, clear) pairs of the inputs and of each method."""
    for name, pairs in {"input": inputs, **restored}.items():
        found = [image_quality(*pair) for pair in pairs]
        print(f"{name:8}", ", ".join(f"{k} {fmean(row[k] for row in found):.3f}" for k in found[0]))


def mean_psnr(errors: Tensor, choices: Sequence[Tensor]) -> float:
    """Mean over choices and images of `image_psnr`; errors (n, N, K), choices of (n, N) levels."""
    return fmean(image_psnr(errors, levels).mean().item() for levels in choices)


def error_by_level(errors: Sequence[Tensor], choice: Tensor, groups: Tensor) -> Tensor:
    """Mean squared error (K,) of the patches in each group, mean over repeats.

    errors: (n, N, L) of each repeat; choice and groups: (n, N).
    """
    own = torch.stack([e.gather(2, choice[..., None])[..., 0] for e in errors]).mean(0)
    return torch.stack([own[groups == k].mean() for k in range(int(groups.max()) + 1)])


class Scoreboard:
    """Ways to restore the same images: what each costs and its PSNR [dB] in every repeat.

    pixels: of a patch, to which costs (multiply-adds) are related. cost: thousands a pixel.
    """

    def __init__(self, pixels: int):
        self.pixels = pixels
        self.cost: dict[str, float] = {}
        self.psnr: dict[str, list[float]] = {}

    def add(
        self, name: str, cost: float, errors: Sequence[Tensor], choices: Sequence[Tensor]
    ) -> None:
        """Add a way from its cost a patch, errors (n, N, K) of each repeat and levels (n, N)."""
        self.cost[name] = cost / self.pixels / 1e3
        self.psnr[name] = [mean_psnr(e, choices) for e in errors]

    def print_table(self, first: str) -> None:
        """Print all ways, best first, with the paired lead of `first`."""
        print(f"{'':16}{'kMAC/pixel':>10}   PSNR [dB]: repeats, mean, {first} - this")
        for name in sorted(self.psnr, key=lambda name: -fmean(self.psnr[name])):
            each = " ".join(f"{value:.2f}" for value in self.psnr[name])
            gap = "" if name == first else paired(self.psnr[first], self.psnr[name])
            mean = fmean(self.psnr[name])
            print(f"{name:16}{self.cost[name]:10.1f}   {each}  {mean:.2f}  {gap}")

    def points(self) -> dict[str, tuple[float, list[float]]]:
        """{name: (cost, PSNR of each repeat)}."""
        return {name: (self.cost[name], self.psnr[name]) for name in self.psnr}


def halved(run: Callable, device: torch.device) -> Callable:
    """run() under bfloat16 autocast."""

    def under():
        with torch.autocast(device.type, torch.bfloat16):
            return run()

    return under


def patch_latency(networks: Mapping[float, nn.Module], parts: Tensor) -> dict[float, float]:
    """Seconds a patch of networks by width, on a batch of patches (b, 3, h, w)."""
    contenders = {f"{w:g}": lambda w=w: networks[w](parts) for w in sorted(networks)}
    with torch.inference_mode():
        rows = bench.compare(contenders, baseline=f"{max(networks):g}", seconds=0.3)
    return {w: r.timing.median / len(parts) for w, r in zip(sorted(networks), rows, strict=True)}


def print_latency(times: Mapping[float, float], macs: Mapping[float, int]) -> None:
    """Print `patch_latency` and multiply-adds by width, as shares of the widest too."""
    widest = max(times)
    print("  width  ms a patch  share of time  of multiply-adds")
    for w, seconds in times.items():
        shares = f"{seconds / times[widest]:13.2f}  {macs[w] / macs[widest]:16.2f}"
        print(f"{w:7g}  {1e3 * seconds:10.3f}  {shares}")
