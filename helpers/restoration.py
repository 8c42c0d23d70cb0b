"""Train image-to-image networks on patches, in turns of several widths, and score what they do."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.data import moire_pairs
from helpers.patches import patch_at
from helpers.training import fit


@dataclass
class Recipe:
    """How a network is trained on pairs of images; the words are those of the notebook."""

    dataset: str
    image_size: list[int]
    train_patch: list[int]
    crop: list[int]
    views: int
    steps: int
    batch_size: int
    lr: float
    schedule: str
    flips: bool
    sobel: float
    workers: int


@lru_cache(maxsize=1)
def _pairs(dataset: str, size: tuple, views: int, seed: int, root) -> Sequence:
    return moire_pairs(dataset, "train", root=root, size=size, views=views, seed=seed)


def training_pairs(recipe: Recipe, session) -> Sequence:
    """The recipe's training pairs; the networks of one seed share them."""
    size, root = tuple(recipe.image_size), session.data_root
    return _pairs(recipe.dataset, size, recipe.views, session.seed, root)


def advanced_sobel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Difference of the edge strengths of two batches (B, 3, H, W), summed over pixels, over B.

    The edge strength is |Kx * s| + |Ky * s| of s = R + G + B, with diagonal Sobel kernels
    (the loss of MBCNN in the official code of DDA).
    """
    down = prediction.new_tensor([[2, 1, 0], [1, 0, -1], [0, -1, -2]])
    up = prediction.new_tensor([[0, 1, 2], [-1, 0, 1], [-2, -1, 0]])
    kernel = torch.stack((down, up))[:, None]
    edges = [
        F.conv2d(image.sum(1, keepdim=True), kernel).abs().sum(1) for image in (prediction, target)
    ]
    return (edges[0] - edges[1]).abs().sum() / len(prediction)


def patch_batches(
    pairs: Sequence,
    rows: Tensor,
    *,
    patch_size: Sequence[int],
    crop: Sequence[int],
    batch_size: int,
    generator: torch.Generator,
    flips: bool = True,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (input, target) of random crops (b, 3, *crop) from chosen patches.

    pairs: pairs[i] is (input, target), each (3, H, W). rows: int64 (m, 2) of image and patch.
    A pass visits every row once, in a new order; a last incomplete batch is left out.
    flips: mirror and transpose at random (transpose square crops only). workers: threads that
    read; what a batch holds depends on the generator alone.
    """
    if not 1 <= batch_size <= len(rows):
        raise ValueError(f"batch_size must be in 1..{len(rows)} (the patches), got {batch_size}")
    free = torch.tensor([a - b for a, b in zip(patch_size, crop, strict=True)])
    if free.min() < 0:
        raise ValueError(f"crop {tuple(crop)} is larger than a patch of {tuple(patch_size)}")

    def load(plan: list[int]) -> Tensor:
        image, patch, top, left, mirror_y, mirror_x, turn = plan
        both = torch.stack([patch_at(x, patch, patch_size) for x in pairs[image]])
        both = both[:, :, top : top + crop[0], left : left + crop[1]]
        both = both.flip([dim for dim, flag in ((2, mirror_y), (3, mirror_x)) if flag])
        return both.transpose(2, 3) if turn else both

    with ThreadPoolExecutor(max(1, workers)) as pool:
        run = pool.map if workers else map
        while True:
            order = rows[torch.randperm(len(rows), generator=generator)]
            for part in order.split(batch_size)[: len(rows) // batch_size]:
                corner = (torch.rand(len(part), 2, generator=generator) * (free + 1)).long()
                coins = torch.randint(0, 2, (len(part), 3), generator=generator) * flips
                coins[:, 2] *= crop[0] == crop[1]
                plans = torch.cat((part, corner, coins), 1).tolist()
                batch = torch.stack(list(run(load, plans)), 1)
                yield batch[0], batch[1]


class Turns(nn.Module):
    """A network whose training steps run at each of `widths` in turn."""

    def __init__(self, network: nn.Module, widths: Sequence[float]):
        super().__init__()
        self.network, self.widths, self.step = network, tuple(widths), 0

    def forward(self, x: Tensor) -> Tensor:
        """Output at the width whose turn it is; the next call is the next step."""
        width = self.widths[self.step % len(self.widths)]
        self.step += 1
        return self.network(x, width)


def train_in_turns(
    network: nn.Module,
    widths: Sequence[float],
    rows: Sequence[Tensor],
    recipe: Recipe,
    session,
    description: str = "",
) -> list[float]:
    """Adam steps t = 0, 1, ... at width t mod K on patches of set t mod K; the loss of each step.

    rows: for each width the image and patch indices (m, 2) of its set.
    The loss is the mean |error|, plus `sobel` times `advanced_sobel_loss` per value. Schedules:
    "onecycle" (up for a tenth of the steps, then down) or "steps" (a tenth of lr from a quarter
    of the steps on, a hundredth from half).
    """
    if len(widths) != len(rows):
        raise ValueError(f"{len(widths)} widths need as many sets, got {len(rows)}")
    optimizer = torch.optim.Adam(network.parameters(), recipe.lr)
    if recipe.schedule == "onecycle":
        options = {"pct_start": 0.1, "cycle_momentum": False}
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.lr, recipe.steps, **options
        )
    elif recipe.schedule == "steps":
        at = [max(1, recipe.steps // 4), max(2, recipe.steps // 2)]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, at)
    else:
        raise ValueError(f"schedule is {recipe.schedule!r}; allowed: onecycle, steps")
    options = {"patch_size": recipe.train_patch, "crop": recipe.crop, "flips": recipe.flips}
    options |= {"batch_size": recipe.batch_size, "workers": recipe.workers}
    pairs = training_pairs(recipe, session)
    batches = [
        patch_batches(pairs, own, generator=session.generator(k), **options)
        for k, own in enumerate(rows)
    ]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        error = (output - target).abs().sum() / len(output)
        if recipe.sobel > 0:
            error = error + recipe.sobel * advanced_sobel_loss(output, target)
        return error / target[0].numel()

    turns = (next(batch) for batch in cycle(batches))
    options = {"steps": recipe.steps, "session": session, "scheduler": scheduler}
    return fit(Turns(network, widths), turns, loss, optimizer, description=description, **options)


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights by name, without a leading "module.".

    Raises ValueError that lists the missing and the unknown names.
    """
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    own = network.state_dict().keys()
    missing, unknown = sorted(own - weights.keys()), sorted(weights.keys() - own)
    if missing or unknown:
        raise ValueError(f"checkpoint lacks {missing} and has the unknown {unknown}")
    network.load_state_dict(weights)
