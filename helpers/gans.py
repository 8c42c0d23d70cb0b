"""Networks of image-to-image GANs: residual generators and patch discriminators.

Instance norm has no parameters and no running statistics here, so that training and evaluation
mode compute the same. Convolutions are registered in the order in which they run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)


def _at_least(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _conv3(channels: int, separable: bool) -> list[nn.Module]:
    """A 3x3 convolution of padded maps, whole or as depthwise 3x3, norm, pointwise 1x1."""
    if not separable:
        return [nn.Conv2d(channels, channels, 3)]
    depthwise = nn.Conv2d(channels, channels, 3, groups=channels)
    return [depthwise, Norm(channels), nn.Conv2d(channels, channels, 1)]


class ResidualBlock(nn.Module):
    """x + two reflection-padded 3x3 convolutions (dense or separable) with instance norm."""

    def __init__(self, channels: int, separable: bool):
        super().__init__()
        first, second = (_conv3(channels, separable) for _ in range(2))
        body = [nn.ReflectionPad2d(1), *first, Norm(channels), nn.ReLU()]
        self.body = nn.Sequential(*body, nn.ReflectionPad2d(1), *second, Norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResnetGenerator(nn.Module):
    """The generator of CycleGAN (Zhu et al. 2017), or its mobile form with separable blocks.

    x (n, in_channels, h, w) in [-1, 1], h and w multiples of 4 -> (n, out_channels, h, w) in
    [-1, 1]. Raises ValueError for another size, fewer than 3 blocks or a width below 1.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 16,
        blocks: int = 9,
        separable: bool = True,
    ):
        super().__init__()
        _at_least(width=(width, 1), blocks=(blocks, 3))
        self.width = width
        stem = [nn.ReflectionPad2d(3), nn.Conv2d(in_channels, width, 7), Norm(width), nn.ReLU()]
        for channels in (2 * width, 4 * width):
            down = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
            stem += [down, Norm(channels), nn.ReLU()]
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.ModuleList(ResidualBlock(4 * width, separable) for _ in range(blocks))
        self.tapped = {blocks // 3, 2 * (blocks // 3), blocks}
        head = []
        for channels in (2 * width, width):
            up = nn.ConvTranspose2d(2 * channels, channels, 3, 2, padding=1, output_padding=1)
            head += [up, Norm(channels), nn.ReLU()]
        last = [nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, 7), nn.Tanh()]
        self.head = nn.Sequential(*head, *last)

    def forward(self, x: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Image, and with return_maps the maps (n, 4 width, h/4, w/4) at four depths.

        The depths: after the stem and after blocks // 3, 2 (blocks // 3) and all blocks.
        """
        height, width = x.shape[-2:]
        if height % 4 or width % 4 or min(height, width) < 8:
            raise ValueError(
                f"height and width must be a multiple of 4 and at least 8, got {height} x {width}"
            )
        x = self.stem(x)
        maps = [x]
        for count, block in enumerate(self.blocks, start=1):
            x = block(x)
            if count in self.tapped:
                maps.append(x)
        y = self.head(x)
        return (y, maps) if return_maps else y


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): `layers` stride-2 convolutions, one of stride 1, and a head.

    x (n, in_channels, h, w), both at least 3 * 2^layers. Raises ValueError for a smaller input,
    where a 1x1 map would reach an instance norm, and for a width or layers below 1.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3):
        super().__init__()
        _at_least(width=(width, 1), layers=(layers, 1))
        self.in_channels, self.width, self.layers = in_channels, width, layers
        self.smallest = 3 * 2**layers
        body = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        widths = [width * min(2**k, 8) for k in range(layers + 1)]
        for k in range(1, layers + 1):
            stride = 2 if k < layers else 1
            conv = nn.Conv2d(widths[k - 1], widths[k], 4, stride, padding=1)
            body += [conv, Norm(widths[k]), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*body)
        self.head = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def features(self, x: Tensor) -> Tensor:
        """Output of the last LeakyReLU, (n, width * min(2^layers, 8), h', w')."""
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(
                f"discriminator with layers={self.layers} needs inputs of at least "
                f"{self.smallest} px, got {min(x.shape[-2:])}"
            )
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 1, h'', w''), one for each patch."""
        return self.head(self.features(x))


class Widened(nn.Module):
    """Learned 1x1 convolutions that lift every map (n, channels, h, w) to `wanted` channels.

    Called with these maps and as many wider ones: the sum over the maps of the mean squared
    difference (FitNets, Romero et al. 2015), with pooled=True of the spatial means only.
    """

    def __init__(
        self, maps: int, channels: int, wanted: int, pooled: bool, generator: torch.Generator
    ):
        super().__init__()
        convs = nn.ModuleList(nn.Conv2d(channels, wanted, 1) for _ in range(maps))
        self.convs, self.pooled = init_normal(convs, generator), pooled

    def forward(self, narrow: Sequence[Tensor], wide: Sequence[Tensor]) -> Tensor:
        pairs = [(conv(x), y) for conv, x, y in zip(self.convs, narrow, wide, strict=True)]
        if self.pooled:
            pairs = [(x.mean((2, 3)), y.mean((2, 3))) for x, y in pairs]
        return torch.stack([F.mse_loss(x, y) for x, y in pairs]).sum()


@torch.no_grad()
def init_normal(module: nn.Module, generator: torch.Generator, std: float = 0.02) -> nn.Module:
    """Draw every convolution's weight from N(0, std^2), set its bias to 0; returns the module.

    A batch norm's scale is drawn from N(1, std^2) and its shift set to 0. CPU modules only.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.weight.normal_(0, std, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1, std, generator=generator)
        if getattr(layer, "bias", None) is not None:
            layer.bias.zero_()
    return module


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside, no parameter of the modules asks for a gradient; afterwards all is as before."""
    flags = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
