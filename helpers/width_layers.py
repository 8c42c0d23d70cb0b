"""Convolutions for networks of several bit-widths: learned clipping ranges, switched weights.

Layers for `helpers.bit_widths.convert`. The input of each has a range for each branch and width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from helpers.bit_widths import WidthConv2d
from helpers.quantization import lsq, lsq_scale, quantize_weight, uniform_quantize


def init_weight_range(weight: Tensor, num_sigma: float = 3.0) -> tuple[Tensor, Tensor]:
    """(-3 sigma, 3 sigma) of each branch of a weight (G, ...): two tensors (G,) without gradient.

    Raises ValueError for a branch without two different values.
    """
    flat = weight.detach().flatten(1)
    if flat.shape[1] < 2 or not bool((flat.std(1) > 0).all()):
        raise ValueError(f"a branch needs 2 different values, got weight {tuple(weight.shape)}")
    return -num_sigma * flat.std(1), num_sigma * flat.std(1)


def init_activation_range(x: Tensor, num_sigma: float = 3.0) -> tuple[Tensor, Tensor]:
    """(minimum, 3 sigma / sqrt(1 - 2/pi)) of the input x of one branch: two tensors ().

    The upper end is three standard deviations of a normal distribution whose positive half has
    the deviation of x. Raises ValueError for an x without two different values.
    """
    if x.numel() < 2 or not bool(x.std() > 0):
        raise ValueError(f"x needs 2 different values or more, got shape {tuple(x.shape)}")
    return x.detach().min(), num_sigma * x.detach().std() / math.sqrt(1 - 2 / math.pi)


def best_range(weight: Tensor, bits: int) -> Tensor:
    """The u () of [-u, u] with the least squared error of u * quantize_weight(weight)."""
    upper = weight.std() * torch.linspace(0.5, 4, 71, device=weight.device)[:, None]
    error = upper * quantize_weight(weight.flatten(), -upper, upper, bits) - weight.flatten()
    return upper[error.square().sum(1).argmin(), 0]


def input_codes(x: Tensor, lower: Tensor, upper: Tensor, bits: int) -> Tensor:
    """x (batch, n * C, height, width) at 2^bits levels of [0, 1], a range (n,) a block."""
    lower, upper = (end.view(-1, 1, 1, 1) for end in (lower, upper))
    return uniform_quantize(x.unflatten(1, (len(lower), -1)), lower, upper, bits).flatten(1, 2)


def weight_codes(weight: Tensor, lower: Tensor, upper: Tensor, bits: int = 2) -> Tensor:
    """weight (n, out, in, height, width) at 2^bits levels of [-1, 1], a range (n,) a branch."""
    return quantize_weight(weight, *(end.view(-1, 1, 1, 1, 1) for end in (lower, upper)), bits)


def check_branches(x: Tensor, weight: Tensor, ranges: Sequence[Tensor], branches: list[int]):
    """Raise ValueError unless a convolution of these branches of a weight (G, ...) is possible."""
    shapes = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}"
    if weight.dim() != 5:
        raise ValueError(f"weight must be (G, out, in, height, width): {shapes}")
    known = set(range(len(weight)))
    if not branches or len(set(branches)) < len(branches) or set(branches) - known:
        raise ValueError(f"branches must be different ids of {known}, got {branches}: {shapes}")
    if x.dim() != 4 or x.shape[1] != len(branches) * weight.shape[2]:
        raise ValueError(f"x needs {len(branches)} * {weight.shape[2]} channels: {shapes}")
    if any(end.shape != weight.shape[:1] for end in ranges):
        found = [tuple(end.shape) for end in ranges]
        raise ValueError(f"every range needs one value a branch, got {found}: {shapes}")


class RangedConv2d(WidthConv2d):
    """A convolution whose input has a learned range for each branch and each width."""

    def start(self, widths: dict) -> None:
        """Ranges (G,) for each width; the first batch sets them."""
        ones = {str(k): torch.ones(len(self.weight)) for k in widths}
        self.act_lower = nn.ParameterDict({key: 0 * one for key, one in ones.items()})
        self.act_upper = nn.ParameterDict(ones)

    def quantize(self, x: Tensor) -> Tensor:
        """x (batch, n * in, height, width) at the levels of the running pass."""
        now, key = self.running, str(self.running.bits)
        lower, upper = (ends[key][now.branches] for ends in (self.act_lower, self.act_upper))
        if self.calibrating:
            blocks = x.unflatten(1, (now.count, -1)).unbind(1)
            found = zip(*map(init_activation_range, blocks), strict=True)
            for end, values in zip((lower, upper), found, strict=True):
                end.data.copy_(torch.stack(values))
        return input_codes(x, lower, upper, now.act_bits)


def floor_codes(v: Tensor, bits: int) -> Tensor:
    """v in [-1, 1] -> the centres of 2^bits equal cells; straight-through, any shape.

    Dropping low bits of a code gives the code of a smaller width (AdaBits, Jin et al. 2020).
    """
    cells = 2**bits
    cell = (cells * (v.detach() + 1) / 2).floor().clamp(0, cells - 1)
    return v + ((2 * cell + 1) / cells - 1 - v).detach()


class AdaBitsConv2d(RangedConv2d):
    """One weight whose low bits are dropped; of the input ranges the upper end is trained."""

    def start(self, widths: dict) -> None:
        """Inputs follow a ReLU: their ranges start at zero and stay there."""
        super().start(widths)
        self.act_lower.requires_grad_(False)

    def prepare(self) -> None:
        """The squashed weight, which all widths share."""
        squashed = self.weight.tanh()
        self.squashed = squashed / squashed.detach().abs().max()

    def codes(self) -> Tensor:
        """The weight at the running width: (1, out, in, height, width)."""
        return floor_codes(self.squashed, self.running.bits)


class AnyPrecisionConv2d(AdaBitsConv2d):
    """One weight in DoReFa's rounding; inputs clipped to [0, 1] (Yu et al. 2021)."""

    def start(self, widths: dict) -> None:
        """No range is trained, none is set."""
        super().start(widths)
        self.act_upper.requires_grad_(False)

    def quantize(self, x: Tensor) -> Tensor:
        """The input in [0, 1] at the running width."""
        return uniform_quantize(x, 0, 1, self.running.act_bits)

    def codes(self) -> Tensor:
        """The weight at the running width: (1, out, in, height, width)."""
        return quantize_weight(self.squashed, -1, 1, self.running.bits)


class SwitchingConv2d(RangedConv2d):
    """Weights at the bits of the width, in one learned range (G,) for all widths."""

    def range_names(self, widths: dict) -> dict[int, str]:
        """{bits: name of its weight range}."""
        return dict.fromkeys(widths, "all")

    def start(self, widths: dict) -> None:
        """Weight ranges, besides those of the inputs."""
        super().start(widths)
        self.name_of, ends = self.range_names(widths), init_weight_range(self.weight)
        lower, upper = (
            {name: end.clone() for name in dict.fromkeys(self.name_of.values())} for end in ends
        )
        self.weight_lower, self.weight_upper = nn.ParameterDict(lower), nn.ParameterDict(upper)

    def codes(self) -> Tensor:
        """The weights at the running width: (n, out, in, height, width)."""
        now, name = self.running, self.name_of[self.running.bits]
        ends = (end[name][now.branches] for end in (self.weight_lower, self.weight_upper))
        return weight_codes(self.weight[now.branches], *ends, now.bits)


class SwitchingRangesConv2d(SwitchingConv2d):
    """Weights at the bits of the width, in a learned range for each width."""

    def range_names(self, widths: dict) -> dict[int, str]:
        """{bits: name of its weight range}."""
        return {k: str(k) for k in widths}


class LSQConv2d(WidthConv2d):
    """Learned step sizes for weights (signed) and inputs (unsigned) of one width (Esser 2020)."""

    def start(self, widths: dict) -> None:
        """The steps (); the first batch sets that of the input."""
        (bits,) = widths
        self.weight_step = nn.Parameter(lsq_scale(self.weight, bits, signed=True))
        self.act_step = nn.Parameter(torch.ones(()))

    def codes(self) -> Tensor:
        """The weight in multiples of its step: (1, out, in, height, width)."""
        return lsq(self.weight, self.weight_step, self.running.bits, signed=True)

    def quantize(self, x: Tensor) -> Tensor:
        """The input in multiples of its step."""
        if self.calibrating:
            self.act_step.data.copy_(lsq_scale(x, self.running.bits, signed=False))
        return lsq(x, self.act_step, self.running.act_bits, signed=False)
