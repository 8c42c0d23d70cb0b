"""What post-training quantization needs: a network, calibration images, and a judge.

For notebooks that quantize finished networks; only the values of their parameters differ by scale.
"""

from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from helpers import chains, models, pretrained, training
from helpers.classify import LICENCES
from helpers.data import image_folder, labelled
from helpers.data.labelled import Batches, Labelled
from helpers.session import Session

BATCH = 100  # test images at a time: few enough for a CPU's cache
SOURCES = ("train", "val", "photos")
Draw = Callable[[int, torch.Generator], Tensor]
Parts = list[Callable[[Tensor], Tensor]]


def calibration_and_test(
    dataset: str, root: Path | None, *, size: int, source: str = "train", count: int = 0,
    seed: int = 0, config: dict | None = None, workers: int = 0,
) -> tuple[Draw, Batches]:  # fmt: skip
    """(draw, test batches); draw(n, generator) gives n calibration images [n, 3, size, size].

    Images are in [0, 1]. dataset: a name of `helpers.data.labelled`, or "photos": random crops of
    the embedded photographs, whose labels are -1 (unknown). source, for dataset "images" only:
    "train", augmented as in training; "val", every other validation picture, which then is no test
    picture; "photos". count: test images, 0 for all. config: timm's data configuration of a model.
    Raises ValueError for another source, FileNotFoundError when `root` lacks the data.
    """
    if source not in SOURCES:
        raise ValueError(f"calibration must be one of {', '.join(SOURCES)}, got {source!r}")
    if dataset == "photos":
        crops = _crops("test", size)(count or 500, torch.Generator().manual_seed(seed))
        return _crops("train", size), [(part, -torch.ones(len(part)).long()) for part in
                                       crops.split(BATCH)]  # fmt: skip
    transforms = [_transform(config or {}, size, train) for train in (True, False)]
    options = {"size": size, "seed": seed, "transforms": tuple(transforms), "workers": workers}
    if dataset == "images" and root is not None and source == "val":
        pictures = image_folder(root, "val", transforms[1])
        pool, held_out = (Subset(pictures, range(i, len(pictures), 2)) for i in (0, 1))
        held_out = Subset(held_out, range(min(count or len(held_out), len(held_out))))
        return _rows(pool), DataLoader(held_out, BATCH, num_workers=workers)
    data = labelled(dataset, root, count=count, **options)
    if dataset == "images" and source == "photos":
        return _crops("train", size), data.test(BATCH)
    return lambda n, generator: next(iter(data.train(n, 1, generator)))[0], data.test(BATCH)


def _transform(config: dict, size: int, train: bool) -> Callable:
    # mean 0 and deviation 1: images stay in [0, 1], the caller normalises
    plain = {"input_size": (3, size, size), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return create_transform(**config | plain, is_training=train, color_jitter=None)


def _crops(split: str, size: int) -> Draw:
    from helpers.data.digits import random_crops

    return lambda n, generator: random_crops(split, n, size, generator)


def _rows(pictures: Subset) -> Draw:
    def draw(n: int, generator: torch.Generator) -> Tensor:
        if n > len(pictures):
            raise ValueError(f"{n} calibration images asked for, there are {len(pictures)}")
        rows = torch.randperm(len(pictures), generator=generator)[:n].tolist()
        return torch.stack([pictures[row][0] for row in rows])

    return draw


def load_network(
    model: str, width: float, weights: str, recipe: dict, retrain: bool, session: Session
) -> nn.Module:
    """The network of a run, in eval mode on the CPU.

    model: "mini" (`chains.mini_mobilenet` of a width), "efficientnet_lite0" (its packaged weights)
    or a timm model. weights: "train" (now, kept in memory), "pretrained" (timm's, from its hub or
    cache), the path of a file, or the name of a committed checkpoint, which `retrain` trains again.
    recipe: dataset, steps, batch_size and lr of the training.
    """
    if model == "efficientnet_lite0":
        return pretrained.efficientnet_lite0()
    if model == "mini":
        network = chains.mini_mobilenet(width)
    else:
        network = timm.create_model(model, pretrained=weights == "pretrained")

    def train(network: nn.Module) -> dict:
        data = labelled(recipe["dataset"], session.data_root, seed=session.seed)
        return _train(network, data, session, recipe)

    if weights == "train":
        train(network)
    elif "." in weights:
        timm.models.load_checkpoint(network, weights)
    elif weights != "pretrained":
        network = models.checkpoint(weights, lambda: network, train, retrain)
    return network.cpu().eval()


def _train(network: nn.Module, data: Labelled, session: Session, recipe: dict) -> dict:
    """AdamW (weight decay 0.05) with one cycle; returns what the manifest says of it."""
    steps, lr = recipe["steps"], recipe["lr"]
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, cycle_momentum=False
    )
    batches = data.train(recipe["batch_size"], steps, session.generator())
    options = {"steps": steps, "session": session, "scheduler": cycle, "description": "train"}
    training.fit(network, batches, F.cross_entropy, optimizer, **options)
    accuracy = training.evaluate(network, data.test(BATCH), session=session)
    return {
        "recipe": f"AdamW (weight decay 0.05), one cycle, {recipe}, seed {session.seed}",
        "training_data": LICENCES.get(recipe["dataset"], "not stated"),
        "test_accuracy": round(accuracy, 1),
    }


def normalization(model: str, network: nn.Module) -> tuple:
    """(mean, deviation) that broadcast to images; "mini" takes images in [0, 1] as they are."""
    if model == "mini":
        return 0.0, 1.0
    config = timm.data.resolve_data_config(model=network)
    return tuple(torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))


@torch.no_grad()
def judge(
    networks: dict[str, list[Parts]], reference: Parts, test: Batches, normal: tuple,
    device: torch.device,
) -> tuple[dict[str, list[dict[str, float]]], float]:  # fmt: skip
    """Judge networks (parts that run one after another) in one pass over the test batches.

    test: batches (images in [0, 1], labels); normal: from `normalization`. For each name a list of
    {accuracy [%], kl}, kl = mean KL(reference || network) in nats; then the reference's accuracy.
    A label of -1 is unknown: the reference's class stands in, so that accuracy is agreement.
    """
    rows = {name: [[] for _ in many] for name, many in networks.items()}
    right = []
    for x, y in test:
        x = ((x - normal[0]) / normal[1]).to(device, memory_format=torch.channels_last)
        target = _through(reference, x).log_softmax(1)
        labels = torch.where(y < 0, target.argmax(1).cpu(), y).to(device)
        right.append((target.argmax(1) == labels).float().cpu())
        for name, many in networks.items():
            for row, parts in zip(rows[name], many, strict=True):
                logits = _through(parts, x)
                kl = F.kl_div(logits.log_softmax(1), target, reduction="none", log_target=True)
                row.append(torch.stack([(logits.argmax(1) == labels).float(), kl.sum(1)]).cpu())
    means = {n: [torch.cat(row, 1).double().mean(1) for row in many] for n, many in rows.items()}
    found = {
        name: [{"accuracy": 100 * right.item(), "kl": kl.item()} for right, kl in many]
        for name, many in means.items()
    }
    return found, 100 * torch.cat(right).double().mean().item()


def _through(parts: Parts, x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x.float()
