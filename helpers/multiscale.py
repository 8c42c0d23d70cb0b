"""A multi-scale image network whose 3x3 convolutions are told a width (after Sun et al. 2018)."""

import math
from collections.abc import Sequence
from itertools import chain, pairwise

from torch import Tensor, nn

from helpers import patches


class MultiScale(nn.Module):
    """DMCNN's architecture, for images (B, 3, H, W) with sides that 2^(scales - 1) divides.

    Scale i = 1, 2, ... halves the resolution i - 1 times. Its encoder is two convolutions, of
    which the first has stride 2 from scale 2 on; its body `body_depth` ones; its way up i - 1
    transposed convolutions and a last one to three channels. The branches are summed.

    Source: Sun, Yu, Wang, "Moire photo restoration using multiresolution convolutional neural
    networks", TIP 2018; parameter names as in the checkpoints of github.com/zyxxmu/DDA:
    `s{i}1` encoder, `s{i}3` body, `s{i}2` way up.

    channels: of each scale. residual: images + sum of branches instead of the sigmoid of the sum.
    Subclasses set `conv`, a class with conv(in_channels, out_channels, stride, slim_output) and
    forward(x, width). The last convolution of a body is the one that is not slim.
    """

    conv: type[nn.Module]

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 64, 64, 64),
        body_depth: int = 5,
        residual: bool = False,
    ):
        super().__init__()
        self.scales, self.residual, conv = len(channels), residual, self.conv
        for i, c in enumerate(channels, start=1):
            before = 3 if i == 1 else channels[i - 2]
            middle = c if i == 1 else before
            encoder = conv(before, middle, min(i, 2)), nn.ReLU(), conv(middle, c)
            slim = [j < body_depth for j in range(1, body_depth + 1)]
            body = chain.from_iterable((conv(c, c, slim_output=s), nn.ReLU()) for s in slim)
            setattr(self, f"s{i}1", nn.Sequential(*encoder))
            setattr(self, f"s{i}2", _way_up(i, c, channels[0]))
            setattr(self, f"s{i}3", nn.Sequential(*body))

    def forward(self, images: Tensor, width: float = 1.0) -> Tensor:
        """Restored images (B, 3, H, W), all slim convolutions at `width`."""
        patches.check_images(images)
        patches.check_width(width)
        patches.check_divides(2 ** (self.scales - 1), images.shape[2:])
        x, total = images, 0.0
        for i in range(1, self.scales + 1):
            x = self._run(getattr(self, f"s{i}1"), x, width)
            y = self._run(getattr(self, f"s{i}3"), x, width)
            total = total + getattr(self, f"s{i}2")(y)
        return images + total if self.residual else total.sigmoid()

    def start_training(self) -> None:
        """He initialization; with `residual` the last convolutions are 0, so that output = input.

        torch's default lets the signal die on the way through a deep stack without norms.
        """
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                # each output value of a transposed 4x4 convolution with stride 2 sums 2x2 inputs
                taps = 4 if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0, 0].numel()
                nn.init.normal_(layer.weight, std=math.sqrt(2 / (taps * layer.in_channels)))
                nn.init.zeros_(layer.bias)
        if self.residual:
            for i in range(1, self.scales + 1):
                nn.init.zeros_(getattr(self, f"s{i}2")[-1].weight)

    def _run(self, layers: nn.Sequential, x: Tensor, width: float) -> Tensor:
        for layer in layers:
            x = layer(x, width) if isinstance(layer, self.conv) else layer(x)
        return x


def _way_up(scale: int, channels: int, first: int) -> nn.Sequential:
    sizes = [channels, first][:scale]
    if scale > 2:
        sizes = [channels, channels, *[first] * (scale - 2)]
    grow = ((nn.ConvTranspose2d(*pair, 4, 2, 1), nn.ReLU()) for pair in pairwise(sizes))
    return nn.Sequential(*chain.from_iterable(grow), nn.Conv2d(first, 3, 3, padding=1))
