"""Small shared backbones, and committed checkpoints that are verified before they are loaded."""

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from helpers import ROOT
from helpers.files import sha256, write_atomic

DATA = ROOT / "data"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut without weights (He et al. 2016, A)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride, self.extra = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, 0, self.extra)))


class ResNet(nn.Module):
    """CIFAR ResNet: `stem`, three stages of basic blocks in `layers`, and `head`."""

    def __init__(self, depth: int, width: int, num_classes: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        channels = [width] + [width * 2**stage for stage in range(3) for _ in range(depth // 6)]
        self.layers = nn.Sequential(
            *(BasicBlock(a, b, 1 + (a != b)) for a, b in pairwise(channels))
        )
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


def resnet(depth: int = 20, width: int = 16, num_classes: int = 10) -> ResNet:
    """The ResNet of He et al. 2016, section 4.2, for images [n, 3, 32, 32]; depth is 6 k + 2.

    Raises ValueError for another depth.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth is {depth}; allowed: 8, 14, 20, 26, ...")
    return ResNet(depth, width, num_classes)


def vit(
    img_size: int = 32,
    patch_size: int = 4,
    embed_dim: int = 64,
    depth: int = 6,
    num_heads: int = 4,
    num_classes: int = 10,
    **options,
) -> nn.Module:
    """timm's VisionTransformer (class token, learned positions) at small size.

    `options` go to timm, for instance `patch_drop_rate=0.25`.
    """
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_classes=num_classes,
        **options,
    )


def _manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _save(name: str, model: nn.Module, figures: dict, folder: Path) -> None:
    """Write the weights, then the manifest entry that vouches for them."""
    content = save({key: value.cpu().contiguous() for key, value in model.state_dict().items()})
    path = folder / "checkpoints" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {
        "file": f"checkpoints/{path.name}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        **figures,
    }
    write_atomic(path, content)
    manifest = _manifest(folder) | {name: entry}
    text = json.dumps(dict(sorted(manifest.items())), indent=2) + "\n"
    write_atomic(folder / "manifest.json", text.encode())


def _verified(name: str, folder: Path) -> Path:
    """The path of a checkpoint whose hash is the one in the manifest."""
    path = folder / "checkpoints" / f"{name}.safetensors"
    train = f"reproduce {name.split('_')[0]} -p retrain=true"
    entry = _manifest(folder).get(name)
    if entry is None or not path.is_file():
        missing = f"{path} is missing" if entry else f"{folder / 'manifest.json'} has no {name!r}"
        raise FileNotFoundError(f"{missing}; `{train}` trains and stores it")
    found = sha256(path)
    if found != entry["sha256"]:
        raise ValueError(
            f"{path} is corrupted: sha256 is {found}, data/manifest.json says {entry['sha256']}; "
            f"`git checkout -- {path} data/manifest.json` restores it, `{train}` makes a new one"
        )
    return path


def checkpoint(
    name: str,
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module], dict] | None = None,
    retrain: bool = False,
    folder: Path = DATA,
) -> nn.Module:
    """The model of `build()` with the committed weights `name`, on the CPU, in eval mode.

    With `retrain`, `train(model)` trains the new model and returns what the manifest should say
    about it (recipe, figures, licence of the data); both files are replaced only when it succeeds.
    A checkpoint is named after its notebook: `<notebook>_<what>`.
    Raises FileNotFoundError for a missing one and ValueError for one with a wrong hash.
    """
    model = build()
    if retrain:
        if train is None:
            raise ValueError(f"retrain is True, and {name!r} has no train function")
        figures = train(model)
        _save(name, model, figures, folder)
    else:
        model.load_state_dict(load_file(_verified(name, folder)))
    return model.cpu().eval()


def parameters_hash(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers: equal if and only if no bit changed."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
