"""Train and evaluate a text-to-box network with an optional mask branch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers.referring import Answers, Batch, Scenes, Sentences, ordered_batches

SAVE_EVERY = 100  # steps between states of a training that can be resumed


class Referrer(nn.Module):
    """`rec`, a network from rooms and sentences to boxes, and `mask`, a branch or None.

    forward(batch) gives what `rec` found and the mask logits [B, Q, M], or None.
    """

    def __init__(self, rec: nn.Module, mask: nn.Module | None = None):
        super().__init__()
        self.rec, self.mask = rec, mask
        self.dense = mask is not None and not hasattr(mask, "masks")

    def forward(self, batch: Batch):
        """Grounded and logits; a branch without a method `masks` works on all points."""
        return self.on(self.rec(*batch.inputs()), batch)

    def on(self, out, batch: Batch):
        """The same from what `rec` found before."""
        if self.mask is None:
            return out, None
        if self.dense:
            return out, self.mask(out, batch.xyz, batch.rgb, batch.room_of)
        return out, self.mask.masks(out.seed_feats, batch.pooled, out.query)

    def view(self, batch: Batch) -> Batch:
        """The batch with superpoints as the branch sees them: a dense one sees single points."""
        return batch.points_as_superpoints() if self.dense else batch


def parameter_groups(model: Referrer, lr: float, rest: float) -> list[dict]:
    """`lr` for the mask branch, lr * rest for everything else (left out when rest is 0)."""
    groups = [{"params": list(model.rec.parameters()), "lr": lr * rest}] if rest else []
    if model.mask is not None:
        groups.append({"params": list(model.mask.parameters()), "lr": lr})
    return groups


def train(
    model: Referrer,
    batches: Iterator[Batch],
    loss: Callable[..., dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    session,
    rest: float = 1.0,
    weight_decay: float = 5e-4,
    clip: float = 1.0,
    warmup: int = 100,
    known: Callable[[Batch], object] | None = None,
    resume: str | Path = "",
    on_step: Callable[[int, dict], None] | None = None,
    description: str = "",
) -> list[dict[str, float]]:
    """AdamW with warm-up and cosine decay; loss(out, batch, masks) gives terms that are summed.

    With rest = 0 the network underneath is frozen, in eval mode and without gradient; `known`
    may then give what it finds. resume: file with the state of an interrupted training, read if
    it is there and written every 100 steps. Returns the terms of every step of this call.
    Raises FloatingPointError when one is not finite.
    """
    model.to(session.device).train()
    if not rest:
        model.rec.eval()
    groups = parameter_groups(model, lr, rest)
    peaks = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
    parameters = [p for group in groups for p in group["params"]]
    first = _read_state(resume, model, optimizer)
    history: list[dict[str, float]] = []
    bar = tqdm(range(first, steps), desc=description, leave=False)
    for step, batch in zip(bar, batches, strict=False):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, steps, warmup)
        with session.autocast(), torch.set_grad_enabled(bool(rest)):
            out = known(batch) if known else model.rec(*batch.inputs())
        with session.autocast():
            out, masks = model.on(out, batch)
        terms = loss(out, model.view(batch), None if masks is None else masks.float())
        total = sum(terms.values()) if rest else terms["focal"] + terms["dice"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        history.append({name: float(term.detach()) for name, term in terms.items()})
        if not math.isfinite(sum(history[-1].values())):
            raise FloatingPointError(f"the loss is {history[-1]} at step {step}")
        if resume and (step + 1) % SAVE_EVERY == 0:
            _write_state(resume, model, optimizer, step + 1)
        if on_step is not None:
            on_step(step, history[-1])
    model.eval()
    return history


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the peak rate: linear warm-up (at most a tenth of the steps), then half a cosine."""
    warmup = min(warmup, max(1, steps // 10))
    return min(1, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _read_state(path: str | Path, model: nn.Module, optimizer) -> int:
    if not path or not Path(path).is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _write_state(path: str | Path, model: nn.Module, optimizer, step: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    partial = Path(path).with_suffix(".part")
    torch.save(state, partial)
    os.replace(partial, path)


@torch.no_grad()
def evaluate(
    model: Referrer,
    scenes: Scenes,
    sentences: Sentences,
    answer: Callable[..., Answers],
    *,
    session,
    rooms_each: int = 8,
) -> Answers:
    """answer(out, batch, masks) for all sentences in order, on the CPU; masks padded to M."""
    model.to(session.device).eval()
    parts = []
    for _, batch in ordered_batches(scenes, sentences, rooms_each, session.device):
        with session.autocast():
            out, masks = model(batch)
        parts.append(answer(out, model.view(batch), None if masks is None else masks.float()))
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Answers(*(None if c[0] is None else torch.cat(c).cpu() for c in columns))


def summary(answers: Answers, unique: Tensor) -> dict[str, float]:
    """Acc@0.25 and Acc@0.5 of the box (all, unique, multiple), and the masks' mean IoU."""
    iou = answers.box_iou
    found = {"Acc@0.25": (iou > 0.25), "Acc@0.5": (iou > 0.5)}
    row = {name: hit.float().mean().item() for name, hit in found.items()}
    row["unique"] = found["Acc@0.25"][unique].float().mean().item()
    row["multiple"] = found["Acc@0.25"][~unique].float().mean().item()
    row["mIoU"] = answers.mask_iou.mean().item()
    row["mask@0.25"] = (answers.mask_iou > 0.25).float().mean().item()
    row["mask@0.5"] = (answers.mask_iou > 0.5).float().mean().item()
    row["box2mask"] = answers.boxed_iou.mean().item()
    return row


def print_rows(rows: dict[str, dict[str, float]], masks: Sequence[str]) -> None:
    """Print summaries, one row a network; figures of masks only for those named in `masks`."""
    first = next(iter(rows.values()))
    print(" " * 8, *(f"{name:>9}" for name in first))
    for kind, row in rows.items():
        shown = (name in ("mIoU", "mask@0.25", "mask@0.5") and kind not in masks for name in row)
        cells = (
            "-" if no else f"{value:.3f}" for no, value in zip(shown, row.values(), strict=True)
        )
        print(f"{kind:8}", *(f"{cell:>9}" for cell in cells))


def over_rooms(
    difference: Tensor, room: Tensor, seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """Mean of a difference per sentence [n] and its 95 % bootstrap interval over rooms [n]."""
    ids, place = np.unique(room.numpy(), return_inverse=True)
    total = np.bincount(place, difference.double().numpy())
    count = np.bincount(place)
    pick = np.random.default_rng(seed).integers(0, len(ids), (draws, len(ids)))
    means = total[pick].sum(1) / count[pick].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(total.sum() / count.sum()), float(low), float(high)


def interval(
    difference: Tensor, room: Tensor, seed: int = 0
) -> tuple[tuple[float, float, float], str]:
    """What `over_rooms` gives, and as text, with "inconclusive" when 0 lies inside."""
    mean, low, high = over_rooms(difference, room, seed)
    verdict = ", inconclusive" if low <= 0 <= high else ""
    return (mean, low, high), f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]{verdict}"
