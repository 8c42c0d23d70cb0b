"""Training image classifiers from a record of parameters: network, data, optimizer, schedule.

For notebooks that train networks at several scales; only the record's values differ between them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import timm
import torch
from timm.data import Mixup, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from helpers.data import cifar10, image_folder, mnist
from helpers.models import resnet
from helpers.session import Session
from helpers.training import crop_flip, fit, minibatches, scores

MEMORY = {"digits": lambda root, split: mnist(split), "cifar10": cifar10}
NORMAL = {
    "digits": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
}
# DeiT's own "-mstd0.5" can reach magnitude 10, where timm asks Pillow to posterize to 0 bits
DEIT = {"auto_augment": "rand-m9-inc1", "re_prob": 0.25}


@dataclass(frozen=True)
class Recipe:
    """What a training run depends on besides its seed.

    dataset: digits, cifar10 or imagenet. model: "small" or "tiny" (digits), "resnet" (the CIFAR
    ResNet of `depth` and `width`) or a timm model. optimizer: sgd (momentum 0.9) or adamw;
    `weight_decay` spares biases and norms. schedule: onecycle (20 % up) or cosine after `warmup`
    steps.
    augment: none, crop (pad by 4, crop, flip), imagenet (timm's random resized crop and flip) or
    deit (RandAugment, erasing, mixup, cutmix and a drop-path rate of 0.1 besides).
    """

    dataset: str = "digits"
    model: str = "small"
    depth: int = 20
    width: int = 16
    steps: int = 80
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    warmup: int = 0
    label_smoothing: float = 0.0
    augment: str = "none"
    workers: int = 0

    def __post_init__(self):
        allowed = {
            "dataset": (*MEMORY, "imagenet"),
            "optimizer": ("sgd", "adamw"),
            "schedule": ("onecycle", "cosine"),
            "augment": ("none", "crop") if self.dataset in MEMORY else ("none", "imagenet", "deit"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup must be in 0..{self.steps - 1} (steps): {self.warmup}")


DIGIT_NETS = {  # stem's channels; inputs, outputs and stride of each further convolution
    "small": (16, ((16, 32, 2), (32, 64, 1), (64, 64, 2), (64, 64, 1))),
    "tiny": (8, ((8, 16, 2), (16, 32, 2), (32, 32, 1))),
}


def digit_net(name: str) -> nn.Sequential:
    """3x3 convolutions for digits [n, 1, 28, 28]: `stem`, `layers`, `pool`, `head`."""

    def block(inputs, outputs, stride):
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    (width, sizes), net = DIGIT_NETS[name], nn.Sequential()
    net.add_module("stem", block(1, width, 2))
    net.add_module("layers", nn.Sequential(*(block(*size) for size in sizes)))
    net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    net.add_module("head", nn.Linear(sizes[-1][1], 10))
    return net


def network(recipe: Recipe) -> tuple[nn.Module, list[str]]:
    """A network with fresh weights, and the names of its first layer and its classifier."""
    if recipe.model in DIGIT_NETS:
        return digit_net(recipe.model), ["stem", "head"]
    classes = 1000 if recipe.dataset == "imagenet" else 10
    if recipe.model == "resnet":
        return resnet(recipe.depth, recipe.width, classes), ["stem", "head"]
    drop_path = {"drop_path_rate": 0.1} if recipe.augment == "deit" else {}
    model = timm.create_model(recipe.model, num_classes=classes, **drop_path)
    return model, [model.default_cfg["first_conv"], model.default_cfg["classifier"]]


def normalize(x: Tensor, dataset: str) -> Tensor:
    """Images in [0, 1] or bytes to zero mean and unit variance a channel, float32."""
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in NORMAL[dataset])
    return ((x / 255 if x.dtype == torch.uint8 else x) - mean) / std


def batches(
    recipe: Recipe, session: Session, split: str, seed_offset: int = 1
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches (x, y) of normalised images, split "train" or "test".

    The training order follows the session's seed: `steps` batches, or, of a data set that does
    not fit in memory, a loader to iterate again and again.
    """
    if recipe.dataset not in MEMORY:
        return _loader(recipe, session, split, seed_offset)
    x, y = (t.to(session.device) for t in MEMORY[recipe.dataset](session.data_root, split))
    if split == "test":
        parts = zip(x.split(500), y.split(500), strict=True)
        return [(normalize(images, recipe.dataset), labels) for images, labels in parts]

    def prepare(images, generator):
        images = crop_flip(images, generator) if recipe.augment == "crop" else images
        return normalize(images, recipe.dataset)

    options = {"batch_size": recipe.batch_size, "steps": recipe.steps, "transform": prepare}
    return minibatches(x, y, generator=session.generator(seed_offset), **options)


def _mix(mixup: Mixup, samples: list) -> tuple[Tensor, Tensor]:
    return mixup(*default_collate(samples))


def _loader(recipe: Recipe, session: Session, split: str, seed_offset: int) -> DataLoader:
    training, collate = split == "train", default_collate
    deit = training and recipe.augment == "deit"
    # color_jitter=None: timm's default would jitter, ResNet recipes of the papers do not
    options = {"color_jitter": None} | (DEIT if deit else {}) if training else {}
    transform = create_transform(224, is_training=training, **options)
    images = image_folder(session.data_root, "train" if training else "val", transform)
    if deit:
        mixup = Mixup(0.8, 1.0, label_smoothing=recipe.label_smoothing, num_classes=1000)
        collate = partial(_mix, mixup)
    return DataLoader(
        images,
        recipe.batch_size,
        shuffle=training,
        drop_last=training,
        num_workers=recipe.workers,
        pin_memory=session.device.type == "cuda",
        persistent_workers=recipe.workers > 0,
        generator=session.generator(seed_offset),
        collate_fn=collate,
    )


def optimization(recipe: Recipe, model: nn.Module):
    """The optimizer and the scheduler that `fit` advances once a step."""
    name = {"sgd": "momentum", "adamw": "adamw"}[recipe.optimizer]  # timm's "sgd" is Nesterov's
    optimizer = create_optimizer_v2(model, name, recipe.lr, recipe.weight_decay, momentum=0.9)
    if recipe.schedule == "onecycle":
        options = {"pct_start": 0.2, "cycle_momentum": False}
        one = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.steps, **options)
        return optimizer, one
    options = {"warmup_t": recipe.warmup, "warmup_prefix": True, "t_in_epochs": False}
    return optimizer, CosineLRScheduler(optimizer, recipe.steps - recipe.warmup, **options)


def train(recipe: Recipe, model: nn.Module, session: Session, **options) -> list[float]:
    """Train in place on the recipe's data and return the loss of each step.

    options: of `helpers.training.fit`, for instance `on_step` and `description`.
    """
    optimizer, scheduler = optimization(recipe, model)
    loss = nn.CrossEntropyLoss(
        label_smoothing=0 if recipe.augment == "deit" else recipe.label_smoothing
    )
    data = batches(recipe, session, "train")
    options |= {"scheduler": scheduler, "steps": recipe.steps, "session": session}
    return fit(model, data, loss, optimizer, **options)


def test_accuracy(recipe: Recipe, model: nn.Module, session: Session) -> float:
    """Top-1 accuracy in percent on the recipe's test (ImageNet: validation) images."""
    return test_scores(recipe, model, session)["accuracy"]


def test_scores(recipe: Recipe, model: nn.Module, session: Session) -> dict[str, float]:
    """Accuracy [%] and nll [nats] on the recipe's test images (`helpers.training.scores`)."""
    return scores(model, batches(recipe, session, "test"), session=session)


def first_images(recipe: Recipe, session: Session, count: int) -> tuple[Tensor, Tensor]:
    """Images and labels of the first training batches in an order of their own, on the device."""
    needed = -(-count // recipe.batch_size)
    pairs = batches(replace(recipe, steps=needed, warmup=0), session, "train", 2)
    x, y = zip(*islice(pairs, needed), strict=True)
    return torch.cat(x)[:count].to(session.device), torch.cat(y)[:count].to(session.device)
