"""Networks as chains of steps with batch norm folded, whose parts can run by themselves.

A step is one convolution or linear layer and what surrounds it; a module (a residual block, say) is
a list of steps, and so is any run of modules. Post-training quantization reconstructs such runs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Quantizer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """[global pool ->] layer [-> + shortcut] [-> act] [-> max pool].

    weight: [out, in / groups, k, k] of a convolution or [out, in] of a linear layer.
    same: TensorFlow's "SAME" padding, which depends on the size of the input.
    saves: the step's input becomes the shortcut. on_shortcut: the layer works on the shortcut.
    An activation quantizer follows the step; a step that pools has it after the pooling instead,
    one on the shortcut has none.
    """

    weight: Tensor
    bias: Tensor
    stride: int = 1
    padding: int = 0
    groups: int = 1
    same: bool = False
    act: nn.Module | None = None
    max_pool: nn.Module | None = None
    pools: bool = False
    saves: bool = False
    adds: bool = False
    on_shortcut: bool = False

    def layer(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution or the linear layer alone, with another weight of the same shape."""
        if weight.dim() == 2:
            return F.linear(x, weight, self.bias)
        if self.same:
            from timm.layers import pad_same

            x = pad_same(x, weight.shape[2:], (self.stride, self.stride))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, 1, self.groups)


def advance(
    step: Step, x: Tensor, shortcut: Tensor | None, weight: Tensor, quantizers: Iterator[Quantizer]
) -> tuple[Tensor, Tensor | None]:
    """One step: its output and the shortcut; takes a quantizer unless it is on the shortcut."""
    if step.saves:
        shortcut = x
    if step.on_shortcut:
        return x, step.layer(shortcut, weight)
    if step.pools:
        return step.layer(next(quantizers)(x.mean((2, 3))), weight), shortcut
    x = step.layer(x, weight)
    x = x + shortcut if step.adds else x
    x = step.act(x) if step.act else x
    return next(quantizers)(step.max_pool(x) if step.max_pool else x), shortcut


def run(steps: Sequence[Step], x: Tensor, weights, quantizers: Iterable[Quantizer]) -> Tensor:
    """The steps with other weights; one quantizer for each step that is not on a shortcut."""
    shortcut, rest = None, iter(quantizers)
    for step, weight in zip(steps, weights, strict=True):
        x, shortcut = advance(step, x, shortcut, weight, rest)
    return x


def plain(steps: Sequence[Step], x: Tensor) -> Tensor:
    """The steps at full precision."""
    return run(steps, x, [s.weight for s in steps], repeat(lambda x: x))


def to(modules: list[list[Step]], device: torch.device) -> list[list[Step]]:
    """The modules with their weights and biases on a device."""
    return [
        [replace(s, weight=s.weight.to(device), bias=s.bias.to(device)) for s in steps]
        for steps in modules
    ]


def costs(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """(number of weights, stride) of every layer."""
    return [(step.weight.numel(), step.stride) for step in steps]


def signature(steps: Sequence[Step]) -> list[tuple]:
    """What two modules share when they have the same architecture."""
    return [
        (tuple(s.weight.shape), s.stride, s.groups, s.saves, s.adds, s.on_shortcut, s.pools)
        for s in steps
    ]


# -- from networks to chains ---------------------------------------------------------------------


def _act(act: nn.Module | None) -> nn.Module | None:
    """A copy of an activation that leaves its input alone; None for the identity."""
    return None if act is None or isinstance(act, nn.Identity) else type(act)()


def _folded(conv: nn.Conv2d, norm: nn.Module, act: nn.Module | None = None, **place) -> Step:
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
        norm.bias,
    )  # fmt: skip
    same = type(conv).__name__ == "Conv2dSame"
    act = _act(getattr(norm, "act", None) if act is None else act)
    return Step(
        weight.detach(), bias.detach(), conv.stride[0], 0 if same else conv.padding[0],
        conv.groups, same, act, **place,
    )  # fmt: skip


def _linear(layer: nn.Linear) -> Step:
    return Step(layer.weight.detach(), layer.bias.detach(), pools=True)


def _residual(pairs: list[tuple], skip: bool) -> list[Step]:
    steps = [_folded(*pair) for pair in pairs]
    if skip:
        steps[0] = replace(steps[0], saves=True)
        steps[-1] = replace(steps[-1], adds=True)
    return steps


def _inverted(block: nn.Module) -> list[Step]:
    """timm's InvertedResidual, or its DepthwiseSeparableConv without expansion."""
    if not isinstance(block.se, nn.Identity):
        raise ValueError("squeeze-and-excitation blocks cannot be read as a chain of steps")
    names = (
        (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
        if hasattr(block, "conv_pwl")
        else (("conv_dw", "bn1"), ("conv_pw", "bn2"))
    )
    return _residual([tuple(getattr(block, n) for n in pair) for pair in names], block.has_skip)


def _efficientnet(network: nn.Module) -> list[list[Step]]:
    stem = _folded(network.conv_stem, network.bn1)
    blocks = [_inverted(block) for stage in network.blocks for block in stage]
    head = [_folded(network.conv_head, network.bn2), _linear(network.classifier)]
    return [[stem, *blocks[0]], *blocks[1:], head]


def _basic(block: nn.Module) -> list[Step]:
    """timm's BasicBlock and Bottleneck of a ResNet: activations follow the norms."""
    count = 3 if hasattr(block, "conv3") else 2
    steps = [
        _folded(*(getattr(block, f"{part}{i}") for part in ("conv", "bn", "act")))
        for i in range(1, count + 1)
    ]
    return _closed(steps, tuple(block.downsample) if block.downsample is not None else None)


def _closed(steps: list[Step], downsample: tuple | None) -> list[Step]:
    steps[0] = replace(steps[0], saves=True)
    steps[-1] = replace(steps[-1], adds=True)
    if downsample:
        steps.insert(-1, replace(_folded(*downsample), on_shortcut=True))
    return steps


def _resnet(network: nn.Module) -> list[list[Step]]:
    stem = replace(_folded(network.conv1, network.bn1, network.act1), max_pool=network.maxpool)
    layers = (network.layer1, network.layer2, network.layer3, network.layer4)
    return [[stem], *(_basic(block) for layer in layers for block in layer), [_linear(network.fc)]]


def _regnet(network: nn.Module) -> list[list[Step]]:
    def bottleneck(block):
        if not isinstance(block.se, nn.Identity):
            raise ValueError("squeeze-and-excitation blocks cannot be read as a chain of steps")
        parts = (block.conv1, block.conv2, block.conv3)
        steps = [_folded(part.conv, part.bn) for part in parts]
        steps[-1] = replace(steps[-1], act=_act(block.act3))
        skip = block.downsample
        conv = None if skip is None or isinstance(skip, nn.Identity) else (skip.conv, skip.bn)
        return _closed(steps, conv)

    stem = _folded(network.stem.conv, network.stem.bn)
    stages = (network.s1, network.s2, network.s3, network.s4)
    blocks = [bottleneck(block) for stage in stages for block in stage.children()]
    return [[stem], *blocks, [_linear(network.head.fc)]]


READERS = {"EfficientNet": _efficientnet, "ResNet": _resnet, "RegNet": _regnet}


@torch.no_grad()
def read_modules(network: nn.Module, example: Tensor, tolerance: float = 1e-3) -> list[list[Step]]:
    """A timm MobileNetV2, EfficientNet-Lite, ResNet or RegNetX in eval mode as a list of modules.

    Batch norm is folded; the network stays as it is. MobileNets: the first module is the stem and
    the first block, the last one the last convolution and the classifier.
    example: images [n, 3, h, w] on which the chain must give the network's logits; ValueError with
    the difference when it does not, TypeError for another family.
    """
    family = type(network).__name__
    if family not in READERS:
        raise TypeError(f"cannot read a {family} as a chain; can read: {', '.join(READERS)}")
    modules = READERS[family](network)
    found = plain([step for steps in modules for step in steps], example)
    difference = (found - network(example)).abs().max().item()
    if not difference <= tolerance:
        raise ValueError(f"the chain's logits differ from the network's by {difference:.3g}")
    return modules


def mini_mobilenet(width: float = 1.0, num_classes: int = 10) -> nn.Module:
    """A MobileNetV2 for images [n, 3, 32, 32]: 12 blocks, 0.3 M parameters at width 1 (timm's)."""
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.efficientnet import EfficientNet

    stages = [["ds_r1_k3_s1_c16"]] + [
        [f"ir_r{repeats}_k3_s{stride}_e4_c{channels}"]
        for channels, repeats, stride in ((24, 3, 2), (40, 3, 2), (64, 3, 1), (96, 2, 2))
    ]
    return EfficientNet(
        decode_arch_def(stages),
        num_classes,
        num_features=round(256 * width),
        stem_size=16,
        act_layer=nn.ReLU6,
        round_chs_fn=partial(round_channels, multiplier=width),
    )
