"""Perceptual losses, and the frozen networks whose inner maps they compare."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.pretrained import efficientnet_lite0

NETWORKS = ("efficientnet_lite0", "vgg16")
VGG_FILE = "vgg16-397923af.pth"
VGG_CUTS = (4, 9, 16, 23)  # the layers of torchvision's vgg16 after relu1_2, 2_2, 3_3, 4_3


class FeatureLevels(nn.Module):
    """A chain of parts; the output of each is a level. x (n, 3, h, w) in [-1, 1] -> 4 maps.

    zero_to_one: the network sees (x + 1) / 2, without mean and standard deviation.
    """

    def __init__(self, parts: list[nn.Module], zero_to_one: bool):
        super().__init__()
        self.parts, self.zero_to_one = nn.ModuleList(parts), zero_to_one
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = (x + 1) / 2 if self.zero_to_one else x
        levels = []
        for part in self.parts:
            x = part(x)
            levels.append(x)
        return levels


def perceptual_network(name: str, weights: str | Path = "") -> FeatureLevels:
    """Four feature levels of a network with ImageNet weights, frozen, in eval mode.

    efficientnet_lite0: stem and first three stages (32, 16, 24, 40 channels); images in [-1, 1]
    are its normal input. vgg16: relu1_2, relu2_2, relu3_3, relu4_3 (64, 128, 256, 512 channels);
    weights: torchvision's file, by default looked for in torch hub's cache.
    Raises ValueError for another name and FileNotFoundError when VGG's weights are not on disk.
    """
    if name not in NETWORKS:
        raise ValueError(f"perceptual network is {name!r}; allowed: {', '.join(NETWORKS)}")
    if name == "efficientnet_lite0":
        network = efficientnet_lite0()
        stem = nn.Sequential(network.conv_stem, network.bn1)  # bn1 holds the activation as well
        return FeatureLevels([stem, *network.blocks[:3]], zero_to_one=False)
    path = Path(weights) if weights else Path(torch.hub.get_dir(), "checkpoints", VGG_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"no VGG-16 weights in {path}; get https://download.pytorch.org/models/{VGG_FILE}"
        )
    from torchvision.models import vgg16

    network = vgg16(weights=None)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    cuts = (0, *VGG_CUTS)
    # in-place ReLUs would overwrite what a level returned
    layers = [nn.ReLU() if isinstance(m, nn.ReLU) else m for m in network.features]
    parts = [nn.Sequential(*layers[a:b]) for a, b in pairwise(cuts)]
    return FeatureLevels(parts, zero_to_one=True)


def gram_matrix(x: Tensor) -> Tensor:
    """Products of the channels of x (n, c, h, w) summed over space, over c h w: (n, c, c)."""
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


def perceptual_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    style_weight: float = 1e4,
    feature_weight: float = 1e1,
    feature_level: int = 1,
) -> Tensor:
    """Style distance over all levels plus feature distance at one level of two feature lists.

    Lists of maps (n, c, h, w). style_weight * sum of mean |gram difference| + feature_weight *
    mean |difference| at feature_level (Johnson et al. 2016 with absolute differences). The
    teacher's side is detached. Raises ValueError for lists of different lengths.
    """
    teacher = [t.detach() for t in teacher_features]
    pairs = zip(student_features, teacher, strict=True)
    style = sum(F.l1_loss(gram_matrix(s), gram_matrix(t)) for s, t in pairs)
    content = F.l1_loss(student_features[feature_level], teacher[feature_level])
    return style_weight * style + feature_weight * content
