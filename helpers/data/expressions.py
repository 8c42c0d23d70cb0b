"""Referring expressions for rooms: templates whose meaning is checked against the geometry.

Every sentence is built from a `Query`, and `meaning` says which instances satisfy it: those that
certainly do and those that possibly do. A sentence is kept when both sets are its target alone.
No relation depends on a point of view, so a turned or mirrored room keeps its sentences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from helpers.data.colours import COLOURS
from helpers.data.furniture import words
from helpers.data.rooms import Room

END = ("<none>", "<eos>")
CLASSES = (
    *words(
        "armchair bag ball bathtub bed bench bin box cabinet chair computer cylinder desk door "
        "fridge lamp oven plant shelf sink sofa stool table television toilet vase wardrobe "
        "washer window"
    ),
)
WORDS = (*words("the largest smallest near on under farthest from between and it is"),)
VOCABULARY = (*WORDS, *COLOURS, *CLASSES, *END)
ROLES = ("main", "attribute", "pronoun", "relation", "auxiliary")
MAX_TOKENS = 14  # the longest template with its two end tokens
ANCHORS_ONLY = {"door", "window"}  # flat in the wall: no superpoint tells them from it
GAP = 0.3  # metres by which the nearest and the farthest must win
SIZE_RATIO = 1.3  # volume ratio by which the largest and the smallest must win

Spans = dict[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Query:
    """What a sentence asks for: a class, and optionally a colour, a size, a relation to anchors.

    `size` is "largest" or "smallest"; `relation` near, farthest, on, under or between; `anchors`
    are (class, colour or None), two for between.
    """

    label: str
    colour: str | None = None
    size: str | None = None
    relation: str | None = None
    anchors: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Expression:
    """A sentence about one instance of a room.

    tokens end in "<none>", "<eos>"; spans hold per role the half-open ranges of token indices;
    target is the instance; unique says that no other instance has its class.
    """

    tokens: tuple[str, ...]
    spans: Spans = field(hash=False)
    target: int
    name: str
    unique: bool
    query: Query

    @property
    def text(self) -> str:
        return " ".join(self.tokens[:-2])


def encode(tokens: tuple[str, ...] | list[str], length: int = MAX_TOKENS) -> torch.Tensor:
    """Indices into VOCABULARY [length] int64, padded with -1.

    Raises KeyError with the vocabulary for an unknown word, ValueError for too many tokens.
    """
    unknown = [token for token in tokens if token not in VOCABULARY]
    if unknown:
        raise KeyError(f"unknown words {unknown}; the vocabulary is: {' '.join(VOCABULARY)}")
    if len(tokens) > length:
        raise ValueError(f"the sentence has {len(tokens)} tokens; at most {length} are allowed")
    ids = [VOCABULARY.index(token) for token in tokens]
    return torch.tensor(ids + [-1] * (length - len(ids)))


def sentence(query: Query, pronoun: bool = False) -> tuple[tuple[str, ...], Spans]:
    """The tokens and spans of a query; with `pronoun` the colour follows as "it is red"."""
    tokens: list[str] = []
    spans: Spans = {role: [] for role in ROLES}

    def say(*words: str, role: str | None = None) -> None:
        if role:
            spans[role].append((len(tokens), len(tokens) + len(words)))
        tokens.extend(words)

    say("the")
    if query.size:
        say(query.size, role="attribute")
    if query.colour and not pronoun:
        say(query.colour, role="attribute")
    say(query.label, role="main")
    if query.relation:
        phrase = ("farthest", "from") if query.relation == "farthest" else (query.relation,)
        say(*phrase, role="relation")
        for number, (label, colour) in enumerate(query.anchors):
            say(*(["and"] * (number > 0)), "the", *([colour] if colour else []))
            say(label, role="auxiliary")
    if query.colour and pronoun:
        say("it", role="pronoun")
        say("is")
        say(query.colour, role="attribute")
    return (*tokens, *END), spans


def _described(room: Room, label: str, colour: str | None) -> tuple[set[int], set[int]]:
    """The instances that certainly and possibly fit a class and a colour."""
    same = [i for i, other in enumerate(room.labels) if other == label]
    if colour is None:
        return set(same), set(same)
    certain = {i for i in same if room.colours[i] == colour}
    return certain, certain | {i for i in same if room.colours[i] is None}


def meaning(room: Room, query: Query) -> tuple[set[int], set[int]]:
    """The instances that certainly satisfy a query, and those that possibly do.

    An anchor that is not unique makes every candidate possible and none certain.
    """
    certain, possible = _described(room, query.label, query.colour)
    if query.size and possible:
        certain, possible = _extreme_size(room, certain, possible, query.size)
    if not query.relation or not possible:
        return certain, possible
    anchors = []
    for label, colour in query.anchors:
        sure, maybe = _described(room, label, colour)
        if len(sure) != 1 or sure != maybe:
            return set(), possible
        anchors.extend(sure)
    certain, possible = certain - set(anchors), possible - set(anchors)
    return _related(room, certain, possible, query.relation, anchors)


def _extreme_size(room, certain, possible, size) -> tuple[set[int], set[int]]:
    order = sorted(possible)
    volumes = [room.sizes[order].prod(1), room.boxes[order, 3:].prod(1)]
    if size == "smallest":
        volumes = [1 / volume.clamp_min(1e-9) for volume in volumes]
    best = int(volumes[0].argmax())
    rivals = (volumes[0] * SIZE_RATIO >= volumes[0][best]) | (volumes[1] >= volumes[1][best])
    left = {i for i, rival in zip(order, rivals.tolist(), strict=True) if rival}
    return certain & {order[best]}, left


def _related(room, certain, possible, relation, anchors) -> tuple[set[int], set[int]]:
    order = sorted(possible)
    boxes = room.boxes.double()
    away = [(boxes[order, :3] - boxes[a, :3]).norm(dim=1) for a in anchors]
    if not order:
        return set(), set()
    if relation in ("near", "farthest"):
        distance = away[0] if relation == "near" else -away[0]
        best = int(distance.argmin())
        sure, maybe = {order[best]}, distance <= distance[best] + GAP
    elif relation == "between":
        apart = (boxes[anchors[0], :3] - boxes[anchors[1], :3]).norm().clamp_min(1.0)
        detour = (away[0] + away[1]) / apart
        sure = {i for i, d in zip(order, detour.tolist(), strict=True) if d < 1.1}
        maybe = detour < 1.3
    else:
        host = room.on if relation == "on" else room.under
        sure = {i for i in order if int(host[i]) == anchors[0]}
        maybe = _perhaps(boxes, order, anchors[0], relation)
    rivals = {i for i, rival in zip(order, maybe.tolist(), strict=True) if rival}
    return certain & sure, (rivals | sure) & possible


def _perhaps(boxes, order, anchor, relation) -> torch.Tensor:
    """Whether an instance could be taken for one that lies on or under the anchor."""
    mine, host = boxes[order], boxes[anchor]
    inside = ((mine[:, :2] - host[:2]).abs() <= host[3:5] / 2 + 0.05).all(1)
    low, high = mine[:, 2] - mine[:, 5] / 2, mine[:, 2] + mine[:, 5] / 2
    top = host[2] + host[5] / 2
    above = (low > 0.15) & (low < top + 0.1)
    below = (low < 0.15) & (high < top + 0.05)
    return inside & (above if relation == "on" else below)


def holds(room: Room, expression: Expression) -> bool:
    """Whether exactly the target satisfies the expression, with the margins of this module."""
    certain, possible = meaning(room, expression.query)
    return certain == possible == {expression.target}


def _queries(room: Room, target: int):
    """All queries that could describe an instance, as (kind, query)."""
    label, colour = room.labels[target], room.colours[target]
    names = [(other, None) for other in sorted({str(x) for x in room.labels})]
    painted = sorted({(str(a), b) for a, b in zip(room.labels, room.colours, strict=True) if b})
    others = [name for name in names + painted if name[0] != label]
    yield "class", Query(label)
    if colour:
        yield "colour", Query(label, colour)
    for size in ("largest", "smallest"):
        if room.labels.count(label) > 1:
            yield "size", Query(label, size=size)
    for anchor in others:
        for relation in ("near", "farthest"):
            if room.labels.count(label) > 1:
                yield relation, Query(label, relation=relation, anchors=(anchor,))
        for relation, host in (("on", room.on), ("under", room.under)):
            if int(host[target]) >= 0 and room.labels[int(host[target])] == anchor[0]:
                yield relation, Query(label, relation=relation, anchors=(anchor,))
    for first, one in enumerate(names):
        for two in names[first + 1 :]:
            if label not in (one[0], two[0]):
                yield "between", Query(label, relation="between", anchors=(one, two))


def refer(
    room: Room, seed: int = 0, count: int = 8, per_target: int = 3, per_small: int = 1
) -> list[Expression]:
    """Up to `count` unambiguous expressions, kinds in turn, at most `per_target` per instance.

    Instances below 0.6 m in every direction are referred to at most `per_small` times. The kinds
    are class, colour, size, near, farthest, on, under, between. Deterministic by the room's seed
    and `seed`. A room in which little can be said unambiguously gives fewer.
    """
    rng = np.random.default_rng([room.seed, seed, 7])
    found: dict[str, list[tuple[int, Query]]] = {}
    for target, label in enumerate(room.labels):
        if label in ANCHORS_ONLY:
            continue
        for kind, query in _queries(room, target):
            certain, possible = meaning(room, query)
            if certain == possible == {target}:
                found.setdefault(kind, []).append((target, query))
    piles = {kind: [pile[i] for i in rng.permutation(len(pile))] for kind, pile in found.items()}
    kinds, chosen, used = rng.permutation(sorted(piles)).tolist(), [], {}
    small = (room.sizes < 0.6).all(1).tolist()
    limit = [per_small if little else per_target for little in small]
    while kinds and len(chosen) < count:
        kind = kinds.pop(0)
        pile = [item for item in piles[kind] if used.get(item[0], 0) < limit[item[0]]]
        if not pile:
            continue
        pile.sort(key=lambda item: (small[item[0]], used.get(item[0], 0)))
        target, query = pile[0]
        piles[kind] = [item for item in pile[1:] if item[1] != query]
        used[target] = used.get(target, 0) + 1
        tokens, spans = sentence(query, pronoun=bool(rng.random() < 0.3))
        name = room.labels[target]
        unique = room.labels.count(name) == 1
        chosen.append(Expression(tokens, spans, target, name, unique, query))
        kinds.append(kind)
    return chosen


def scanrefer_records(scene_id: str, expressions: list[Expression]) -> list[dict]:
    """The expressions of a room in ScanRefer's layout (tokens without the two end tokens)."""
    return [
        {
            "scene_id": scene_id,
            "object_id": str(expression.target),
            "object_name": expression.name,
            "ann_id": str(number),
            "token": list(expression.tokens[:-2]),
            "description": expression.text,
        }
        for number, expression in enumerate(expressions)
    ]
