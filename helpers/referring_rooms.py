"""Rooms with sentences, generated or read from ScanNet with ScanRefer, SR3D or NR3D."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.data.expressions import Expression, Query, refer
from helpers.data.rooms import furnished_room, primitive_room
from helpers.data.scannet import parse_sentence, read_referit3d, read_scanrefer, read_scene

MAKERS = {"primitive": primitive_room, "furnished": furnished_room}
FILES = {"scanrefer": "ScanRefer_filtered_{}.json", "sr3d": "sr3d.csv", "nr3d": "nr3d.csv"}


def referring_rooms(
    dataset: str,
    seeds: Sequence[int],
    num_points: int,
    sentences: int,
    data_root: Path | None = None,
    split: str = "val",
) -> tuple[list, list[list[Expression]]]:
    """Rooms and the expressions of each.

    Generated ones (primitive, furnished) have one room a seed and up to `sentences` expressions.
    Of ScanNet the first len(seeds) scenes of the table are read, with all their sentences; the
    roles of words come from a rule parser, and sentences without the object's name are left out
    with a warning that counts them. Raises FileNotFoundError naming the path looked at.
    """
    if dataset in MAKERS:
        rooms = [MAKERS[dataset](seed, num_points) for seed in seeds]
        return rooms, [refer(room, count=sentences) for room in rooms]
    if data_root is None:
        raise FileNotFoundError(
            f"dataset={dataset} needs data_root: the folder that holds scans/ and "
            f"{FILES[dataset].format(split)} (data/README.md)"
        )
    path = Path(data_root) / FILES[dataset].format(split)
    records = read_scanrefer(path) if dataset == "scanrefer" else read_referit3d(path)
    names = list(dict.fromkeys(record["scene_id"] for record in records))[: len(seeds)]
    rooms = [read_scene(data_root, name, num_points) for name in names]
    said, skipped = [], 0
    for name, room in zip(names, rooms, strict=True):
        own = [record for record in records if record["scene_id"] == name]
        parsed = [_expression(room, record) for record in own]
        said.append([expression for expression in parsed if expression is not None])
        skipped += parsed.count(None)
    if skipped:
        warnings.warn(
            f"{skipped} of {len(records)} sentences left out: the object's name does not occur, "
            "or the object has no point",
            stacklevel=2,
        )
    return rooms, said


def _expression(room, record: dict) -> Expression | None:
    parsed = parse_sentence(record["token"], record["object_name"], set(room.labels))
    if parsed is None or record["object_id"] not in room.object_ids:
        return None
    target = room.object_ids.index(record["object_id"])
    label = room.labels[target]
    unique = room.labels.count(label) == 1
    return Expression(*parsed, target, record["object_name"], unique, Query(label))


def language_features(folder: Path) -> Callable[[tuple[str, ...]], Tensor]:
    """A function from words to features [words, 768] of a frozen RoBERTa in `folder`.

    Each word gets the mean of its sub-words, in half precision. Needs `transformers`; raises
    FileNotFoundError with the path looked at, ImportError that says what to install.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder / 'config.json'} is missing: put roberta-base "
            "(https://huggingface.co/FacebookAI/roberta-base) into that folder"
        )
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ImportError("text features need `pip install transformers`") from error
    tokenizer = AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def features(words: tuple[str, ...]) -> Tensor:
        coded = tokenizer(list(words), is_split_into_words=True, return_tensors="pt")
        owner = np.array([-1 if i is None else i for i in coded.word_ids()])
        hidden = model(**coded).last_hidden_state[0]
        return torch.stack([hidden[owner == i].mean(0) for i in range(len(words))]).half()

    return features
