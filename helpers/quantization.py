"""Uniform quantizers: ranges, straight-through rounding, learned steps, adaptive rounding.

Everything here simulates: a quantized tensor holds the real numbers that its integer codes stand
for. Codes of an affine quantizer with `bits` are 0..q with q = 2^bits - 1.
"""

import torch
from torch import Tensor
from torch.autograd import Function

MIN_SCALE = 1.19e-7  # float32's machine epsilon: the step of a tensor that is zero everywhere
ZETA, GAMMA = 1.1, -0.1  # how far AdaRound's sigmoid is stretched


def check_bits(bits: int, low: int = 1, high: int = 16) -> None:
    """Raise ValueError unless bits is an integer (not a bool) in low..high."""
    if not isinstance(bits, int) or isinstance(bits, bool) or not low <= bits <= high:
        raise ValueError(f"bits must be an integer in {low}..{high}, got {bits!r}")


def check_floating(name: str, x: Tensor) -> None:
    """Raise TypeError unless x is a floating-point tensor."""
    if not x.is_floating_point():
        raise TypeError(f"{name}: expects a floating-point tensor, got {x.dtype}")


def check_finite(name: str, x: Tensor) -> None:
    """Raise ValueError when x is empty, not floating point, or holds NaN or infinity."""
    if x.numel() == 0 or not x.is_floating_point() or not torch.isfinite(x).all():
        what = "is empty" if x.numel() == 0 else "holds integers, NaN or infinity"
        raise ValueError(f"{name} {what} (shape {tuple(x.shape)}, {x.dtype})")


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged (straight-through estimator)."""
    return x + (x.round() - x).detach()


def _empty_range(lower, upper) -> bool:
    # a tensor on a GPU is not looked at: the training step would have to wait for it
    known = [v for v in (lower, upper) if not isinstance(v, Tensor) or v.device.type == "cpu"]
    return len(known) == 2 and bool(torch.as_tensor(upper <= lower).any())


class _UniformQuantize(Function):
    """One read of x and one write, where autograd's own chain would keep five tensors."""

    @staticmethod
    def forward(ctx, x, lower, upper, levels):
        t = (x - lower) / (upper - lower)
        ctx.save_for_backward(t, lower, upper)
        return t.clamp(0, 1).mul_(levels).round_().div_(levels)

    @staticmethod
    def backward(ctx, grad):
        t, lower, upper = ctx.saved_tensors
        passed = grad * ((t >= 0) & (t <= 1)) / (upper - lower)
        to_lower = to_upper = None
        if ctx.needs_input_grad[1]:
            to_lower = (passed * (t - 1)).sum_to_size(lower.shape)
        if ctx.needs_input_grad[2]:
            to_upper = (-passed * t).sum_to_size(upper.shape)
        return passed if ctx.needs_input_grad[0] else None, to_lower, to_upper, None


def uniform_quantize(x: Tensor, lower, upper, bits: int) -> Tensor:
    """round(t q)/q in [0, 1] with q = 2^bits - 1 and t = clamp((x - lower)/(upper - lower), 0, 1).

    x: any shape; lower, upper: numbers or tensors that broadcast to x. The rounding is
    straight-through; the gradient reaches x, lower and upper inside the range only.
    Raises TypeError for integers, ValueError for wrong bits or an empty range.
    """
    check_bits(bits)
    check_floating("uniform_quantize", x)
    if _empty_range(lower, upper):
        raise ValueError(f"empty clipping range: lower {lower} is not below upper {upper}")
    ends = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (lower, upper))
    return _UniformQuantize.apply(x, *ends, 2**bits - 1)


def quantize_weight(weight: Tensor, lower, upper, bits: int = 2) -> Tensor:
    """Weights at 2^bits levels of [-1, 1]: 2 uniform_quantize - 1; the same shape."""
    return 2 * uniform_quantize(weight, lower, upper, bits) - 1


def affine_qparams(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and integer-valued zero point of ranges [low, high], extended so as to hold 0.

    Zero is a code exactly. The scale is at least MIN_SCALE, the zero point lies in 0..q.
    """
    check_bits(bits)
    low, high, q = low.clamp(max=0), high.clamp(min=0), 2**bits - 1
    scale = ((high - low) / q).clamp(min=MIN_SCALE)
    return scale, (-(low / scale).round()).clamp(0, q)


def _rows(x: Tensor, axis: int | None) -> Tensor:
    check_finite("x", x)
    return x.detach().reshape(1, -1) if axis is None else x.detach().movedim(axis, 0).flatten(1)


def minmax_qparams(x: Tensor, bits: int, *, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the full range of x: shape () or, per index of `axis`, (C,)."""
    rows = _rows(x, axis)
    scale, zero_point = affine_qparams(*rows.aminmax(dim=1), bits)
    return (scale, zero_point) if axis is not None else (scale[0], zero_point[0])


def mse_qparams(
    x: Tensor, bits: int, *, axis: int | None = None, p: float = 2.4, steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the shrunk range with the least mean |x_q - x|^p.

    Candidates are (1 - 0.01 i) [min, max] for i < steps (80 with an axis, else 95); of equal
    scores the widest range wins. Shapes () or, with axis, (C,). (BRECQ, Li et al. 2021, code.)
    Raises ValueError for bits outside of 2..8, p <= 0, steps < 1, or x empty or not finite.
    """
    check_bits(bits, 2, 8)
    steps = (95 if axis is None else 80) if steps is None else steps
    if p <= 0 or steps < 1:
        raise ValueError(f"need p > 0 and steps >= 1, got p={p}, steps={steps}")
    rows = _rows(x, axis)
    low, high = rows.aminmax(dim=1)
    best = torch.full_like(low, torch.inf)
    scale, zero_point = affine_qparams(low, high, bits)
    for i in range(steps):  # a candidate at a time: all at once would need 80 copies of x
        s, z = affine_qparams((1 - 0.01 * i) * low, (1 - 0.01 * i) * high, bits)
        error = fake_quantize(rows, s, z, bits, axis=0).sub_(rows).abs_().pow_(p).mean(1)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero_point = torch.where(better, s, scale), torch.where(better, z, zero_point)
    return (scale, zero_point) if axis is not None else (scale[0], zero_point[0])


class _FakeQuantize(Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, q):
        v = x / scale
        code = v.round().add_(zero_point)
        kept = code.clamp(0, q).sub_(zero_point)
        ctx.save_for_backward(v, kept, (code >= 0) & (code <= q), scale)
        return kept * scale

    @staticmethod
    def backward(ctx, grad):
        v, kept, inside, scale = ctx.saved_tensors
        to_x = grad * inside if ctx.needs_input_grad[0] else None
        to_scale = None
        if ctx.needs_input_grad[1]:  # round(v) - v inside, the end of the range outside
            to_scale = (grad * (kept - v * inside)).sum_to_size(scale.shape)
        return to_x, to_scale, None, None


def _along(values: Tensor, x: Tensor, axis: int | None, name: str) -> Tensor:
    if axis is None:
        if values.numel() != 1:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; without axis it is one value"
            )
        return values.reshape(())
    if values.shape != (x.shape[axis],):
        shapes = f"{tuple(values.shape)}, x {tuple(x.shape)}"
        raise ValueError(f"{name} has shape {shapes}; it needs one value per index of axis {axis}")
    return values.view([-1 if d == axis % x.dim() else 1 for d in range(x.dim())])


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, *, axis: int | None = None
) -> Tensor:
    """scale (clip(round(x/scale) + zero_point, 0, q) - zero_point), the shape of x.

    scale, zero_point: one value, or (C,) for dimension `axis`; zero_point is integer-valued and
    need not lie in 0..q. Gradients: 1 inside and 0 outside for x; for scale round(v) - v inside and
    the code's distance from the zero point outside, v = x/scale (LSQ, Esser et al. 2020, eq. 3).
    """
    check_bits(bits)
    check_floating("fake_quantize", x)
    scale, zero_point = _along(scale, x, axis, "scale"), _along(zero_point, x, axis, "zero_point")
    return _FakeQuantize.apply(x, scale, zero_point, 2**bits - 1)


def _lsq_levels(bits: int, signed: bool) -> tuple[int, int]:
    check_bits(bits, 1 + signed, 16)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def lsq_scale(x: Tensor, bits: int, *, signed: bool) -> Tensor:
    """The first step size 2 mean|x| / sqrt(q_max) of LSQ (Esser et al. 2020, section 2.1), ()."""
    check_finite("x", x)
    highest = _lsq_levels(bits, signed)[1]
    return (2 * x.detach().abs().mean() / highest**0.5).clamp(min=MIN_SCALE)


def lsq(x: Tensor, scale: Tensor, bits: int, *, signed: bool) -> Tensor:
    """Quantize with a learned step: codes -2^(bits-1)..2^(bits-1)-1 (signed) or 0..2^bits-1.

    The gradient of the step () is scaled by 1/sqrt(numel q_max) (LSQ, Esser et al. 2020, 2.2).
    """
    lowest, highest = _lsq_levels(bits, signed)
    factor = (x.numel() * highest) ** -0.5
    slow = (
        scale * factor + (scale * (1 - factor)).detach()
    )  # the value of scale, a part of its grad
    return fake_quantize(x, slow, torch.full_like(scale, -lowest).detach(), bits)


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """h(alpha) = clip(1.2 sigmoid(alpha) - 0.1, 0, 1), what AdaRound adds to the rounded-down code.

    (Nagel et al. 2020, eq. 23.)
    """
    return ((ZETA - GAMMA) * alpha.sigmoid() + GAMMA).clamp(0, 1)


def _check_scale(w: Tensor, scale: Tensor) -> None:
    if scale.shape != w.shape[:1] or not bool((scale > 0).all()):
        shapes = f"shape {tuple(scale.shape)} for w {tuple(w.shape)}"
        raise ValueError(
            f"scale needs one positive value per output channel, got {shapes}: {scale}"
        )


def init_alpha(w: Tensor, scale: Tensor) -> Tensor:
    """The alpha, shape of w, at which h(alpha) is the fraction w/s - floor(w/s); scale (C,)."""
    _check_scale(w, scale)
    v = w.detach() / _along(scale, w, 0, "scale")
    return -torch.log((ZETA - GAMMA) / (v - v.floor() - GAMMA) - 1)


def adaround_weight(
    w: Tensor, scale: Tensor, zero_point: Tensor, alpha: Tensor, bits: int, *, hard: bool = False
) -> Tensor:
    """Weights with learned rounding: s (clip(floor(w/s) + h(alpha) + z, 0, q) - z), shape of w.

    scale, zero_point: (C,); alpha: shape of w; hard: 1[alpha >= 0] in place of h. Differentiable
    in alpha only. (AdaRound, Nagel et al. 2020, eq. 22.) Raises ValueError for wrong shapes.
    """
    check_bits(bits, 2, 8)
    _check_scale(w, scale)
    if alpha.shape != w.shape:
        raise ValueError(f"alpha has shape {tuple(alpha.shape)}, w {tuple(w.shape)}; must agree")
    s, z = (_along(v.detach(), w, 0, "zero_point") for v in (scale, zero_point))
    up = (alpha >= 0).to(w.dtype) if hard else rectified_sigmoid(alpha)
    return s * (((w.detach() / s).floor() + up + z).clamp(0, 2**bits - 1) - z)


def bit_operations(macs: int, weight_bits: int, act_bits: int) -> int:
    """What `macs` multiply-adds of weight_bits x act_bits cost: their product."""
    check_bits(weight_bits, 1, 64)
    check_bits(act_bits, 1, 64)
    if not isinstance(macs, int) or isinstance(macs, bool) or macs < 0:
        raise ValueError(f"macs must be a whole number >= 0, got {macs!r}")
    return macs * weight_bits * act_bits
