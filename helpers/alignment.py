"""Losses that align candidates with the words of a sentence (EDA, Wu et al. 2023).

A target's `maps` hold, for each role of a word, [T, C]: how much of the role each token slot has.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.boxes import generalized_box_iou_3d
from helpers.data.expressions import ROLES
from helpers.referring import pad_columns


def token_positive_map(spans, offsets, size=256):
    """Map (size,): the sum over spans of 1 / (tokens in the span) on the span's tokens.

    spans: half-open character ranges; offsets: those of the sentence's tokens (L), no start token.
    """
    if len(offsets) > size:
        raise ValueError(f"the sentence has {len(offsets)} tokens; there are {size} slots")
    total = torch.zeros(size)
    for first, last in spans:
        inside = [j for j, (a, b) in enumerate(offsets) if a < last and b > first]
        total[inside] += 1 / max(1, len(inside))
    return total


def focal(logits, y, alpha=0.25):
    """Sigmoid focal loss with gamma = 2, element by element."""
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    return (alpha * y + (1 - alpha) * (1 - y)) * (p + y - 2 * p * y).square() * ce


def keypoint_targets(seed_xyz, seed_instance, gt_boxes, topk=4):
    """The topk seeds (T, S) bool of each target's own that are nearest to its centre, in sizes."""
    boxes = gt_boxes[:, None]
    away = ((seed_xyz - boxes[..., :3]) / (boxes[..., 3:] + 1e-6)).norm(dim=-1)
    own = seed_instance == torch.arange(len(gt_boxes), device=seed_xyz.device)[:, None]
    near = away.masked_fill(~own, torch.inf).topk(min(topk, len(seed_xyz)), 1, largest=False)
    return torch.zeros_like(own).scatter_(1, near.indices, True) & own


def keypoint_objectness_loss(logits, seed_xyz, seed_instance, gt_boxes, topk=4):
    """Focal loss (mean over seeds) of objectness logits (S,) for the targets' nearest seeds."""
    y = keypoint_targets(seed_xyz, seed_instance, gt_boxes, topk).any(0)
    return focal(logits, y.to(logits)).mean()


def position_alignment_loss(
    logits, maps, match, num_targets=None, weights=(0.6, 0.2, 0.2, 0.1), eos_coef=0.1
):
    """Soft cross-entropy of token logits (Q, C) with each matched target's words."""
    queries, targets = match
    n = len(queries) if num_targets is None else num_targets
    if n == 0:
        return logits.sum() * 0
    y, w = torch.zeros_like(logits), torch.full_like(logits[:, 0], eos_coef)
    y[:, -1] = 1
    y[queries] = sum(c * maps[role] for c, role in zip(weights, ROLES[:4], strict=True))[targets]
    w[queries] = 1
    terms = y * (y + 1e-6).log() - y * logits.log_softmax(-1)
    return (w[:, None] * terms).sum() / n


def semantic_alignment_loss(
    query_emb, token_emb, maps, match, num_targets=None, num_tokens=None, temperature=0.07,
    eos_coef=0.1,
):  # fmt: skip
    """Contrast of queries (Q, p) and tokens (L, p), both ways; a leading batch axis is allowed:
    then maps hold a row for each target of the batch, and match counts queries through."""
    if query_emb.dim() == 2:
        query_emb, token_emb = query_emb[None], token_emb[None]
    n = len(match[0]) if num_targets is None else num_targets
    if n == 0:
        return (query_emb.sum() + token_emb.sum()) * 0
    batch, queries, length = *query_emb.shape[:2], token_emb.shape[1]
    last = torch.as_tensor(length if num_tokens is None else num_tokens, device=query_emb.device)
    place, last = torch.arange(length, device=query_emb.device), last.reshape(-1, 1)
    valid, ends = place < last, (place < last) & (place >= last - 2)
    s = query_emb @ token_emb.transpose(1, 2) / temperature
    s, invalid = s * valid[:, None], ~valid[:, None]
    value = {}
    for role in ROLES:
        rows = s.new_zeros(batch * queries, length)
        rows[match[0]] = pad_columns(maps[role], length)[match[1]].to(s)
        value[role] = rows.view(batch, queries, length)
    found = s.new_zeros(batch * queries, 1).index_fill_(0, match[0], 1).view(batch, queries, 1)
    value["main"] = value["main"] + (1 - found) * ends.to(s)[:, None]
    member = {role: (v > 0).to(s) for role, v in value.items()}
    weight = dict(zip(ROLES, (1, 0.2, 0.2, 0.1), strict=False))

    row = (s * (1 + member["auxiliary"])).masked_fill(invalid, -torch.inf).logsumexp(2)
    for role, c in weight.items():
        row = row - c * (s * member[role]).sum(2) / (member[role].sum(2) + 1e-6)
    row = row * (eos_coef + (1 - eos_coef) * found[..., 0])

    u = member["main"].sum(1) + sum(value[role].sum(1) for role in ROLES[1:4]) + 1e-6
    pulled = sum((s * member[role]).sum(1) for role in weight)
    column = -(u + 1e-6).log() / u - pulled / u + s.logsumexp(1)
    scale = torch.zeros_like(u)
    for role, c in weight.items():
        scale = torch.where(member[role].any(1), c, scale)
    scale = torch.where(place == last - 2, 0.1 * (scale > 0), scale)
    return (row.sum() + (scale * column).sum()) / 2 / n


@dataclass
class StackedHeads:
    """Predictions of n heads about B sentences as those of n B sentences, first head first.

    boxes [n B, Q, 6], logits [n B, Q, C], emb [n B, Q, p], and the sentences' targets repeated:
    truth [n B, 6], maps (a role: [n B, C]).
    """

    boxes: Tensor
    logits: Tensor
    emb: Tensor
    truth: Tensor
    maps: dict[str, Tensor]


def stack_heads(out, batch) -> StackedHeads:
    """The heads of a network's findings (`grounding.Grounded`) about a batch."""
    parts = (torch.cat(part).float() for part in (out.boxes, out.logits, out.query_emb))
    heads = len(out.boxes)
    maps = {role: m.repeat(heads, 1) for role, m in batch.maps.items()}
    return StackedHeads(*parts, batch.boxes.repeat(heads, 1), maps)


def text_to_box_terms(out, batch, heads: StackedHeads, best: Tensor, weight: float = 0.5):
    """EDA's weighted loss terms, by name, when head and sentence r are matched to query best[r].

    weight: of the position and the semantic term. The mean over heads is taken.
    """
    n, queries = heads.boxes.shape[:2]
    rows = torch.arange(n, device=best.device)
    match = rows * queries + best, rows
    picked = heads.boxes[rows, best]
    error = (picked - heads.truth).abs() @ picked.new_tensor([1.0, 1, 1, 0.2, 0.2, 0.2])
    giou = generalized_box_iou_3d(picked[:, None], heads.truth[:, None])[0]
    times = len(out.boxes)
    words, lengths = out.token_emb.repeat(times, 1, 1), batch.num_tokens.repeat(times)
    position = position_alignment_loss(heads.logits.flatten(0, 1), heads.maps, match, n)
    semantic = semantic_alignment_loss(heads.emb, words, heads.maps, match, n, lengths)
    return {
        "keypoints": 8 * focal(out.objectness.float(), batch.keypoints.float()).mean(),
        "position": weight * position,
        "box": 5 * error.sum() / n,
        "giou": (1 - giou).sum() / n,
        "semantic": weight * semantic,
    }
