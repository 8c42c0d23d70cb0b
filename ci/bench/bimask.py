"""Bi-Mask's hot path against the straightforward forms, as ratios measured in one run."""

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import bench
from helpers.notebooks import load
from helpers.sparsity import nm_mask

B = load("bimask")


def argsort_mask(weight: Tensor, n: int, m: int, dim: int = -1) -> Tensor:
    """N:M mask by sorting every group."""
    groups = weight.abs().movedim(dim, -1).unflatten(-1, (-1, m))
    kept = groups.argsort(dim=-1, descending=True)[..., :n]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, kept, True)
    return mask.flatten(-2).movedim(-1, dim)


class UnfoldConv(torch.autograd.Function):
    """The masked 3x3 convolution by im2col, with the weight gradient of every sample."""

    @staticmethod
    def forward(ctx, x, weight, forward_mask, backward_mask):
        columns = F.unfold(x, 3, padding=1)
        ctx.save_for_backward(columns, weight, forward_mask, backward_mask)
        ctx.size = x.shape[-2:]
        return ((weight * forward_mask).flatten(1) @ columns).unflatten(2, x.shape[-2:])

    @staticmethod
    def backward(ctx, grad):
        columns, weight, forward_mask, backward_mask = ctx.saved_tensors
        grad = grad.flatten(2)
        dx = F.fold((weight * backward_mask).flatten(1).T @ grad, ctx.size, 3, padding=1)
        dw = (grad @ columns.transpose(1, 2)).sum(0).view_as(weight)
        return dx, dw + 2e-4 * ~forward_mask * weight, None, None


def convolutions() -> None:
    x = torch.randn(32, 64, 28, 28, requires_grad=True)
    weight = torch.randn(64, 64, 3, 3, requires_grad=True)
    f = nm_mask(weight.flatten(1), 1, 16).view_as(weight)
    b = f & (torch.rand(f.shape) < 0.6)

    def native():
        B.bimask_conv2d(x, weight, f, b, padding=1, decay=2e-4).sum().backward()

    def unfold():
        UnfoldConv.apply(x, weight, f, b).sum().backward()

    gradients = []
    for step in (native, unfold):
        x.grad = weight.grad = None
        step()
        gradients.append((x.grad.clone(), weight.grad.clone()))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    rows = bench.compare({"unfold": unfold, "native": native}, baseline="unfold")
    bench.print_table(rows, "masked 3x3 convolution, 64 channels, 28 x 28, batch 32, both passes")


def searches(outputs: int, inputs: int, n: int, m: int) -> None:
    weight = torch.randn(outputs, inputs)
    f = nm_mask(weight, n, m)
    orders = B.random_permutations(100, outputs, torch.Generator().manual_seed(0))

    def sort():
        masked = weight * f
        return torch.stack([(argsort_mask(masked[p], n, m, 0) & f[p]).sum() for p in orders])

    def count():
        return B.permutation_scores(f, orders, n, m, check=False)

    def gemm():
        blocks = torch.zeros(100 * outputs // m, outputs).scatter_(1, orders.reshape(-1, m), 1.0)
        return (blocks @ f.float()).clamp(max=n).view(100, -1).sum(1)

    assert torch.equal(sort(), count())
    assert torch.equal(gemm().long(), count())
    contenders = {
        "sort each candidate": sort,
        "count, one product": gemm,
        "count, bags (ours)": count,
    }
    rows = bench.compare(contenders, baseline="sort each candidate")
    bench.print_table(rows, f"score 100 row orders of {outputs} x {inputs} at {n}:{m}")


def transposable(n: int, m: int) -> None:
    weight = torch.randn(256, 576)

    def sort():
        tiles = weight.abs().unflatten(1, (-1, m)).unflatten(0, (-1, m)).transpose(1, 2)
        shape, tiles = tiles.shape, tiles.reshape(-1, m, m)
        kept, tile = torch.zeros_like(tiles, dtype=torch.bool), torch.arange(len(tiles))
        for entry in tiles.flatten(1).argsort(dim=1, descending=True).T:  # all m * m entries
            i, j = entry // m, entry % m
            kept[tile, i, j] = (kept[tile, i].sum(1) < n) & (kept[tile, :, j].sum(1) < n)
        return kept.view(shape).transpose(1, 2).reshape(weight.shape)

    def rounds():
        return B.transposable_mask(weight, n, m)

    assert torch.equal(sort(), rounds())
    rows = bench.compare(
        {"visit all entries": sort, "n m rounds": rounds}, baseline="visit all entries"
    )
    bench.print_table(rows, f"transposable mask, 256 x 576 at {n}:{m}")


def masks(n: int, m: int) -> None:
    weight = torch.randn(512, 4608)
    assert torch.equal(argsort_mask(weight, n, m), nm_mask(weight, n, m))
    contenders = {
        "argsort": lambda: argsort_mask(weight, n, m),
        "ours": lambda: nm_mask(weight, n, m),
    }
    bench.print_table(
        bench.compare(contenders, baseline="argsort"), f"mask of 512 x 4608 at {n}:{m}"
    )


def main() -> None:
    """Print all tables; about a minute on two cores."""
    torch.manual_seed(0)
    convolutions()
    for outputs, inputs, n, m in ((64, 576, 1, 16), (256, 1152, 2, 4)):
        searches(outputs, inputs, n, m)
    for n, m in ((1, 16), (2, 4)):
        transposable(n, m)
        masks(n, m)
    masks(4, 8)


if __name__ == "__main__":
    main()
