"""Ways to change images (n, c, h, w) by a strength, and how far a change goes in some space."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def contrast(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Take away a share `strength` of the contrast: (1 - strength) * x."""
    return (1 - strength) * x


def shift(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Shift right by round(strength) pixels; the left edge repeats."""
    pixels = round(strength)
    return F.pad(x, (pixels, 0, 0, 0), mode="replicate")[..., : x.shape[-1]]


def blur(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Replace blocks of round(strength) pixels, which must divide the size, by their mean."""
    side = round(strength)
    return F.interpolate(F.avg_pool2d(x, side), scale_factor=side, mode="nearest")


def noise(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation `strength`."""
    return x + strength * torch.randn(x.shape, generator=rng).to(x)


def permuted(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Exchange a share `strength` of the pixels at random, the same in all images."""
    pixels = x.shape[-2] * x.shape[-1]
    chosen = torch.randperm(pixels, generator=rng)[: round(strength * pixels)]
    order = torch.arange(pixels)
    order[chosen] = chosen[torch.randperm(len(chosen), generator=rng)]
    return x.flatten(2)[..., order.to(x.device)].view(x.shape)


CHANGES = {f.__name__: f for f in (contrast, shift, blur, noise, permuted)}


@torch.no_grad()
def relative_change(f: Callable[[Tensor], Tensor], x: Tensor, changed: Tensor) -> float:
    """mean |f(x) - f(changed)| / mean |f(x) - f(the next image of the batch)|; 1: another image."""
    original = f(x)
    return (F.l1_loss(original, f(changed)) / F.l1_loss(original, original.roll(1, 0))).item()


def probe(
    x: Tensor,
    changes: Mapping[str, float],
    spaces: Mapping[str, Callable[[Tensor], Tensor]],
    rng: torch.Generator,
) -> dict[str, dict[str, float]]:
    """`relative_change` of every change {name: strength} in every space: {space: {change: r}}."""
    changed = {kind: CHANGES[kind](x, strength, rng) for kind, strength in changes.items()}
    return {
        name: {kind: relative_change(f, x, image) for kind, image in changed.items()}
        for name, f in spaces.items()
    }
