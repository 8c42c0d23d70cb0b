"""Super-resolution networks: EDSR, RDN and SRResNet, with the names of their published weights.

Images are float tensors 0..255, (n, 3, h, w) -> (n, 3, scale h, scale w), not clamped. Every
network tells in `quantized_layers()` which convolutions lie inside its residual body: these are
what post-training quantization of super-resolution treats, the rest stays in full precision.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K's training images, R, G, B in 0..1
RDN_SIZES = {"A": (20, 6, 32), "B": (16, 8, 64)}  # dense blocks, convolutions in each, growth


def _check_scale(scale: int) -> None:
    if scale not in (2, 3, 4):
        raise ValueError(f"scale must be 2, 3 or 4, got {scale!r}")


def conv(inputs: int, outputs: int, size: int = 3, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias)


def upsampler(scale: int, channels: int, inputs: int = 0) -> list[nn.Module]:
    """Convolutions and pixel shuffles that enlarge by 2, 3 or 4 (twice 2)."""
    _check_scale(scale)
    steps = [3] if scale == 3 else [2] * (scale // 2)
    modules, width = [], inputs or channels
    for step in steps:
        modules += [conv(width, step**2 * channels), nn.PixelShuffle(step)]
        width = channels
    return modules


class MeanShift(nn.Conv2d):
    """Add sign * value_range * MEAN to every pixel; a frozen 1x1 convolution, as published."""

    def __init__(self, n_colors: int, value_range: float, sign: int):
        super().__init__(n_colors, n_colors, 1)
        mean = torch.tensor(MEAN) if n_colors == 3 else torch.full((n_colors,), sum(MEAN) / 3)
        self.weight.data = torch.eye(n_colors)[:, :, None, None]
        self.bias.data = sign * value_range * mean
        self.requires_grad_(False)


class ResidualBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x)))."""

    def __init__(self, channels: int, res_scale: float):
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) * self.res_scale


class EDSR(nn.Module):
    """Enhanced deep residual network (Lim et al. 2017): no batch norm, one long skip.

    Keys of the state dict are those of the official weights. Raises ValueError for another scale.
    """

    def __init__(
        self,
        scale: int = 2,
        n_resblocks: int = 16,
        n_feats: int = 64,
        n_colors: int = 3,
        rgb_range: float = 255.0,
        res_scale: float = 1.0,
    ):
        _check_scale(scale)
        super().__init__()
        self.configuration = f"EDSR x{scale}, {n_resblocks} blocks of {n_feats} channels"
        self.sub_mean = MeanShift(n_colors, rgb_range, -1)
        self.add_mean = MeanShift(n_colors, rgb_range, 1)
        self.head = nn.Sequential(conv(n_colors, n_feats))
        blocks = [ResidualBlock(n_feats, res_scale) for _ in range(n_resblocks)]
        self.body = nn.Sequential(*blocks, conv(n_feats, n_feats))
        self.tail = nn.Sequential(
            nn.Sequential(*upsampler(scale, n_feats)), conv(n_feats, n_colors)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(features) + features))

    def quantized_layers(self) -> dict[str, bool]:
        """{name: does its input come out of a ReLU} of the convolutions inside the blocks."""
        blocks = range(len(self.body) - 1)
        return {f"body.{i}.body.{j}": j == 2 for i in blocks for j in (0, 2)}


class _DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.conv = nn.Sequential(conv(inputs, growth), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(x)], 1)


class _DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int, layers: int):
        super().__init__()
        self.convs = nn.Sequential(
            *(_DenseLayer(channels + i * growth, growth) for i in range(layers))
        )
        self.LFF = conv(channels + layers * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.LFF(self.convs(x)) + x


class RDN(nn.Module):
    """Residual dense network (Zhang et al. 2018), configuration "A" or "B" of 64 channels."""

    def __init__(self, scale: int = 2, size: str = "B", channels: int = 64):
        _check_scale(scale)
        super().__init__()
        blocks, layers, growth = RDN_SIZES[size]
        self.configuration = f"RDN-{size} x{scale}, {channels} channels"
        self.SFENet1, self.SFENet2 = conv(3, channels), conv(channels, channels)
        self.RDBs = nn.ModuleList(_DenseBlock(channels, growth, layers) for _ in range(blocks))
        self.GFF = nn.Sequential(conv(blocks * channels, channels, 1), conv(channels, channels))
        self.UPNet = nn.Sequential(*upsampler(scale, growth, channels), conv(growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.SFENet1(x)
        x, outputs = self.SFENet2(shallow), []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        return self.UPNet(self.GFF(torch.cat(outputs, 1)) + shallow)

    def quantized_layers(self) -> dict[str, bool]:
        """All convolutions of the dense blocks and the global fusion; their inputs are mixed."""
        inside = ("RDBs.", "GFF.")
        return {n: False for n, m in _convolutions(self).items() if n.startswith(inside)}


class _NormBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.in1 = conv(channels, channels, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.PReLU()
        self.conv2, self.in2 = conv(channels, channels, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.in2(self.conv2(self.relu(self.in1(self.conv1(x)))))


class SRResNet(nn.Module):
    """SRResNet (Ledig et al. 2017): blocks with batch norm and PReLU, 9x9 first and last."""

    def __init__(self, scale: int = 2, n_resblocks: int = 16, channels: int = 64):
        super().__init__()
        self.configuration = f"SRResNet x{scale}, {n_resblocks} blocks of {channels} channels"
        self.conv_input, self.relu = conv(3, channels, 9, bias=False), nn.PReLU()
        self.residual = nn.Sequential(*(_NormBlock(channels) for _ in range(n_resblocks)))
        self.conv_mid, self.bn_mid = conv(channels, channels, bias=False), nn.BatchNorm2d(channels)
        steps = []
        for module in upsampler(scale, channels):
            if isinstance(module, nn.Conv2d):
                module.register_parameter("bias", None)
            steps += [module] + [nn.PReLU()] * isinstance(module, nn.PixelShuffle)
        self.upscale = nn.Sequential(*steps)
        self.conv_output = conv(channels, 3, 9, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.relu(self.conv_input(x))
        deep = self.bn_mid(self.conv_mid(self.residual(features)))
        return self.conv_output(self.upscale(deep + features))

    def quantized_layers(self) -> dict[str, bool]:
        """The convolutions of the blocks; a PReLU's output may be negative."""
        return {n: False for n in _convolutions(self) if n.startswith("residual.")}


def _convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}


def sr_network(kind: str, scale: int, n_resblocks: int, n_feats: int) -> nn.Module:
    """A new "edsr", "rdn" (its configuration B) or "srresnet"; sizes count where they can."""
    if kind == "rdn":
        return RDN(scale)
    if kind not in ("edsr", "srresnet"):
        raise ValueError(f"network must be edsr, rdn or srresnet, got {kind!r}")
    return (EDSR if kind == "edsr" else SRResNet)(scale, n_resblocks, n_feats)


def load_strictly(network: nn.Module, path: str | Path) -> nn.Module:
    """Load all weights of a .safetensors or torch file (or its "state_dict"), no key spare.

    Raises FileNotFoundError, or RuntimeError naming the file and the network it does not fit.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {path}; it must hold a {network.configuration}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state.get("state_dict", state))
    except RuntimeError as error:
        raise RuntimeError(f"{path} does not hold a {network.configuration}: {error}") from None
    return network
