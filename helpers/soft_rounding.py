"""The hot path of post-training quantization by reconstruction: one unit's loop in its fast form.

What `helpers.quantization` states step by step is computed here in fewer passes: what stays fixed
once, all roundings of a unit as one vector with their gradients written out, features with channels
last.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from helpers.chains import Quantizer
from helpers.quantization import GAMMA, ZETA, init_alpha

QParams = tuple[Tensor, Tensor, int]  # scale, zero point, bits


class _Quantize(torch.autograd.Function):
    """`fake_quantize` on codes low..high (numbers), in as few passes over x as it takes."""

    @staticmethod
    def forward(ctx, x, scale, low, high):
        v = x / scale
        code = v.round().clamp_(low, high)
        ctx.save_for_backward(v, code)
        ctx.ends = low - 0.5, high + 0.5
        return code * scale

    @staticmethod
    def backward(ctx, grad):
        v, code = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(grad, v, *ctx.ends)
        to_scale = None
        if ctx.needs_input_grad[1]:  # round(v) - v inside, the end of the range outside
            grad, code, masked, v = (_flat(t) for t in (grad, code, inside, v))
            to_scale = torch.dot(grad, code) - torch.dot(masked, v)
        return inside, to_scale, None, None


def _flat(x: Tensor) -> Tensor:
    """All values of x; features with channels last are not copied."""
    return (x.movedim(1, -1) if x.dim() > 2 else x).reshape(-1)


def code_ends(grid: QParams) -> tuple[float, float]:
    """Lowest and highest code of an activation's grid, counted from the code of zero."""
    low = -float(grid[1])
    return low, low + 2 ** grid[2] - 1


def on_grid(x: Tensor, scale: Tensor, ends: tuple[float, float]) -> Tensor:
    """`fake_quantize` of x on the codes between `code_ends`; gradients to x and scale ()."""
    return _Quantize.apply(x, scale, *ends)


def quantizers(scales: Sequence[Tensor], grids: Sequence[QParams]) -> list[Quantizer]:
    """A callable for each activation, with scales in place of those of its grid."""
    pairs = zip(scales, grids, strict=True)
    return [partial(on_grid, scale=scale, ends=code_ends(grid)) for scale, grid in pairs]


class Rounding:
    """All roundings of a unit as one vector `alpha`, with AdaRound's gradients written out.

    w_soft = base + slope h(alpha), where base and slope hold everything that stays: a weight whose
    rounded-down code lies outside of 0..q - 1 is on the end of its grid and has slope 0.
    """

    def __init__(self, weights: Sequence[Tensor], grids: Sequence[QParams]):
        self.shapes = [w.shape for w in weights]
        self.sizes = [w.numel() for w in weights]
        base, slope = [], []
        for w, (scale, zero, bits) in zip(weights, grids, strict=True):
            s, z = (v.view(-1, *[1] * (w.dim() - 1)) for v in (scale, zero))
            code, q = (w.detach() / s).floor() + z, 2**bits - 1
            base.append(s * (code.clamp(0, q) - z))
            slope.append(s * ((code >= 0) & (code < q)))
        start = [init_alpha(w, grid[0]) for w, grid in zip(weights, grids, strict=True)]
        self.base, self.slope, self.alpha = (
            torch.cat([part.flatten() for part in parts]) for parts in (base, slope, start)
        )

    def split(self, flat: Tensor) -> list[Tensor]:
        """A flat vector as tensors of the weights' shapes."""
        return [p.view(s) for p, s in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def soft(self) -> Tensor:
        """The soft weights as one vector, a leaf of the graph."""
        self.sigmoid = self.alpha.sigmoid()
        self.stretched = self.sigmoid.mul(ZETA - GAMMA).add_(GAMMA)
        self.h = self.stretched.clamp(0, 1)
        return torch.addcmul(self.base, self.slope, self.h).requires_grad_()

    def gradient(self, to_soft: Tensor, power: float | None, weight: float) -> Tensor:
        """Gradient of loss + weight sum(1 - |2 h - 1|^power); power None leaves the sum out."""
        grad = to_soft * self.slope
        if power is not None:
            u = self.h.mul(2).sub_(1)
            pull = u.abs().pow_(power - 1).copysign_(u)
            grad.add_(pull, alpha=-2 * weight * power)
        grad = torch.ops.aten.hardtanh_backward(grad, self.stretched, 0, 1)
        return torch.ops.aten.sigmoid_backward(grad, self.sigmoid).mul_(ZETA - GAMMA)

    def hard(self) -> list[Tensor]:
        """The weights with every rounding decided, 1[alpha >= 0] in place of h."""
        return self.split(torch.addcmul(self.base, self.slope, (self.alpha >= 0).to(self.base)))


def flipped(alphas: Sequence[Tensor], weights: Sequence[Tensor], grids: Sequence[QParams]) -> float:
    """Share of the weights whose learned rounding is not the nearest one."""
    pairs = zip(alphas, weights, grids, strict=True)
    different = [(a >= 0) != (init_alpha(w, grid[0]) >= 0) for a, w, grid in pairs]
    return torch.cat([d.flatten() for d in different]).float().mean().item()


class Cache:
    """Images or features [n, c, h, w] or [n, c] kept with channels last; rows are one gather."""

    def __init__(self, x: Tensor):
        self.kept = x.detach().movedim(1, -1).contiguous()

    def rows(self, index: Tensor | None) -> Tensor:
        """The rows of an index (all for None), [b, c, h, w] in channels-last order."""
        kept = self.kept if index is None else self.kept.index_select(0, index)
        return kept.movedim(-1, 1)


def check_unit(
    x: Tensor, y: Tensor, batch_size: int | None, quant_prob: float, x_fp: Tensor | None
) -> None:
    """Raise ValueError for tensors and options that do not fit together."""
    if len(x) != len(y):
        raise ValueError(f"x and y differ in their first dimension: {len(x)} and {len(y)}")
    if batch_size is not None and not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size must be in 1..{len(x)}, the calibration set: {batch_size}")
    check_probability(quant_prob)
    if quant_prob < 1 and x_fp is None:
        raise ValueError(f"quant_prob is {quant_prob}; below 1 it needs x_fp")


def check_probability(quant_prob: float) -> None:
    """Raise ValueError outside of [0, 1]."""
    if not 0 <= quant_prob <= 1:
        raise ValueError(f"quant_prob must be in [0, 1], got {quant_prob}")


def check_losses(losses: Sequence[Tensor]) -> None:
    """Raise FloatingPointError naming the first step (from 1) whose loss is not finite."""
    bad = ~torch.stack(list(losses)).isfinite()
    if bad.any():
        raise FloatingPointError(f"the loss is not finite at step {int(bad.nonzero()[0]) + 1}")


def draw_rows(
    n: int, count: int | None, generator: torch.Generator | None, device: torch.device
) -> Tensor | None:
    """`count` of n rows without repetition, on a device; None for all of them in order."""
    if count is None:
        return None
    return torch.randperm(n, generator=generator)[:count].to(device)


def drop(
    quantized: Tensor, plain: Tensor, quant_prob: float, generator: torch.Generator | None
) -> Tensor:
    """Elements of `quantized` with probability quant_prob, else those of `plain` (QDrop)."""
    # four draws of 15 bits from each 64-bit number, laid out with channels last like the features
    words = torch.empty(-(-plain.numel() // 4), dtype=torch.int64, device=plain.device)
    chance = words.random_(generator=generator).view(torch.int16)[: plain.numel()] & 0x7FFF
    if plain.dim() > 2:
        chance = chance.view(plain.movedim(1, -1).shape).movedim(-1, 1)
    return torch.where(chance.view(plain.shape) < quant_prob * 2**15, quantized, plain)


def mixer(
    quant_prob: float, generator: torch.Generator | None, device: torch.device
) -> Callable[..., Tensor]:
    """(quantized, plain) -> `drop` of them, drawn on a device; at quant_prob 1 just quantized."""
    if quant_prob == 1:
        return lambda quantized, plain=None: quantized
    start = int(torch.randint(2**31, (1,), generator=generator))
    own = torch.Generator(device).manual_seed(start)
    return partial(drop, quant_prob=quant_prob, generator=own)


def mixing(
    scales: Sequence[Tensor], ends: Sequence[tuple[float, float]], mix: Callable[..., Tensor]
) -> list[Quantizer]:
    """A quantizer for each activation (scale (), its `code_ends`) that leaves out elements."""
    return [
        lambda x, scale=scale, own=own: mix(on_grid(x, scale, own), x)
        for scale, own in zip(scales, ends, strict=True)
    ]
