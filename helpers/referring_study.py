"""What surrounds a text-to-mask experiment: ceilings without a network, sized inputs, overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from helpers.boxes import box_to_mask
from helpers.data.expressions import VOCABULARY
from helpers.point_networks import Level, Neighbourhood
from helpers.point_sets import take
from helpers.referring import (
    SENTENCES_AT_ONCE,
    Answers,
    Batch,
    Scenes,
    Sentences,
    make_batch,
    ordered_batches,
    superpoint_iou,
)


def majority_ceiling(scenes: Scenes, sentences: Sentences) -> Tensor:
    """IoU [n] of the superpoints that lie in the target by more than half."""
    counts = scenes.counts[sentences.room]
    return superpoint_iou(2 * sentences.hits > counts, sentences.hits, counts)


def seed_ceiling(scenes: Scenes, sentences: Sentences, pooled: Tensor | None = None) -> Tensor:
    """IoU [n] when a superpoint is taken iff one of its pooled seeds [R, M, n] is the target's."""
    pooled = scenes.pooled if pooled is None else pooled
    owner = scenes.instance.gather(1, scenes.seeds)[sentences.room]
    own = owner == sentences.target[:, None]
    index, counts = pooled[sentences.room], scenes.counts[sentences.room]
    hard = own.gather(1, index.flatten(1)).view(index.shape).any(-1) & (counts > 0)
    return superpoint_iou(hard, sentences.hits, counts)


def ceilings_by_seeds(
    scenes: Scenes, sentences: Sentences, groups: dict[str, Callable], counts: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Mean seed ceiling for the first `counts` of the first level's centres as seeds, with each
    rule groups[name](seed_xyz, points, superpoint) -> (pooled, empty)."""
    table: dict[str, dict[int, float]] = {name: {} for name in groups}
    for name, group in groups.items():
        for count in counts:
            fewer = replace(scenes, seeds=scenes.near.centres[:, :count])
            place = take(scenes.xyz, fewer.seeds)
            pooled = group(place, scenes.xyz, scenes.superpoint)[0]
            table[name][count] = float(seed_ceiling(fewer, sentences, pooled).mean())
    return table


def box_ceiling(scenes: Scenes, sentences: Sentences) -> Tensor:
    """IoU [n] of all points inside the target's own box."""
    found = []
    for rows in torch.arange(len(sentences)).split(SENTENCES_AT_ONCE):
        room = sentences.room[rows]
        inside = box_to_mask(scenes.xyz[room], sentences.boxes[rows]) & scenes.real[room]
        truth = scenes.instance[room] == sentences.target[rows, None]
        found.append((inside & truth).sum(1) / (inside | truth).sum(1).clamp_min(1))
    return torch.cat(found)


def describe(scenes: Scenes, sentences: Sentences) -> str:
    """Numbers of rooms, points, superpoints, sentences, and the share with a unique class."""
    many = (scenes.counts > 0).sum(1).float().mean()
    return (
        f"{len(scenes)} rooms of {scenes.xyz.shape[1]:,} points, {many:.0f} superpoints each, "
        f"{len(sentences)} sentences, {sentences.unique.float().mean():.0%} unique, "
        f"{len(VOCABULARY)} words"
    )


def chance(scenes: Scenes, sentences: Sentences) -> float:
    """Share of sentences that a perfect box of a random instance of the room would answer."""
    many = scenes.instance.amax(1) + 1
    return float((1 / many[sentences.room]).mean())


@torch.no_grad()
def answers_of(model, scenes: Scenes, sentences: Sentences, rooms_each: int, session) -> list:
    """(batch, what the network underneath finds) for all sentences, in order and in eval mode."""
    model.to(session.device).eval()
    batches = ordered_batches(scenes, sentences, rooms_each, session.device)
    return [(batch, model.rec(*batch.inputs())) for _, batch in batches]


def sized_inputs(
    levels: Sequence[Level], ups: int, points: int, superpoints: int, tokens: int, channels: int
) -> tuple[tuple, Tensor]:
    """Random inputs of given sizes for timing: those of the network, superpoint ids [1, N].

    One room of 6 x 5 x 2.5 m with random neighbour lists, one sentence of random features.
    """
    rng = np.random.default_rng(0)
    xyz = (rng.random((points, 3)) * (6, 5, 2.5)).astype(np.float32)
    _, ids = cKDTree(xyz[rng.choice(points, superpoints, replace=False)]).query(xyz)
    sizes = [points] + [level.centres for level in levels]
    groups = [
        torch.from_numpy(rng.integers(0, below, (1, level.centres, level.samples)))
        for below, level in zip(sizes[:-1], levels, strict=True)
    ]
    nearest = [
        torch.from_numpy(rng.integers(0, sizes[-1 - up], (1, sizes[-2 - up], 3)))
        for up in range(ups)
    ]
    weights = [torch.full(index.shape, 1 / 3) for index in nearest]
    centres = torch.from_numpy(rng.permutation(points)[None, : sizes[1]])
    near = Neighbourhood(centres, groups, nearest, weights)
    xyz, colour = torch.from_numpy(xyz)[None], torch.rand(1, points, 3) - 0.4
    words = torch.randn(1, tokens, channels)
    inputs = xyz, colour, near, words, torch.zeros(1, dtype=torch.int64)
    return inputs, torch.from_numpy(ids)[None]


@torch.inference_mode()
def time_branches(
    rec: nn.Module, sparse: nn.Module, dense: nn.Module, inputs: tuple, ids: Tensor, device
) -> dict[str, float]:
    """Median seconds of a network and of its superpoint and dense branches, in eval mode."""
    rec, sparse, dense = (net.to(device).eval() for net in (rec, sparse, dense))
    inputs, ids = [part.to(device) for part in inputs], ids.to(device)
    out, (points, rgb, *_, room_of) = rec(*inputs), inputs
    jobs = {
        "REC": lambda: rec(*inputs),
        "SP": lambda: sparse(out.seed_xyz, out.seed_feats, points, ids, out.query),
        "HR": lambda: dense(out, points, rgb, room_of),
    }
    return {name: median_seconds(job, device) for name, job in jobs.items()}


def stereo_cloud(stride: int = 4) -> tuple[Tensor, Tensor]:
    """Points [N, 3] in metres and rgb [N, 3] of scikit-image's Middlebury motorcycle.

    The camera stands at 0 and looks along z, y points down.
    """
    from skimage.data import stereo_motorcycle

    left, _, disparity = stereo_motorcycle()
    v, u = np.mgrid[: left.shape[0] : stride, : left.shape[1] : stride]
    shift = disparity[v, u]
    keep = np.isfinite(shift)
    z = 994.978 * 0.193001 / (shift[keep] + 31.086)
    x, y = (u[keep] - 311.193) * z / 994.978, (v[keep] - 254.877) * z / 994.978
    points = np.stack([x, y, z], 1).astype(np.float32)
    return torch.from_numpy(points), torch.from_numpy(left[v, u][keep] / np.float32(255))


def _call(notebook: str, function: str, arguments: tuple):
    from helpers.notebooks import load

    return getattr(load(notebook), function)(*arguments)


def median_seconds(job: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Median seconds of job() after one call that does not count; CUDA work is waited for."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def overlap(
    notebook: str,
    function: str,
    inputs: Sequence[tuple],
    work: Callable[[int], object],
    rounds: int = 3,
) -> dict[str, float]:
    """Median seconds for all inputs of `function` (of a notebook's method cells, in a process of
    its own), of work(i) here, and of both when work(i) runs while input i + 1 is prepared."""
    seconds: dict[str, list[float]] = {"prepare": [], "work": [], "overlapped": []}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:

        def ask(i):
            return pool.submit(_call, notebook, function, inputs[i])

        ask(0).result()  # the process starts and imports
        for _ in range(rounds):
            for name in seconds:
                start, ready = time.perf_counter(), ask(0) if name == "overlapped" else None
                for i in range(len(inputs)):
                    if name == "prepare":
                        ask(i).result()
                    if name == "overlapped":
                        ready.result()
                        ready = ask(i + 1) if i + 1 < len(inputs) else None
                    if name != "prepare":
                        work(i)
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def one_room(scenes: Scenes, sentences: Sentences, room: int, device="cpu") -> Batch:
    """All sentences of one room."""
    chosen = (sentences.room == room).nonzero().flatten()
    return make_batch(scenes, sentences, torch.tensor([room]), chosen, device)


def on_hits(answers: Answers, rooms: Sequence, sentences: Sentences, least: float = 0.25) -> str:
    """Mean IoU of mask and of the points in the box where the box is right, and for each class."""
    hit = (answers.box_iou > least).numpy()
    mask, boxed = answers.mask_iou.numpy(), answers.boxed_iou.numpy()
    owners = zip(sentences.room.tolist(), sentences.target.tolist(), strict=True)
    label = np.array([rooms[r].labels[t] for r, t in owners])
    lines = [f"{'box right':12} {'n':>4} {'mask':>6} {'box2mask':>9}"]
    for name in ("all", *sorted(set(label[hit]))):
        rows = hit & ((label == name) | (name == "all"))
        lines.append(f"{name:12} {rows.sum():4} {mask[rows].mean():6.3f} {boxed[rows].mean():9.3f}")
    return "\n".join(lines)
