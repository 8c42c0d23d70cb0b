"""Pictures of what happens to the tokens of a vision transformer: how many, and which ones."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from helpers import plots

Schedule = Sequence[tuple[int, int]]


def removals(schedule: Schedule, num_tokens: int) -> Tensor:
    """Tokens that every block prunes and merges away, int [blocks, 2].

    schedule: (kept after pruning, kept after merging) per block; a count above what is alive
    does nothing.
    """
    alive, rows = num_tokens, []
    for prune, merge in schedule:
        middle = min(alive, prune)
        rows.append((alive - middle, middle - min(middle, merge)))
        alive = min(middle, merge)
    return torch.tensor(rows)


def draw_schedules(schedules: dict[str, Schedule], num_tokens: int) -> Figure:
    """Stacked bars for schedules by title: tokens that every block keeps, merges and prunes."""
    size = (3.4 * len(schedules), 2.8)
    figure, axes = plt.subplots(1, len(schedules), figsize=size, sharey=True, squeeze=False)
    for axis, (title, schedule) in zip(axes[0], schedules.items(), strict=True):
        pruned, merged = removals(schedule, num_tokens).T
        kept = num_tokens - (pruned + merged).cumsum(0)
        bottom = torch.zeros(len(kept))
        for label, part in {"kept": kept, "merged": merged, "pruned": pruned}.items():
            axis.bar(range(len(part)), part, bottom=bottom, color=plots.color(label), label=label)
            bottom += part
        axis.set(title=title, xlabel="block")
    axes[0, 0].set_ylabel("tokens")
    axes[0, -1].legend()
    return figure


def follow(row: Tensor, order: Tensor, destination: Tensor | None) -> Tensor:
    """Where original tokens are after a block that reordered, pruned and merged.

    row: [B, N] row of every original token before the block, -1 for pruned ones.
    order: [B, M] indices of the rows that survive pruning. destination: [B, M - kept] rows into
    which the last of those are merged, or None.
    """
    batch, survivors = order.shape
    merged = 0 if destination is None else destination.shape[1]
    place = torch.arange(survivors - merged, device=row.device).expand(batch, -1)
    if merged:
        place = torch.cat([place, destination], 1)
    before = int(max(row.max(), order.max())) + 1
    moved = row.new_full((batch, before + 1), -1).scatter(1, order, place)
    return moved.gather(1, row.where(row >= 0, before))  # the last column answers for the pruned


def paint_groups(image: Tensor, row: Tensor, scale: int = 8) -> Tensor:
    """The image as the network still knows it: [3, h * scale, w * scale].

    Pruned patches are black, merged ones have their group's mean colour, borders are white.
    image: [3, h, w] in [0, 1]; row: [N] as from `follow`, the class token first; square patches.
    """
    side = round((len(row) - 1) ** 0.5)
    patch = image.shape[-1] // side
    group = row[1:].view(side, side)
    fine = group.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    picture = image.clone()
    for label, count in zip(*group.unique(return_counts=True), strict=True):
        if label < 0:
            picture[:, fine == label] = 0
        elif count > 1:
            picture[:, fine == label] = image[:, fine == label].mean(1, keepdim=True)
    picture = picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    fine = fine.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    edge = torch.zeros_like(fine, dtype=torch.bool)
    for shift in (1, 2):  # two pixels wide, to survive being shown smaller
        edge[shift:] |= fine[shift:] != fine[:-shift]
        edge[:, shift:] |= fine[:, shift:] != fine[:, :-shift]
    picture[:, edge] = 1.0
    return picture


class TokenViews:
    """What a network still knows of some images after each block, drawn and read.

    images: [b, 3, h, w]; model: a timm ViT, whose head reads the class token after every block.
    stages: an iterable over blocks of (x [b, tokens, C], order, destination) as `follow` takes
    them, order None where nothing was removed.
    """

    @torch.no_grad()
    def __init__(self, images: Tensor, model: nn.Module, stages):
        low, high = images.amin((1, 2, 3), True), images.amax((1, 2, 3), True)
        self.images = ((images - low) / (high - low)).cpu()
        self.rows, self.tokens, self.readings = [], [], []
        row = torch.arange(model.patch_embed.num_patches + 1, device=images.device).expand(
            len(images), -1
        )
        for x, order, destination in stages:
            row = row if order is None else follow(row, order, destination)
            share, label = model.forward_head(model.norm(x)).softmax(-1).max(-1)
            self.rows.append(row.cpu())
            self.tokens.append(x.shape[1])
            self.readings.append(
                [
                    f"reads {c} ({p:.0%})"
                    for c, p in zip(label.tolist(), share.tolist(), strict=True)
                ]
            )

    def picture(self, image: int, block: int) -> Tensor:
        """The image as it is known after a block, painted by `paint_groups`."""
        return paint_groups(self.images[image], self.rows[block][image])

    def grid(self, images: Sequence[int], blocks: Sequence[int]) -> Figure:
        """A row for each of some images, a column for each of some blocks."""
        pictures = [self.picture(image, block) for image in images for block in blocks]
        titles = [f"block {block}: {self.tokens[block]} tokens" for _ in images for block in blocks]
        return plots.image_grid(pictures, titles, columns=len(blocks), size=1.6)

    def draw(self, block: int, note: str = "") -> Figure:
        """All images after a block, with the class that the head reads there."""
        pictures = [self.picture(image, block) for image in range(len(self.images))]
        figure = plots.image_grid(pictures, self.readings[block], columns=len(pictures))
        figure.suptitle(f"after block {block}: {self.tokens[block]} tokens left{note}")
        return figure


def draw_gates(candidates: Tensor, gates: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Figure:
    """Keep probability and hard mask over ranks, below them the gradient over the candidates.

    gates: title -> (keep probability [N], mask [N], gradient [K]).
    """
    size = (2.5 * len(gates), 4)
    figure, axes = plt.subplots(2, len(gates), figsize=size, sharex=True)
    for (top, bottom), (title, gate) in zip(axes.T, gates.items(), strict=True):
        probability, mask, gradient = (part.detach().cpu() for part in gate)
        top.plot(probability, label="keep probability")
        top.step(range(len(mask)), mask, where="post", label="hard mask")
        top.set_title(title)
        bottom.plot(candidates, gradient, color="black")
        bottom.axhline(0, color="grey", lw=0.8)
        bottom.set_xlabel("rank / candidate")
    axes[0, 0].legend(loc="upper right", fontsize=8)
    axes[1, 0].set_ylabel("gradient of the loss")
    return figure
