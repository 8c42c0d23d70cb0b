"""SpRe's hot path against the straightforward forms, as ratios measured in one run."""

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import bench
from helpers.notebooks import load
from helpers.sparsity import nm_mask

S = load("spre")


def sorted_spatial_mask(weight: Tensor, n: int, m: int) -> Tensor:
    """S by ranking the whole layer."""
    order = weight.abs().flatten().argsort()
    mask = torch.ones(weight.numel())
    mask[order[: weight.numel() * (m - n) // m]] = 0
    density = mask.view_as(weight).mean((0, 1))
    return 1 - density < 1 - n / m


def sorted_nm_mask(weight: Tensor, n: int, m: int) -> Tensor:
    """B by moving the channels last and ranking every group."""
    groups = weight.abs().permute(0, 2, 3, 1).reshape(-1, m)
    kept = groups.argsort(dim=1, descending=True)[:, :n]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, kept, True)
    out, inputs, *size = weight.shape
    return mask.view(out, *size, inputs).permute(0, 3, 1, 2)


def masks(channels: int, n: int, m: int) -> None:
    weight = torch.randn(channels, channels, 3, 3)
    assert torch.equal(sorted_spatial_mask(weight, n, m), S.spatial_mask(weight, n, m))
    assert torch.equal(sorted_nm_mask(weight, n, m), nm_mask(weight, n, m, 1))
    contenders = {
        "S, sort": lambda: sorted_spatial_mask(weight, n, m),
        "S, threshold (ours)": lambda: S.spatial_mask(weight, n, m, check=False),
        "B, sort": lambda: sorted_nm_mask(weight, n, m),
        "B, ours": lambda: nm_mask(weight, n, m, 1),
    }
    rows = bench.compare(contenders, baseline="S, sort")
    bench.print_table(rows, f"masks of {channels} x {channels} x 3 x 3 at {n}:{m}")


def branches(channels: int, size: int, batch: int) -> None:
    x = torch.randn(batch, channels, size, size, requires_grad=True)
    weights = torch.randn(2, channels, channels, 3, 3, requires_grad=True)

    def two():
        y = [F.conv2d(x, weight, padding=1) for weight in weights]
        (y[0] * 2 + y[1]).sum().backward()
        return y

    def stacked():
        y = F.conv2d(x, weights.flatten(0, 1), padding=1).chunk(2, 1)
        (y[0] * 2 + y[1]).sum().backward()
        return y

    for left, right in zip(two(), stacked(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)
    rows = bench.compare(
        {"two convolutions": two, "one, stacked (ours)": stacked}, baseline="two convolutions"
    )
    title = f"both branches, {channels} channels, {size} x {size}, batch {batch}, both passes"
    bench.print_table(rows, title)


def layers(channels: int) -> None:
    x = torch.randn(32, channels, 14, 14)
    options = {"padding": 1, "n": 1, "m": 16}
    kinds = {
        "SpRe, S every step": {},
        "SpRe, S every 10 steps": {"update_every": 10},
        "all positions": {"positions": "all"},
        "SR-STE": {"positions": "none"},
    }
    modules = {k: S.SpReConv2d(channels, channels, 3, **options, **v) for k, v in kinds.items()}
    steps = {k: (lambda module=module: module(x).sum().backward()) for k, module in modules.items()}
    rows = bench.compare(steps, baseline="SpRe, S every step")
    bench.print_table(rows, f"training step of a layer, {channels} channels, 14 x 14, batch 32")


def main() -> None:
    """Print all tables; about half a minute on two cores."""
    torch.manual_seed(0)
    for channels, n, m in ((64, 1, 16), (512, 1, 16), (512, 2, 4)):
        masks(channels, n, m)
    for channels, size in ((64, 28), (256, 14)):
        branches(channels, size, 16)
    layers(64)


if __name__ == "__main__":
    main()
