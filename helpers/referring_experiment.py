"""The frame of a text-to-mask experiment: prepared data, networks that are loaded or trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers import models
from helpers.alignment import keypoint_targets, token_positive_map
from helpers.data.expressions import MAX_TOKENS
from helpers.grounding_sizes import NETWORKS
from helpers.referring import Scenes, Sentences, collect_scenes, collect_sentences, random_batches
from helpers.referring_rooms import MAKERS, language_features, referring_rooms
from helpers.referring_study import answers_of
from helpers.referring_training import Referrer, evaluate, summary, train
from helpers.seed_labels import warm_up


@dataclass
class Source:
    """Rooms with sentences: what they are, how they are cut, which seeds a superpoint pools.

    cut(xyz, normals) gives superpoints of arrays [N, 3]; group(seed_xyz, points, superpoint)
    pooled seeds. ScanNet's scenes bring superpoints of their own.
    """

    dataset: str
    num_points: int
    sentences: int
    data_root: Path | None
    network: str
    cut: Callable
    group: Callable

    @property
    def generated(self) -> bool:
        """Whether rooms and sentences are made here."""
        return self.dataset in MAKERS

    @property
    def text_width(self) -> int:
        """Channels of ready text features, 0 for indices of words."""
        return 0 if self.generated else 768

    @cached_property
    def features(self):
        """None, or the language model's features of words."""
        if self.generated:
            return None
        return language_features(Path(self.data_root or "") / "roberta-base")

    def superpoints(self, room) -> Tensor:
        """Superpoint ids [N] of a room."""
        if hasattr(room, "superpoint"):
            return room.superpoint
        return torch.as_tensor(self.cut(room.xyz.numpy(), room.normals.numpy()))

    def prepare(self, first: int, many: int, split: str = "val") -> tuple[list, Scenes, Sentences]:
        """`many` rooms from seed `first` (or the first ones of a split) as tensors."""
        where = self.num_points, self.sentences, self.data_root, split
        rooms, said = referring_rooms(self.dataset, range(first, first + many), *where)
        size = NETWORKS[self.network]
        scenes = collect_scenes(rooms, self.superpoints, self.group, size["levels"], size["ups"])
        longest = max(len(e.tokens) for expressions in said for e in expressions)
        length, slots = (MAX_TOKENS, 16) if self.generated else (longest, 256)
        make = (rooms, said, scenes, token_positive_map, keypoint_targets, length, slots)
        return rooms, scenes, collect_sentences(*make, self.features)


@dataclass
class Recipe:
    """How networks are trained: steps on labels of seeds, then with text, then of the variants,
    peak rate, the share of it for the text-to-box part of a variant, batches, and a folder for
    states, or ""."""

    warm_steps: int
    rec_steps: int
    extra_steps: int
    lr: float
    rest: float
    rooms_each: int
    sentences_each: int
    state: str = ""


@dataclass
class Study:
    """Networks of one study: loaded from the committed ones or trained on `data()`, which gives
    rooms, scenes and sentences.

    build(kind) makes a new one, loss and answer are those of `train` and `evaluate`, test holds
    scenes and sentences for the figures in the manifest.
    """

    name: str
    build: Callable[[str], Referrer]
    loss: Callable
    answer: Callable
    data: Callable[[], tuple[list, Scenes, Sentences]]
    test: tuple[Scenes, Sentences]
    recipe: Recipe
    session: object

    @cached_property
    def _data(self):
        return self.data()

    def run(self, kind: str, model: Referrer, base: Referrer | None = None) -> dict:
        """Train a network, from the weights of `base`; returns recipe and figures."""
        r, session = self.recipe, self.session
        if base is not None:
            model.rec.load_state_dict(base.rec.state_dict())
        rooms, scenes, sentences = self._data
        shape = r.rooms_each, r.sentences_each
        draws = random_batches(scenes, sentences, *shape, session.generator(1), session.device)
        if base is None and r.warm_steps:
            options = {"steps": r.warm_steps, "rooms_each": r.rooms_each, "session": session}
            warm_up(model.rec, rooms, scenes, **options)
        steps, rest = (r.rec_steps, 1.0) if base is None else (r.extra_steps, r.rest)
        rest = 0.0 if kind == "frozen" else rest
        path = Path(r.state, f"{kind}.pt") if r.state else ""
        options = {"lr": r.lr, "rest": rest, "session": session, "resume": path}
        train(model, draws, self.loss, steps=steps, description=kind, **options)
        found = evaluate(model, *self.test, self.answer, session=session)
        figures = summary(found, self.test[1].unique)
        told = f"{steps} steps of {shape[0]} rooms x {shape[1]} sentences, AdamW {r.lr:g}"
        if base is None:
            told = f"{r.warm_steps} steps on labels of seeds, {told}"
        else:
            told = f"from the text-to-box network: {told}, {rest:g} of it for that part"
        return {"recipe": told, **{name: round(value, 3) for name, value in figures.items()}}

    def obtain(self, kind: str, base: Referrer | None, weights: str, retrain: bool) -> Referrer:
        """A network of that kind, "committed" (trained and stored with `retrain`) or "train"."""
        torch.manual_seed(self.session.seed)

        def stored(model: nn.Module) -> dict:
            figures = self.run(kind, model, base)
            model.half()  # two bytes a weight
            return figures

        if weights == "committed":
            name = f"{self.name}_{kind}"
            return models.checkpoint(name, lambda: self.build(kind), stored, retrain).float()
        model = self.build(kind)
        self.run(kind, model, base)
        return model


def train_branch(
    rec: nn.Module, branch: nn.Module, scenes: Scenes, sentences: Sentences, loss: Callable,
    steps: int, session, lr: float = 3e-3,
) -> list[float]:  # fmt: skip
    """Mask losses of each step of a branch on a frozen network, whose answers are found once."""
    model = Referrer(rec, branch)
    pool = answers_of(model, scenes, sentences, 4, session)
    known = {id(batch): out for batch, out in pool}
    options = {"steps": steps, "lr": lr, "rest": 0.0, "session": session}
    batches = cycle([batch for batch, _ in pool])
    history = train(model, batches, loss, known=lambda batch: known[id(batch)], **options)
    return [row["focal"] + row["dice"] for row in history]
