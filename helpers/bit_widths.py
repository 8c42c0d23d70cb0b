"""Networks that run at several bit-widths: switchable norms and convolutions, passes of branches.

A converted network holds G copies ("branches") of every convolution of its body; stem and
classifier stay as they are. Branches lie side by side in the channels of one tensor. What a
convolution does with its weights and its input is the business of the notebooks' subclasses.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from helpers import models

Branches = Sequence[tuple[int, float]]  # (branch id, 1.0, or 0.5 for a half branch)


@dataclass
class Pass:
    """Which part of a network runs: `count` branches from `first` on, with ranges of `bits`.

    half: only the first channels of the one branch. act_bits: levels of the inputs, 2^act_bits.
    """

    bits: int = 0
    first: int = 0
    count: int = 1
    half: bool = False
    act_bits: int = 0

    @property
    def branches(self) -> slice:
        """The branches as a slice: taking neighbours copies nothing."""
        return slice(self.first, self.first + self.count)

    @property
    def key(self) -> str:
        """Name of the norms of this pass."""
        return f"{self.bits}half" if self.half else str(self.bits)

    def tile(self, h: Tensor) -> Tensor:
        """The stem's output (batch, C, height, width), once for each branch, side by side."""
        channels = half(h.shape[1]) if self.half else h.shape[1]
        return h[:, :channels].repeat(1, self.count, 1, 1)

    def become(self, other: "Pass") -> None:
        """Take over all values; every layer of a network shares one Pass."""
        vars(self).update(vars(other))


def passes(bits: int, branches: Branches, act_bits: int | None = None) -> list[Pass]:
    """The passes through the body that a choice of branches needs: whole ones, then a half one.

    Raises ValueError when the whole branches are not neighbours.
    """
    whole = [branch for branch, share in branches if share == 1]
    if whole != list(range(whole[0], whole[0] + len(whole))):
        raise ValueError(f"whole branches must be neighbours in ascending order, got {whole}")
    act_bits = bits if act_bits is None else act_bits
    found = [Pass(bits, whole[0], len(whole), False, act_bits)]
    return found + [Pass(bits, b, 1, True, act_bits) for b, share in branches if share != 1]


def half(channels: int) -> int:
    """Channels of a half branch: with sqrt(1/2) of inputs and outputs it costs half."""
    return round(channels * 0.5**0.5)


class WidthConv2d(nn.Module):
    """G copies of a convolution as one weight (G, out, in / groups, height, width).

    Subclasses say what the convolution sees: `codes` of the weights, `quantize` of the input.
    calibrating: set the ranges of the running pass from the input that comes along.
    """

    def __init__(self, weight: Tensor, conv: nn.Conv2d, running: Pass, is_last: bool):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.stride, self.padding, self.groups = conv.stride, conv.padding, conv.groups
        self.running, self.is_last, self.calibrating = running, is_last, False

    def start(self, widths: dict[int, Branches]) -> None:
        """Add the parameters that the widths need."""

    def prepare(self) -> None:
        """Compute what all widths share; called once a batch."""

    def codes(self) -> Tensor:
        """What the convolution multiplies with: (count, out, in / groups, height, width)."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """The input (batch, count * in, height, width) at the levels of the running pass."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, count * in, height, width) -> (batch, count * out, height', width')."""
        weight, groups = self.codes(), self.groups
        if self.running.half:
            outputs, inputs = weight.shape[1:3]
            weight = weight[:, : outputs if self.is_last else half(outputs)]
            if groups == 1:
                weight = weight[:, :, : half(inputs)]
                x = x[:, : half(inputs)]
            else:
                groups = weight.shape[1]
        x = self.quantize(x)
        options = {"stride": self.stride, "padding": self.padding}
        return F.conv2d(x, weight.flatten(0, 1), groups=len(weight) * groups, **options)


class WidthNorm(nn.Module):
    """A batch norm of its own, statistics and affine, for every width (switchable batch norm)."""

    def __init__(self, norm: nn.Module, running: Pass, widths: dict[int, Branches], is_last: bool):
        super().__init__()
        self.running, self.norms = running, nn.ModuleDict()
        for bits, branches in widths.items():
            for now in passes(bits, branches):
                size = norm.num_features
                size = half(size) if now.half and not is_last else size * now.count
                mine = self.norms[now.key] = nn.BatchNorm2d(size, norm.eps, norm.momentum)
                with torch.no_grad():
                    for ours, theirs in ((mine.weight, norm.weight), (mine.bias, norm.bias)):
                        ours.copy_(theirs.repeat(now.count)[:size])

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, channels of the running pass, height, width), normalised."""
        return self.norms[self.running.key](x)


class BranchBlock(models.BasicBlock):
    """The basic block whose zero-padded shortcut knows that branches lie side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, count * in, height, width) -> (batch, count * channels, height', width')."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        count = self.running.count
        shortcut = x[:, :, :: self.stride, :: self.stride].unflatten(1, (count, -1))
        missing = y.shape[1] // count - shortcut.shape[2]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, 0, missing)).flatten(1, 2))


class FullChannels(nn.Module):
    """In front of the last residual block: a half branch gets its missing channels, zeros."""

    def __init__(self, channels: int, running: Pass):
        super().__init__()
        self.channels, self.running = channels, running

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, channels, height, width); only a half branch changes."""
        if not self.running.half:
            return x
        return F.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))


def convert(
    bodies: Sequence[nn.Module], layer: type[WidthConv2d], running: Pass,
    widths: dict[int, Branches],
) -> nn.Module:  # fmt: skip
    """One body whose convolutions hold those of all `bodies` as branches.

    bodies: networks of one architecture. widths: {bits: branches}. Everything else comes from
    the first body. Raises ValueError for grouped convolutions that are not depthwise, or when a
    width asks for more branches than there are bodies.
    """
    needed = 1 + max(branch for branches in widths.values() for branch, _ in branches)
    if needed > len(bodies):
        raise ValueError(f"{needed} branches are needed, got {len(bodies)}")
    body = copy.deepcopy(bodies[0])
    names = {
        kind: [name for name, m in body.named_modules() if isinstance(m, kind)]
        for kind in (nn.Conv2d, nn.BatchNorm2d)
    }
    for name in names[nn.Conv2d]:
        convs = [b.get_submodule(name) for b in bodies]
        if convs[0].groups not in (1, convs[0].in_channels) or convs[0].bias is not None:
            raise ValueError(f"{name}: only plain and depthwise convolutions without bias convert")
        weight = torch.stack([conv.weight.detach() for conv in convs])
        new = layer(weight, convs[0], running, name == names[nn.Conv2d][-1])
        new.start(widths)
        _replace(body, name, new)
    for name in names[nn.BatchNorm2d]:
        norm = body.get_submodule(name)
        new = WidthNorm(norm, running, widths, name == names[nn.BatchNorm2d][-1])
        has_act = isinstance(norm, BatchNormAct2d)
        _replace(body, name, nn.Sequential(new, norm.act) if has_act else new)
    for block in body.modules():
        if isinstance(block, models.BasicBlock):
            block.__class__, block.running = BranchBlock, running
    if hasattr(body[-1], "__getitem__") and hasattr(body[-1][-1], "downsample"):  # timm's ResNet
        channels = bodies[0][-1][-1].conv1.in_channels
        body[-1][-1] = nn.Sequential(FullChannels(channels, running), body[-1][-1])
    return body


def _replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)


def parts(net: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Stem, body and head of a network of `recipes.network`: together they compute the same.

    Raises ValueError for an architecture that is not known.
    """
    if hasattr(net, "layers"):
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.head)
        return net.stem, net.layers, head
    if hasattr(net, "layer4"):  # timm's ResNets
        stem = nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool)
        body = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)
        return stem, body, nn.Sequential(net.global_pool, net.fc)
    if hasattr(net, "conv_stem") and isinstance(getattr(net, "conv_head", None), nn.Identity):
        stem = nn.Sequential(net.conv_stem, net.bn1)  # timm's MobileNetV1
        return stem, net.blocks, nn.Sequential(net.global_pool, net.classifier)
    raise ValueError(f"no stem, body and head known for {type(net).__name__}")
