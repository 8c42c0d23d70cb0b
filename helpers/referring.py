"""Rooms and sentences as tensors: prepared once, drawn in batches, turned and mirrored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from helpers.boxes import box_to_mask, generalized_box_iou_3d
from helpers.data.expressions import ROLES, Expression, encode
from helpers.point_networks import Level, Neighbourhood, neighbourhood
from helpers.point_sets import take

MEAN_COLOUR = (109.8 / 256, 97.2 / 256, 83.8 / 256)  # subtracted from rgb in [0, 1]
ROOMS_AT_ONCE, SENTENCES_AT_ONCE = 16, 128


def pad_columns(values: Tensor, count: int) -> Tensor:
    """Values [..., C] cut or padded with zeros to [..., count]."""
    return torch.nn.functional.pad(values, (0, count - values.shape[-1]))


@dataclass
class Scenes:
    """R rooms of N points, with up to M superpoints and S seeds.

    xyz, rgb [R, N, 3] (rgb with its mean subtracted), superpoint and instance [R, N], near,
    seeds [R, S] (point of each seed), pooled [R, M, n] (seeds of each superpoint), empty [R, M]
    (no seed in the ball), counts [R, M] (points in each superpoint, 0 for padding), real [R, N]
    (False for the points that fill up a smaller room: copies of its point 0, of no instance).
    """

    xyz: Tensor
    rgb: Tensor
    superpoint: Tensor
    instance: Tensor
    near: Neighbourhood
    seeds: Tensor
    pooled: Tensor
    empty: Tensor
    counts: Tensor
    real: Tensor

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass
class Sentences:
    """n sentences with one target each: room [n], target [n] (instance), tokens [n, L] int64,
    num_tokens [n], maps (a role: [n, C]), boxes [n, 6], hits [n, M] (target points in each
    superpoint), keypoints [n, S] bool (the target's nearest seeds), unique [n] bool, texts (n).
    """

    room: Tensor
    target: Tensor
    tokens: Tensor
    num_tokens: Tensor
    maps: dict[str, Tensor]
    boxes: Tensor
    hits: Tensor
    keypoints: Tensor
    unique: Tensor
    texts: list[str]

    def __len__(self) -> int:
        return len(self.room)

    def of_room(self, room: int) -> list[int]:
        """Indices of a room's sentences."""
        return (self.room == room).nonzero().flatten().tolist()


@dataclass
class Batch:
    """B sentences about R rooms, on one device; fields as in Scenes [R] and Sentences [B].

    room_of [B] indexes the batch's rooms; pooled [B, M, n], counts [B, M]; truth [B, N] bool;
    real [B, N].
    """

    xyz: Tensor
    rgb: Tensor
    near: Neighbourhood
    room_of: Tensor
    tokens: Tensor
    num_tokens: Tensor
    maps: dict[str, Tensor]
    boxes: Tensor
    hits: Tensor
    keypoints: Tensor
    pooled: Tensor
    counts: Tensor
    truth: Tensor
    real: Tensor

    def inputs(self) -> tuple:
        """What the network takes."""
        return self.xyz, self.rgb, self.near, self.tokens, self.room_of

    def points_as_superpoints(self) -> Batch:
        """The same batch with every point a superpoint of its own."""
        return replace(self, hits=self.truth.float(), counts=self.real.float())


@dataclass
class Answers:
    """For B sentences: query [B], box [B, 6], its IoU, the mask IoU of all points in that box and
    of the branch [B], and the branch's superpoint mask [B, M] or None."""

    query: Tensor
    box: Tensor
    box_iou: Tensor
    boxed_iou: Tensor
    mask_iou: Tensor
    mask: Tensor | None


def answers(top: Tensor, out, batch: Batch, masks: Tensor | None = None) -> Answers:
    """Boxes and masks of the queries top [B], judged; masks [B, Q, M] of a branch, if any."""
    rows = torch.arange(len(top), device=top.device)
    box = out.boxes[-1][rows, top].float()
    iou = generalized_box_iou_3d(box[:, None], batch.boxes[:, None])[1].flatten()
    inside, truth = box_to_mask(batch.xyz[batch.room_of], box) & batch.real, batch.truth
    boxed = (inside & truth).sum(1) / (inside | truth).sum(1).clamp_min(1)
    if masks is None:
        return Answers(top, box, iou, boxed, torch.zeros_like(boxed), None)
    hard = masks[rows, top] > 0
    return Answers(top, box, iou, boxed, superpoint_iou(hard, batch.hits, batch.counts), hard)


def superpoint_iou(hard: Tensor, hits: Tensor, counts: Tensor) -> Tensor:
    """Point IoU [...] of superpoint masks hard [..., M] with a target: hits and counts [..., M]."""
    both = (hard * hits).sum(-1)
    return both / ((hard * counts).sum(-1) + hits.sum(-1) - both).clamp_min(1)


def collect_scenes(
    rooms: Sequence,
    superpoints: Callable[[object], Tensor],
    group: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    levels: Sequence[Level],
    ups: int = 0,
) -> Scenes:
    """Scenes of Room objects; superpoints(room) gives ids [N], group the pooled seeds."""
    count = max(len(room.xyz) for room in rooms)
    fill = [torch.arange(count).where(torch.arange(count) < len(r.xyz), 0) for r in rooms]
    real = torch.stack([torch.arange(count) < len(room.xyz) for room in rooms])
    xyz = torch.stack([room.xyz[f] for room, f in zip(rooms, fill, strict=True)])
    rgb = torch.stack([room.rgb[f] for room, f in zip(rooms, fill, strict=True)])
    superpoint = torch.stack([superpoints(r)[f] for r, f in zip(rooms, fill, strict=True)])
    instance = torch.stack([room.instance[f] for room, f in zip(rooms, fill, strict=True)])
    instance, rgb = instance.where(real, -1), rgb - torch.tensor(MEAN_COLOUR)
    parts = [neighbourhood(part, levels, ups) for part in xyz.split(ROOMS_AT_ONCE)]
    near = Neighbourhood.cat(parts)
    seeds = near.centres[:, : levels[len(levels) - 1 - ups].centres]
    most = int(superpoint.max()) + 1
    found = []
    for rows in torch.arange(len(xyz)).split(ROOMS_AT_ONCE):
        index, empty = group(take(xyz[rows], seeds[rows]), xyz[rows], superpoint[rows])
        missing = most - index.shape[1]
        pad = torch.nn.functional.pad
        found.append((pad(index, (0, 0, 0, missing)), pad(empty, (0, missing))))
    pooled, empty = (torch.cat(part) for part in zip(*found, strict=True))
    counts = torch.zeros(len(xyz), most).scatter_add_(1, superpoint, real.float())
    empty = empty & (counts > 0)
    return Scenes(xyz, rgb, superpoint, instance, near, seeds, pooled, empty, counts, real)


def collect_sentences(
    rooms: Sequence,
    expressions: Sequence[Sequence[Expression]],
    scenes: Scenes,
    token_map: Callable,
    keypoints: Callable,
    length: int,
    slots: int,
    features: Callable[[tuple[str, ...]], Tensor] | None = None,
) -> Sentences:
    """Sentences of all rooms, in order. token_map(spans, offsets, size) gives a role's map,
    keypoints(seed_xyz, seed_instance, boxes) the positive seeds [T, S]. With features(words)
    tokens are those [n, L, C], padded with zeros, and not indices into the vocabulary."""
    flat = [(r, e) for r, found in enumerate(expressions) for e in found]
    room = torch.tensor([r for r, _ in flat])
    target = torch.tensor([e.target for _, e in flat])
    numbers = torch.tensor([len(e.tokens) for _, e in flat])
    offsets = [(j, j + 1) for j in range(length)]
    maps = {
        role: torch.stack([token_map(e.spans[role], offsets, slots) for _, e in flat])
        for role in ROLES
    }

    def words(tokens):
        if features is None:
            return encode(tokens, length)
        if len(tokens) > length:
            raise ValueError(f"a sentence has {len(tokens)} tokens; at most {length} are allowed")
        found = features(tokens)
        return torch.nn.functional.pad(found, (0, 0, 0, length - len(found)))

    hits = torch.zeros(len(flat), scenes.counts.shape[1])
    for rows in torch.arange(len(flat)).split(SENTENCES_AT_ONCE):
        truth = scenes.instance[room[rows]] == target[rows, None]
        part = torch.zeros(len(rows), hits.shape[1])
        hits[rows] = part.scatter_add_(1, scenes.superpoint[room[rows]], truth.float())
    owner = scenes.instance.gather(1, scenes.seeds)
    seed_xyz = take(scenes.xyz, scenes.seeds)
    positive = [keypoints(seed_xyz[r], owner[r], thing.boxes) for r, thing in enumerate(rooms)]
    return Sentences(
        room,
        target,
        torch.stack([words(e.tokens) for _, e in flat]),
        numbers,
        maps,
        torch.stack([rooms[r].boxes[e.target] for r, e in flat]),
        hits,
        torch.stack([positive[r][e.target] for r, e in flat]),
        torch.tensor([e.unique for _, e in flat]),
        [e.text for _, e in flat],
    )


def turns(count: int, generator: torch.Generator) -> Tensor:
    """Random quarter turns and mirrors about the vertical axis: matrices [count, 3, 3]."""
    signs = 1 - 2 * torch.randint(0, 2, (count, 2), generator=generator).float()
    swap = torch.randint(0, 2, (count,), generator=generator).bool()
    matrix = torch.diag_embed(torch.cat([signs, torch.ones(count, 1)], 1))
    return torch.where(swap[:, None, None], matrix[:, [1, 0, 2]], matrix)


def make_batch(
    scenes: Scenes,
    sentences: Sentences,
    rooms: Tensor,
    chosen: Tensor,
    device: torch.device | str = "cpu",
    matrices: Tensor | None = None,
) -> Batch:
    """Sentences `chosen` [B] about `rooms` [R], which must hold their rooms.

    matrices [R, 3, 3] turn or mirror the rooms (signed permutations, so boxes stay boxes).
    """
    where = {r: i for i, r in enumerate(rooms.tolist())}
    room_of = torch.tensor([where[r] for r in sentences.room[chosen].tolist()])
    xyz, boxes = scenes.xyz[rooms], sentences.boxes[chosen]
    if matrices is not None:
        xyz = xyz @ matrices.transpose(1, 2)
        turn = matrices[room_of]
        boxes = torch.cat(
            [torch.einsum("bij,bj->bi", m, part) for m, part in
             ((turn, boxes[:, :3]), (turn.abs(), boxes[:, 3:]))], 1
        )  # fmt: skip
    own = sentences.room[chosen]
    truth = scenes.instance[own] == sentences.target[chosen][:, None]
    batch = (
        xyz, scenes.rgb[rooms], scenes.near[rooms], room_of, sentences.tokens[chosen],
        sentences.num_tokens[chosen], None, boxes, sentences.hits[chosen],
        sentences.keypoints[chosen], scenes.pooled[own], scenes.counts[own], truth,
        scenes.real[own],
    )  # fmt: skip
    moved = [part if part is None else part.to(device) for part in batch]
    moved[6] = {role: m[chosen].to(device) for role, m in sentences.maps.items()}
    return Batch(*moved)


def random_batches(
    scenes: Scenes,
    sentences: Sentences,
    rooms_each: int,
    sentences_each: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Endless batches: rooms without repetition in a pass, sentences drawn with replacement."""
    start = torch.searchsorted(sentences.room, torch.arange(len(scenes) + 1))
    many = start.diff()
    told = many.nonzero().flatten()
    if len(told) < rooms_each:
        raise ValueError(f"{len(told)} rooms have sentences; a batch needs {rooms_each}")
    while True:
        order = told[torch.randperm(len(told), generator=generator)]
        for rooms in order.split(rooms_each)[: len(order) // rooms_each]:
            shift = torch.rand(rooms_each, 1, generator=generator)
            steps = torch.arange(sentences_each)
            place = ((shift + steps / sentences_each) % 1 * many[rooms, None]).long()
            chosen = (start[rooms, None] + place).flatten()
            yield make_batch(scenes, sentences, rooms, chosen, device, turns(rooms_each, generator))


def ordered_batches(
    scenes: Scenes, sentences: Sentences, rooms_each: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Batch]]:
    """All sentences once, in order: (their indices, batch)."""
    for rooms in torch.arange(len(scenes)).split(rooms_each):
        chosen = ((sentences.room >= rooms[0]) & (sentences.room <= rooms[-1])).nonzero().flatten()
        if len(chosen):
            yield chosen, make_batch(scenes, sentences, rooms, chosen, device)
