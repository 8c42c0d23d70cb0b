"""Classifiers from a flat dictionary of parameters: build, train, load and judge them.

A flat dictionary survives the way into other processes, so that the same functions run in a
notebook and, through `helpers.training.launch`, on several GPUs. Its keys, SETUP, are parameters
of the notebooks.
"""

from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchDropout
from torch import Tensor, nn

from helpers.data import labelled
from helpers.data.labelled import Batches, Labelled
from helpers.models import checkpoint, vit
from helpers.session import Session, start
from helpers.training import fit, launch

SETUP = (  # the parameters that prepare() needs
    "model", "img_size", "patch_size", "embed_dim", "depth", "num_heads",
    "dataset", "test_images", "workers", "seed", "device", "data_root", "precision",
)  # fmt: skip
LICENCES = {  # of what a committed checkpoint was trained on
    "digits": "MNIST CC BY-SA 3.0, photographs public domain, CC0 and CC BY 2.0 (data/README.md)",
    "cifar10": "CIFAR-10, no licence stated by its authors",
}
SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")


def prepare(setup: dict) -> tuple[Session, nn.Module, Labelled]:
    """A session seeded by setup["seed"], the untrained network on its device, and the data."""
    run = {key: setup[key] for key in ("seed", "device", "data_root", "precision")}
    session, size = start(**run, banner=False), setup["img_size"]
    classes = 1000 if setup["dataset"] == "images" else 10
    if setup["model"] == "vit":
        network = vit(**{key: setup[key] for key in SIZES}, num_classes=classes)
    else:
        network = timm.create_model(setup["model"], img_size=size, num_classes=classes)
    return session, network.to(session.device), dataset(setup, network, session)


def dataset(setup: dict, network: nn.Module, session: Session) -> Labelled:
    """The labelled set of a setup, with the transforms that the network was made for."""
    config = timm.data.resolve_data_config({"img_size": setup["img_size"]}, model=network)
    transforms = [
        timm.data.create_transform(**config, is_training=train) for train in (True, False)
    ]
    return labelled(
        setup["dataset"],
        session.data_root,
        size=setup["img_size"],
        count=setup["test_images"],
        seed=setup["seed"],
        transforms=tuple(transforms),
        workers=setup["workers"],
    )


def train_classifier(
    setup: dict, steps: int, batch_size: int, lr: float, patch_drop: float
) -> dict[str, Tensor]:
    """Train a new network and return its weights.

    AdamW (weight decay 0.05), one cycle with 5 % warm-up, gradient norm at most 1.
    patch_drop: share of the patches that a ViT does not see in a step (PatchDropout).
    """
    session, network, data = prepare(setup)
    network.patch_drop = PatchDropout(patch_drop, num_prefix_tokens=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.05, final_div_factor=2, cycle_momentum=False
    )
    fit(
        network,
        data.train(batch_size, steps, session.generator()),
        F.cross_entropy,
        optimizer,
        steps=steps,
        session=session,
        scheduler=scheduler,
        clip=1.0,
        description="train",
    )
    return {key: value.cpu() for key, value in network.state_dict().items()}


def trained(
    notebook: str, setup: dict, weights: str, recipe: dict, retrain: bool, processes: int
) -> nn.Module:
    """The network of a setup with its weights, frozen, in eval mode, on the session's device.

    weights: the name of a committed checkpoint; "train" (now, with `train_classifier` and the
    recipe, kept in memory only); "pretrained" (timm's, from its hub or its cache); or the path of
    a weights file. retrain: train the committed checkpoint again and store it.
    """
    session, network, data = prepare(setup)

    def train(network: nn.Module) -> dict:
        job = {"setup": setup, **recipe}
        network.load_state_dict(launch(notebook, "train_classifier", job, processes))
        network.to(session.device).eval()
        return {
            "recipe": f"{setup['dataset']}, {recipe}, seed {setup['seed']} (train_classifier)",
            "training_data": LICENCES.get(setup["dataset"], "not stated"),
            "test_accuracy": round(100 * hits(network, data, session).mean().item(), 1),
        }

    if weights == "train":
        train(network)
    elif weights == "pretrained":
        source = timm.create_model(setup["model"], pretrained=True, img_size=setup["img_size"])
        network.load_state_dict(source.state_dict())
    elif "." in weights:
        timm.models.load_checkpoint(network, weights)
    else:
        network = checkpoint(weights, lambda: network, train, retrain)
    return network.to(session.device).eval().requires_grad_(False)


@torch.no_grad()
def predict(
    forward: Callable[[Tensor], Tensor], data: Labelled, session: Session
) -> tuple[Tensor, Tensor]:
    """Logits of forward(images) and labels over the test set, on the CPU."""
    logits, labels = [], []
    for x, y in data.test(250):
        with session.autocast():
            logits.append(forward(x.to(session.device)).float().cpu())
        labels.append(y)
    return torch.cat(logits), torch.cat(labels)


def hits(forward: Callable[[Tensor], Tensor], data: Labelled, session: Session) -> Tensor:
    """1 for every test image that is classified correctly, else 0: float [n]."""
    logits, labels = predict(forward, data, session)
    return (logits.argmax(-1) == labels).float()


def agreement(
    forward: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    data: Labelled,
    session: Session,
) -> dict[str, float]:
    """How close a network is to its reference over the test set.

    top1 [%], agreement of the top class [%], and KL(reference || network) in nats per image.
    """
    logits, labels = predict(forward, data, session)
    plain, _ = predict(reference, data, session)
    kl = F.kl_div(logits.log_softmax(-1), plain.softmax(-1), reduction="batchmean")
    same, right = logits.argmax(-1) == plain.argmax(-1), logits.argmax(-1) == labels
    share = {"top1": right, "agreement": same}
    return {k: 100 * v.double().mean().item() for k, v in share.items()} | {"kl": kl.item()}


def self_labelled(model: nn.Module, batches: Batches, session: Session) -> Batches:
    """Training batches with the model's own probabilities in place of the labels."""
    for x, _ in batches:
        with torch.no_grad(), session.autocast():
            target = model(x.to(session.device)).float().softmax(-1)
        yield x, target  # outside of the block, which would otherwise hold for the consumer
