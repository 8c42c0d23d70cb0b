"""What a model costs (torch's own counter), how close images are, how much videos flicker."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def macs(model: nn.Module, *inputs) -> int:
    """Multiply-adds of one forward pass in eval mode."""
    return layer_macs(model, *inputs)[""]


def layer_macs(model: nn.Module, *inputs) -> dict[str, int]:
    """Multiply-adds of one forward pass in eval mode, by module name; "" is the whole model.

    Works on the meta device, where nothing is computed. torch counts two operations for each.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        model.train(training)
    root = type(model).__name__
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    inner = {name.removeprefix(f"{root}."): count for name, count in counts.items()}
    return {name: count for name, count in inner.items() if name not in ("Global", root)} | {
        "": counts["Global"]
    }


def parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; a shared one counts once."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def largest_difference(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    """max |a(x) - b(x)| over max(1, max |b(x)|), in the models' own precision and mode."""
    expected = b(x)
    return (a(x) - expected).abs().max().item() / max(1.0, expected.abs().max().item())


LUMA = (65.738, 129.057, 25.064)  # of R, G, B in 0..255 to Y, in 1/256 (ITU-R BT.601)


def psnr(a: Tensor, b: Tensor, peak: float = 255.0, shave: int = 0) -> float:
    """Peak signal-to-noise ratio [dB] of two image batches (n, c, h, w); infinite when equal.

    All channels, unrounded and unclamped; `shave` pixels are cut off on each side.
    Raises ValueError when the shapes differ or nothing is left after the cut.
    """
    a, b = _inner(a, b, shave)
    return float(-10 * torch.log10(((a - b).double() / peak).square().mean()))


def psnr_y(sr: Tensor, hr: Tensor, shave: int) -> float:
    """PSNR [dB] on luma as the super-resolution field reports it; infinite when equal.

    sr, hr: (n, 3, h, w) in 0..255. sr is clamped and rounded to whole numbers first; `shave`
    pixels are cut off on each side. Raises ValueError as `psnr` does.
    """
    sr, hr = _inner(sr, hr, shave)
    if sr.shape[1] != 3:
        raise ValueError(f"images need 3 channels, got shape {tuple(sr.shape)}")
    weights = torch.tensor(LUMA, dtype=torch.float64, device=sr.device) / 256
    difference = (sr.clamp(0, 255).round() - hr).double() / 255
    error = torch.einsum("nchw,c->nhw", difference, weights).square().mean()
    return float(-10 * torch.log10(error))


def _inner(a: Tensor, b: Tensor, shave: int) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(f"need two image batches of one shape, got {a.shape} and {b.shape}")
    if shave < 0 or 2 * shave >= min(a.shape[2:]):
        raise ValueError(f"shave={shave} leaves nothing of {a.shape[2]} x {a.shape[3]} pixels")
    height, width = (size - 2 * shave for size in a.shape[2:])
    return (x.narrow(2, shave, height).narrow(3, shave, width) for x in (a, b))


def generator_macs(model: nn.Module, height: int, width: int, transposed: str = "exact") -> int:
    """Multiply-adds of the convolutions for one image of height x width, from torch's counter.

    transposed: "exact" counts a transposed convolution at its input resolution, where it works;
    "output" at its output resolution, as some published tables do. Raises ValueError otherwise.
    """
    if transposed not in ("exact", "output"):
        raise ValueError(f"transposed must be exact or output, got {transposed!r}")
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    image = torch.empty(1, channels, height, width, device="meta")
    counts = layer_macs(deepcopy(model).to("meta"), image)
    extra = 0
    if transposed == "output":
        ups = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ConvTranspose2d)]
        extra = sum(counts[name] * (m.stride[0] * m.stride[1] - 1) for name, m in ups)
    return counts[""] + extra


def warping_error(frames: Tensor, shift: tuple[int, int], valid: Tensor | None = None) -> float:
    """Mean squared difference along known motion; 0 for a video that only moves.

    frames: (n, c, h, w). shift: (rows, columns) of one step: frames[i + 1] at p is compared with
    frames[i] at p + shift, where both lie inside. valid: (n - 1 or 1, h, w) bool, which pixels p
    of frames[i + 1] count. Low values alone say little: a grey video has 0.
    Raises ValueError for fewer than 2 frames or no pixel to compare.
    """
    if len(frames) < 2:
        raise ValueError(f"a warping error needs 2 frames or more, got {len(frames)}")
    here, there = _overlap(frames[1:], shift, 1), _overlap(frames[:-1], shift, -1)
    error = (here - there).double().square().mean(1)
    mask = torch.ones_like(error, dtype=torch.bool)
    if valid is not None:
        mask = _overlap(valid[:, None], shift, 1)[:, 0].expand_as(error)
    if not mask.any():
        size = " x ".join(map(str, frames.shape[2:]))
        raise ValueError(f"shift {tuple(shift)} leaves no pixel to compare in {size} pixels")
    return error[mask].mean().item()


def _overlap(images: Tensor, shift: tuple[int, int], sign: int) -> Tensor:
    """The part of images that a shift keeps inside: sign 1 before the shift, -1 after it."""
    for dim, step in zip((2, 3), shift, strict=True):
        length = max(0, images.shape[dim] - abs(step))
        start = min(abs(step), images.shape[dim]) if sign * step < 0 else 0
        images = images.narrow(dim, start, length)
    return images
