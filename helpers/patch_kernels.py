"""Squared distances between the patches that a field matches, and the checks of such fields.

Images are [batch, channels, height, width]; a field is int64 [batch, height, width, 2] and holds,
for every pixel of a target image, the row and column of a pixel of a source image.
"""

from collections.abc import Callable
from functools import wraps
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def gpu_compiled(function: Callable) -> Callable:
    """Run a tensor function as it is on a CPU, and through torch.compile on a GPU.

    There its offsets, gathers and sums fuse into one kernel, and no patch is ever stored.
    `.eager` is the plain function.
    """
    compiled = None

    @wraps(function)
    def run(first: Tensor, *args):
        nonlocal compiled
        if not first.is_cuda:
            return function(first, *args)
        if compiled is None:
            compiled = torch.compile(function, dynamic=True)
        return compiled(first, *args)

    run.eager = function
    return run


@gpu_compiled
def padded_distance(source: Tensor, target: Tensor, nnf: Tensor, patch_size: int) -> Tensor:
    """Squared patch distances [batch, h, w] of images that are padded by patch_size // 2 already.

    One gather for each offset of the patch: no patch is ever stored.
    """
    (b, c, _, wide), (h, w) = source.shape, nnf.shape[1:3]
    corner = (nnf[..., 0] * wide + nnf[..., 1]).reshape(b, 1, h * w)
    source, total = source.flatten(2), torch.zeros_like(target[:, :, :h, :w])
    for dy, dx in product(range(patch_size), repeat=2):
        found = source.gather(2, (corner + (dy * wide + dx)).expand(b, c, h * w))
        difference = found.view(b, c, h, w) - target[:, :, dy : dy + h, dx : dx + w]
        total = torch.addcmul(total, difference, difference)
    return total.sum(1)


def patch_distance(source: Tensor, target: Tensor, patch_size: int) -> Callable[[Tensor], Tensor]:
    """A function from a field to the squared patch distances [batch, height, width].

    The sum over the patch (zeros outside the image) and the channels of (source around the match
    - target around the pixel) squared.
    """
    r = patch_size // 2
    pair = [F.pad(images, (r, r, r, r)) for images in (source, target)]
    return lambda nnf: padded_distance(*pair, nnf, patch_size)


def check_patch(patch_size: int, size: tuple[int, int]) -> None:
    """Raise ValueError for an even patch side or an image smaller than the patch."""
    if patch_size < 1 or patch_size % 2 == 0:
        raise ValueError(f"patch_size must be odd and >= 1, got {patch_size}")
    if min(size) < patch_size:
        raise ValueError(
            f"an image of {size[0]} x {size[1]} pixels is smaller than the patch, "
            f"{patch_size} x {patch_size}"
        )


def check_images(**images: Tensor) -> None:
    """Raise unless all are float batches [n, c, h, w] of one number and size, by name."""
    first, expected = next(iter(images.items()))
    for name, batch in images.items():
        if not batch.is_floating_point():
            raise TypeError(f"{name} must be float in 0..1, got {batch.dtype}")
        if batch.dim() != 4:
            raise ValueError(f"{name} must be (n, channels, height, width): {tuple(batch.shape)}")
        if len(batch) != len(expected) or batch.shape[2:] != expected.shape[2:]:
            raise ValueError(
                f"{name} is {tuple(batch.shape)} and {first} {tuple(expected.shape)}: number, "
                "height and width must be equal"
            )


def check_field(nnf: Tensor, image: Tensor) -> None:
    """Raise TypeError or ValueError unless nnf is a field of this image batch."""
    what = "nnf must be int64 (B,H,W,2) inside the image"
    if nnf.dtype != torch.int64:
        raise TypeError(f"{what}, got {nnf.dtype}")
    batch, _, height, width = image.shape
    if nnf.shape != (batch, height, width, 2):
        raise ValueError(f"{what}, got {tuple(nnf.shape)} for images {tuple(image.shape)}")
    size = torch.tensor([height, width], device=nnf.device)
    if ((nnf < 0) | (nnf >= size)).any():
        raise ValueError(f"{what}: values {nnf.min()} to {nnf.max()} at {height} x {width}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError naming the choices unless value is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
