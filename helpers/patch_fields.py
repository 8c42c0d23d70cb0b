"""Fields of patch matches: where every pixel of a target image finds its source pixel.

A field is int64 [batch, height, width, 2] (row, column), as in `helpers.patch_kernels`.
"""

import torch
from torch import Tensor

START = ("identity", "random")


def first_field(
    init: str, batch: int, size: tuple[int, int], generator: torch.Generator | None = None
) -> Tensor:
    """The identity field, or a uniformly random one."""
    if init == "random":
        where = getattr(generator, "device", "cpu")
        shape = (batch, *size)
        draws = [torch.randint(n, shape, generator=generator, device=where) for n in size]
        return torch.stack(draws, -1)
    grid = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    return torch.stack(grid, -1).repeat(batch, 1, 1, 1)


def draws(
    nnf: Tensor, radius: int, steps: int, generator: torch.Generator | None = None
) -> tuple[Tensor, list[int]]:
    """Random jumps [steps, *field], uniform in -radius..radius, and an order of four directions."""
    where = getattr(generator, "device", "cpu")
    shape = (steps, *nnf.shape)
    jumps = torch.randint(-radius, radius + 1, shape, generator=generator, device=where)
    return jumps.to(nnf.device), torch.randperm(4, generator=generator, device=where).tolist()


def moved(nnf: Tensor, step: Tensor | int) -> Tensor:
    """nnf + step, kept inside the image."""
    limit = nnf.new_tensor(nnf.shape[1:3]) - 1
    return torch.minimum((nnf + step).clamp(min=0), limit)


def from_neighbour(nnf: Tensor, direction: int) -> Tensor:
    """Candidates: the match of a neighbour, moved along. 0 above, 1 left, 2 below, 3 right.

    At the border, where there is no neighbour, the pixel's own match takes its place.
    """
    dim, sign = (1, 2)[direction % 2], (1, -1)[direction // 2]
    count = nnf.shape[dim]
    rest = nnf.narrow(dim, 0 if sign > 0 else 1, count - 1)
    edge = nnf.narrow(dim, 0 if sign > 0 else count - 1, 1)
    shifted = torch.cat([edge, rest] if sign > 0 else [rest, edge], dim)
    return moved(shifted, nnf.new_tensor([sign, 0] if dim == 1 else [0, sign]))


def enlarged(nnf: Tensor, size: tuple[int, int]) -> Tensor:
    """The field for an image twice as large, size (h, w) up to an odd row or column.

    Every match is doubled; odd rows and columns of the target match one further, so that the
    identity stays the identity.
    """
    double = 2 * nnf.repeat_interleave(2, 1).repeat_interleave(2, 2)
    parity = [torch.arange(n, device=nnf.device) % 2 for n in double.shape[1:3]]
    double = double + torch.stack(torch.meshgrid(*parity, indexing="ij"), -1)
    for dim in (1, 2):
        if double.shape[dim] < size[dim - 1]:
            last = double.narrow(dim, -1, 1) + nnf.new_tensor([int(dim == 1), int(dim == 2)])
            double = torch.cat([double, last], dim)
    return moved(double, 0)


def at_size(
    nnf: Tensor | None,
    size: tuple[int, int],
    init: str,
    like: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The next field from coarse to fine: the enlarged one, or (for None) the first.

    like: images [batch, c, h, w] that give batch and device.
    """
    if nnf is not None:
        return enlarged(nnf, size)
    return first_field(init, len(like), size, generator).to(like.device)


def displacement_errors(nnf: Tensor, displacement: Tensor, valid: Tensor | None = None) -> Tensor:
    """End-point errors in pixels of the valid matches inside the image, one-dimensional.

    displacement: true source minus target position, [2], or [2, h, w], or [batch, 2, h, w].
    """
    batch, height, width, _ = nnf.shape
    identity = first_field("identity", 1, (height, width)).to(nnf.device)
    if displacement.dim() == 1:
        displacement = displacement[:, None, None].expand(2, height, width)
    displacement = displacement.expand(batch, 2, height, width).movedim(1, -1).to(nnf.device)
    true = identity + displacement
    inside = ((true >= 0) & (true <= true.new_tensor([height - 1, width - 1]))).all(-1)
    if valid is not None:
        inside = inside & valid.to(nnf.device)
    return (nnf - true).square().sum(-1).sqrt()[inside]


def stereo_errors(nnf: Tensor, disparity: Tensor) -> tuple[Tensor, Tensor]:
    """Disparities [h, w] of a field from right to left view, and its end-point errors [n]."""
    true = torch.stack([torch.zeros_like(disparity), -disparity]).nan_to_num(neginf=0.0)
    columns = torch.arange(disparity.shape[1], device=nnf.device)
    errors = displacement_errors(nnf, true, disparity.isfinite())
    return (columns - nnf[0, ..., 1]).cpu(), errors.cpu()
