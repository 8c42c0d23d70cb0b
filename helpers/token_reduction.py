"""Known ways to drop or merge tokens of a ViT at inference, to compare with: ToMe, EViT, by hand.

A schedule is a list over blocks of (tokens kept after pruning, tokens kept after merging), the
class token included. Schedules are made from one real number r that the cost falls with.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from helpers.vit import add_mlp, add_rows, attend, cosine, embed, order_by_class, pick

Schedule = list[tuple[int, int]]


def uniform(tokens: int, depth: int, r: float, prune_share: float = 0.5) -> Schedule:
    """Remove r tokens per block from block 1 on, `prune_share` of them by pruning."""
    after = [max(2.0, tokens - block * r) for block in range(depth)]
    steps = [(round(a + prune_share * (b - a)), round(b)) for a, b in pairwise(after)]
    return [(tokens, tokens), *steps]


def evit(tokens: int, depth: int, r: float) -> Schedule:
    """Prune to the share 1 - r / tokens at a quarter, half and three quarters of the depth."""
    count, schedule = tokens, []
    for block in range(depth):
        if block in (depth // 4, depth // 2, 3 * depth // 4):
            count = max(2, math.ceil((1 - r / tokens) * (count - 1)) + 1)
        schedule.append((count, count))
    return schedule


def tome(tokens: int, depth: int, r: float) -> Schedule:
    """Merge r tokens in every block, at most half of them; a fractional r alternates."""
    schedule = []
    for block in range(depth):
        tokens -= min(math.floor((block + 1) * r) - math.floor(block * r), (tokens - 1) // 2)
        schedule.append((tokens, tokens))
    return schedule


def monotone(tokens: int, draws: Sequence[float], r: float) -> Schedule:
    """Falling counts from falling draws in (0, 1), two per block after the first."""
    counts = [round(2 + (tokens - 2) * draw ** (20 * r / tokens)) for draw in draws]
    return [(tokens, tokens), *zip(counts[::2], counts[1::2], strict=True)]


def check_schedule(schedule: Schedule, num_tokens: int, depth: int) -> None:
    """Raise ValueError for a wrong number of blocks, or a count that is no integer in [2, N]."""
    if len(schedule) != depth:
        raise ValueError(f"schedule has {len(schedule)} blocks, the model has {depth}")
    for block, pair in enumerate(schedule):
        for count in pair:
            if type(count) is not int or not 2 <= count <= num_tokens:
                raise ValueError(f"block {block} keeps {count!r}; allowed: ints 2..{num_tokens}")


def check_gate(logits: Tensor, candidates: Tensor) -> None:
    """Raise ValueError unless candidates [K] fall strictly, to >= 1, and logits [..., K] fit."""
    if candidates.ndim != 1 or len(candidates) == 0 or logits.shape[-1:] != candidates.shape:
        raise ValueError(f"logits are {tuple(logits.shape)}, candidates {tuple(candidates.shape)}")
    if candidates[-1] < 1 or (candidates.diff() >= 0).any():
        raise ValueError(f"candidates must fall strictly and be >= 1, got {candidates.tolist()}")


def check_granularity(patches: int, granularity: int, length: int) -> None:
    """Raise ValueError unless `length` candidates, `granularity` apart, fit into 1..patches."""
    if granularity < 1 or (length > 1 and granularity > patches):
        raise ValueError(f"granularity is {granularity}; allowed: 1..{patches}")
    if not 1 <= length <= math.ceil(patches / granularity):
        raise ValueError(
            f"a gate has {length} logits; allowed for {patches} patches at granularity "
            f"{granularity}: 1..{math.ceil(patches / granularity)}"
        )


def check_target(
    target: float, cost: Callable[[Schedule], float], tokens: int, depth: int, fewest: int
) -> None:
    """Raise ValueError for a relative cost above 1 or below that of the smallest schedule.

    fewest: the smallest count that a block after the first can keep.
    """
    least = float(cost([(tokens, tokens)] + [(fewest, fewest)] * (depth - 1)))
    if not least <= target <= 1:
        raise ValueError(f"target is {target}; the smallest reachable ratio is {least:.3f}, max 1")


def check_merge(x: Tensor, size: Tensor, kept: int, least: int) -> None:
    """Raise ValueError unless size is [B, N, 1] for x [B, N, C], and least <= kept <= N."""
    if (*x.shape[:2], 1) != size.shape:
        raise ValueError(f"x is {tuple(x.shape)} and size {tuple(size.shape)}")
    if not least <= kept <= x.shape[1]:
        raise ValueError(f"kept is {kept}; allowed: {least}..{x.shape[1]}")


def match_cost(
    make: Callable[[float], Schedule], cost: Callable[[Schedule], float], wanted: float, high: float
) -> Schedule:
    """The schedule make(r), 0 <= r <= high, whose cost is closest to `wanted`, by bisection."""
    low = 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(make(middle)) > wanted else (low, middle)
    return min(make(low), make(high), key=lambda schedule: abs(cost(schedule) - wanted))


def bipartite_soft_matching(metric: Tensor, r: int, class_token: bool = True) -> Callable:
    """ToMe (Bolya et al. 2023, appendix D): from metric [B, N, D] a function merge(x, size).

    Even tokens name their best partner among the odd ones by cosine similarity; the r best pairs
    merge into their size-weighted mean: x [B, N, C], size [B, N, 1] -> N - r rows of both.
    The class token (row 0) stays as it is. r is at most (N - 1) // 2, or N // 2 without a class
    token; at r <= 0 merge returns its inputs.
    """
    tokens = metric.shape[1]
    r = min(r, (tokens - 1) // 2 if class_token else tokens // 2)
    if r <= 0:
        return lambda x, size: (x, size)
    scores = cosine(metric[:, ::2], metric[:, 1::2])
    if class_token:
        scores[:, 0] = -torch.inf
    best, partner = scores.max(-1)
    rank = best.sort(dim=-1, descending=True, stable=True).indices
    source, stay = rank[:, :r], rank[:, r:].sort(-1).values
    return partial(_merge, source=source, stay=stay, partner=partner.gather(1, source))


def _merge(x: Tensor, size: Tensor, source: Tensor, stay: Tensor, partner: Tensor):
    def join(rows: Tensor) -> Tensor:
        even, odd = rows[:, ::2], rows[:, 1::2]
        return torch.cat([pick(even, stay), add_rows(odd, partner, pick(even, source))], 1)

    total = join(size)
    return join(x * size) / total, total


@torch.no_grad()
def tome_forward(model: nn.Module, images: Tensor, schedule: Schedule) -> Tensor:
    """Logits of a ViT with ToMe's merging down to the schedule's counts, proportional attention."""
    x = embed(model, images)
    size = torch.ones_like(x[..., :1])
    for block, (count, _) in zip(model.blocks, schedule, strict=True):
        x, _, key = attend(block, x, size)
        x, size = bipartite_soft_matching(key.mean(1), x.shape[1] - count)(x, size)
        x = add_mlp(block, x)
    return model.forward_head(model.norm(x))


@torch.no_grad()
def fused_forward(model: nn.Module, images: Tensor, schedule: Schedule) -> Tensor:
    """Logits of a ViT with EViT's pruning (Liang et al. 2022, section 3.2) and its fused token.

    The dropped tokens, weighted by class attention, become the last of the schedule's rows.
    """
    x = embed(model, images)
    for block, (count, _) in zip(model.blocks, schedule, strict=True):
        x, row, _ = attend(block, x)
        if count < x.shape[1]:
            order = order_by_class(row)
            x, weight = pick(x, order), pick(row[..., None], order)
            fused = (x * weight)[:, count - 1 :].sum(1, keepdim=True)
            x = torch.cat([x[:, : count - 1], fused], 1)
        x = add_mlp(block, x)
    return model.forward_head(model.norm(x))
