"""Teach a point network classes, colours and boxes of the objects under its seeds, without text.

Text-to-box models start from the point network of a detector; this is the small stand-in for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from helpers.data.expressions import VOCABULARY
from helpers.referring import Scenes, turns
from helpers.referring_training import schedule


@dataclass
class SeedLabels:
    """For R rooms of S seeds: inside [R, S] (on an object), label and colour [R, S] (indices into
    the vocabulary, -1 unknown), boxes [R, S, 6] of the seed's object."""

    inside: Tensor
    label: Tensor
    colour: Tensor
    boxes: Tensor


def seed_labels(rooms: Sequence, scenes: Scenes) -> SeedLabels:
    """What lies under each seed of generated rooms."""
    owner = scenes.instance.gather(1, scenes.seeds)
    place = {word: i for i, word in enumerate(VOCABULARY)}
    parts = []
    for room, own in zip(rooms, owner, strict=True):
        label = torch.tensor([place[word] for word in room.labels])[own]
        colour = torch.tensor([place.get(word, -1) for word in room.colours])[own]
        outside = own < 0
        label, colour = label.masked_fill(outside, -1), colour.masked_fill(outside, -1)
        parts.append((~outside, label, colour, room.boxes[own]))
    return SeedLabels(*(torch.stack(column) for column in zip(*parts, strict=True)))


class SeedHead(nn.Module):
    """On-object logit, label and colour logits, and box of a seed's object from its features."""

    def __init__(self, width: int):
        super().__init__()
        self.words = len(VOCABULARY)
        self.out = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1 + 2 * self.words + 6)
        )

    def forward(self, feats: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        inside, label, colour, shift, size = self.out(feats).split(
            (1, self.words, self.words, 3, 3), -1
        )
        return inside[..., 0], label, colour, torch.cat([place + shift, F.softplus(size)], -1)


def label_loss(found: tuple[Tensor, ...], inside, label, colour, boxes) -> Tensor:
    """Cross-entropies of what a seed lies on, and 2 x the L1 error of the box in metres."""
    told, words, paints, box = (part.float() for part in found)
    loss = F.binary_cross_entropy_with_logits(told, inside.float())
    loss = loss + F.cross_entropy(words.flatten(0, 1), label.flatten(), ignore_index=-1)
    loss = loss + F.cross_entropy(paints.flatten(0, 1), colour.flatten(), ignore_index=-1)
    error = (box - boxes).abs().sum(-1)
    return loss + 2 * (error * inside).sum() / inside.sum().clamp_min(1)


def warm_up(
    rec: nn.Module, rooms: Sequence, scenes: Scenes, *, steps: int, rooms_each: int, session,
    lr: float = 2e-3,
) -> list[float]:  # fmt: skip
    """Train the point network of a `grounding.Grounder`, the self-attention of its seeds and their
    positions on labels of seeds; returns the losses."""
    labels, generator = seed_labels(rooms, scenes), session.generator(3)
    torch.manual_seed(session.seed)
    width = rec.start.in_features
    head, first = SeedHead(width).to(session.device), rec.encoder[0].seeds_self
    rec.to(session.device).train()
    parts = nn.ModuleList([rec.points, rec.seed_place, first, head])
    optimizer = torch.optim.AdamW(parts.parameters(), lr=lr, weight_decay=5e-4, fused=True)
    history = []
    for step in tqdm(range(steps), desc="labels of seeds", leave=False):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, steps, 100)
        rows = torch.randint(len(scenes), (rooms_each,), generator=generator)
        turn = turns(rooms_each, generator)
        boxes = labels.boxes[rows]
        centre = torch.einsum("bij,bsj->bsi", turn, boxes[..., :3])
        size = torch.einsum("bij,bsj->bsi", turn.abs(), boxes[..., 3:])
        xyz = (scenes.xyz[rows] @ turn.transpose(1, 2)).to(session.device)
        targets = labels.inside[rows], labels.label[rows], labels.colour[rows]
        targets = [t.to(session.device) for t in (*targets, torch.cat([centre, size], -1))]
        with session.autocast():
            near = scenes.near[rows].to(session.device)
            _, (place, feats) = rec.points(xyz, scenes.rgb[rows].to(session.device), near)
            pos = rec.seed_place(place)
            found = head(first(feats, x_pos=pos, memory_pos=pos), place)
        loss = label_loss(found, *targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        history.append(loss.detach())
    return torch.stack(history).tolist()
