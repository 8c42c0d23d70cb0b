"""Super-resolution plumbing: random patches, training, upscaling, and judging whole images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.data.super_resolution import Pair, sr_pairs
from helpers.metrics import psnr, psnr_y
from helpers.models import checkpoint
from helpers.session import Session, start
from helpers.sr_networks import load_strictly, sr_network
from helpers.training import fit, launch

SETUP = (  # the parameters that prepare() needs
    "network", "upscale", "n_resblocks", "n_feats", "train_set", "train_images",
    "seed", "device", "data_root", "precision",
)  # fmt: skip
LICENCES = {  # of what a committed checkpoint was trained on
    "photographs": "photographs in the public domain, CC0, CC BY 2.0 and unstated (data/README.md)"
}


def random_patches(
    pairs: Sequence[Pair], count: int, size: int, scale: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random crops, flipped and transposed at random: LR (count, 3, size, size) and its HR.

    Every image is as likely as another. Raises ValueError for an image smaller than a patch.
    """
    lows, highs = [], []
    draws = torch.rand(count, 6, generator=generator, dtype=torch.float64).tolist()
    for image, top, left, *turns in draws:
        name, lr, hr = pairs[int(image * len(pairs))]
        height, width = lr.shape[1:]
        if min(height, width) < size:
            raise ValueError(f"{name} is {height} x {width}, a patch needs {size} x {size} pixels")
        y, x = int(top * (height - size + 1)), int(left * (width - size + 1))
        axes = [axis for axis, turn in zip((1, 2), turns, strict=False) if turn < 0.5]
        for images, parts, s in ((lr, lows, 1), (hr, highs, scale)):
            part = images[:, s * y : s * (y + size), s * x : s * (x + size)].flip(axes)
            parts.append(part.transpose(1, 2) if turns[2] < 0.5 else part)
    return torch.stack(lows).float(), torch.stack(highs).float()


def prepare(setup: dict) -> tuple[Session, nn.Module, Sequence[Pair]]:
    """A session seeded by setup["seed"], the untrained network on its device, training pairs."""
    run = {key: setup[key] for key in ("seed", "device", "data_root", "precision")}
    session = start(**run, banner=False)
    sizes = (setup[key] for key in ("upscale", "n_resblocks", "n_feats"))
    network = sr_network(setup["network"], *sizes).to(session.device)
    root, scale, count = session.data_root, setup["upscale"], setup["train_images"]
    pairs = sr_pairs(setup["train_set"], root, scale, split="train", count=count)
    return session, network, pairs


def train_network(
    setup: dict, steps: int, batch_size: int, patch: int, lr: float, decay: str, clip: float
) -> dict[str, Tensor]:
    """Train a new network with the L1 loss and Adam on random patches; return its weights.

    patch: side of the LR patches. decay: "cosine", or "halve" after two thirds of the steps.
    clip: largest gradient norm, 0 for none.
    """
    session, network, pairs = prepare(setup)
    generator, scale = session.generator(), setup["upscale"]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield random_patches(pairs, batch_size, patch, scale, generator)

    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr)
    scheduler = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        if decay == "cosine"
        else torch.optim.lr_scheduler.StepLR(optimizer, max(1, 2 * steps // 3), 0.5)
    )
    fit(
        network, batches(), F.l1_loss, optimizer, steps=steps, session=session,
        scheduler=scheduler, clip=clip or None, description="train",
    )  # fmt: skip
    return {key: value.cpu() for key, value in network.state_dict().items()}


def trained(
    notebook: str,
    setup: dict,
    weights: str,
    recipe: dict,
    *,
    tests: Sequence[Pair],
    retrain: bool = False,
    fallback_steps: int = 0,
    processes: int = 1,
) -> nn.Module:
    """The network of a setup with its weights, frozen, in eval mode, on the session's device.

    weights: a committed checkpoint's name; "train" (now, kept in memory only); or a weights file.
    recipe: arguments of `train_network`. tests: what the manifest's figures are measured on.
    fallback_steps: train that many steps when the checkpoint is missing; 0 raises instead.
    """
    session, network, _ = prepare(setup)

    def train(network: nn.Module, **changes) -> dict:
        job = {"setup": setup, **recipe, **changes}
        network.load_state_dict(launch(notebook, "train_network", job, processes))
        network.to(session.device).eval()
        scores = judge(network, tests, setup["upscale"], session.device)
        return {
            "recipe": f"{setup['train_set']}, {recipe}, seed {setup['seed']} (train_network)",
            "training_data": LICENCES.get(setup["train_set"], "not stated"),
            "test_psnr_y": round(mean(scores, "psnr_y"), 2),
        }

    if weights == "train":
        train(network)
    elif "." in weights:
        load_strictly(network, weights)
    else:
        try:
            network = checkpoint(weights, lambda: network, train, retrain)
        except FileNotFoundError:
            if not fallback_steps:
                raise
            train(network, steps=fallback_steps)
    return network.to(session.device).eval().requires_grad_(False)


@torch.no_grad()
def super_resolve(network: Callable[[Tensor], Tensor], lr: Tensor, device="cpu") -> Tensor:
    """The network's image (1, 3, scale h, scale w) of one LR image (3, h, w), on the CPU."""
    return network(lr[None].float().to(device)).float().cpu()


def bicubic(x: Tensor, scale: int) -> Tensor:
    """The baseline without a network: (n, 3, h, w) enlarged by bicubic interpolation."""
    return F.interpolate(x, scale_factor=scale, mode="bicubic")


def centre_crop(pair: Pair, size: int) -> Pair:
    """The middle `size` x `size` LR pixels of a pair, at most all of it; 0 leaves it whole."""
    scale = pair.hr.shape[1] // pair.lr.shape[1]
    height, width = (min(size or side, side) for side in pair.lr.shape[1:])
    top, left = (pair.lr.shape[1] - height) // 2, (pair.lr.shape[2] - width) // 2
    lr = pair.lr[:, top : top + height, left : left + width]
    top, left, height, width = (scale * v for v in (top, left, height, width))
    return Pair(pair.name, lr, pair.hr[:, top : top + height, left : left + width])


def cropped_sets(
    names: Sequence[str], root: Path | None, scale: int, size: int
) -> dict[str, list[Pair]]:
    """{name: its test pairs, cut by `centre_crop`}."""
    return {
        name: [centre_crop(pair, size) for pair in sr_pairs(name, root, scale, split="test")]
        for name in names
    }


def judge(
    network: Callable[[Tensor], Tensor],
    pairs: Sequence[Pair],
    scale: int,
    device: str | torch.device = "cpu",
    references: Sequence[Tensor] | None = None,
) -> list[dict]:
    """Judge a network image by image: "psnr_y" [dB] against the HR side, `scale` pixels shaved.

    references: images (1, 3, h, w) of another network; adds "fid", the RGB PSNR [dB] to them,
    neither rounded nor clamped.
    """
    scores = []
    for index, pair in enumerate(pairs):
        image = super_resolve(network, pair.lr, device)
        scores.append({"psnr_y": psnr_y(image, pair.hr[None].float(), scale)})
        if references is not None:
            scores[-1]["fid"] = psnr(image, references[index], shave=scale)
    return scores


def mean(scores: Sequence[dict], key: str) -> float:
    """The mean of one key over the images."""
    return sum(score[key] for score in scores) / len(scores)


def judge_sets(
    network: Callable[[Tensor], Tensor],
    sets: dict[str, Sequence[Pair]],
    scale: int,
    device: str | torch.device = "cpu",
    references: dict[str, Sequence[Tensor]] | None = None,
) -> dict[str, float]:
    """`judge` on several sets: "psnr_y" and "fid", means over sets of means over images.

    The PSNR on luma of each set stands under the set's name.
    """
    found = {
        name: judge(network, pairs, scale, device, references and references[name])
        for name, pairs in sets.items()
    }
    total = {name: mean(scores, "psnr_y") for name, scores in found.items()}
    keys = ("psnr_y", "fid") if references else ("psnr_y",)
    return total | {key: sum(mean(s, key) for s in found.values()) / len(found) for key in keys}


def images(
    network: Callable[[Tensor], Tensor], sets: dict[str, Sequence[Pair]], device
) -> dict[str, list[Tensor]]:
    """The network's output (1, 3, scale h, scale w) for every image of every set."""
    return {
        name: [super_resolve(network, pair.lr, device) for pair in pairs]
        for name, pairs in sets.items()
    }
