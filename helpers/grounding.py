"""A text-to-box transformer on points: encoder over seeds and words, decoder over queries.

The layers of BUTD-DETR (Jain et al. 2022) and EDA (Wu et al. 2023), post-norm, batch first. Rooms
and sentences are counted apart: the points of a room are encoded once for all its sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.point_networks import Level, Neighbourhood, PointNet


class Attend(nn.Module):
    """x + attention of x (+ positions) to memory, then LayerNorm. padding True = ignored."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x, memory=None, x_pos=None, memory_pos=None, padding=None) -> Tensor:
        memory = x if memory is None else memory
        q = x if x_pos is None else x + x_pos
        k = memory if memory_pos is None else memory + memory_pos
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(q), self.key(k), self.value(memory))
        )
        mask = None if padding is None else ~padding[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.norm(x + self.dropout(self.out(y.transpose(1, 2).flatten(2))))


class FeedForward(nn.Module):
    """x + two-layer perceptron of x, then LayerNorm."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.layers(x)))


class CrossEncoder(nn.Module):
    """Seeds and words look at themselves and at each other; positions on the seeds' queries."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        make = (width, heads, dropout)
        self.seeds_self, self.words_self = Attend(*make), Attend(*make)
        self.words_seeds, self.seeds_words = Attend(*make), Attend(*make)
        self.seeds_ffn = FeedForward(width, hidden, dropout)
        self.words_ffn = FeedForward(width, hidden, dropout)

    def forward(self, seeds, words, pos, padding, room_of=None):
        """room_of [B]: seeds and pos are those of R rooms, shared out after their own attention."""
        seeds = self.seeds_self(seeds, x_pos=pos, memory_pos=pos)
        if room_of is not None:
            seeds, pos = seeds[room_of], pos[room_of]
        words = self.words_self(words, padding=padding)
        told = self.words_ffn(self.words_seeds(words, seeds))
        seeds = self.seeds_words(seeds, words, x_pos=pos, padding=padding)
        return self.seeds_ffn(seeds), told


class Decoder(nn.Module):
    """Queries look at themselves, at the words, at the seeds."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        make = (width, heads, dropout)
        self.self_attend, self.words, self.seeds = Attend(*make), Attend(*make), Attend(*make)
        self.ffn = FeedForward(width, hidden, dropout)

    def forward(self, x, x_pos, words, padding, seeds, seeds_pos) -> Tensor:
        x = self.self_attend(x, x_pos=x_pos, memory_pos=x_pos)
        x = self.words(x, words, x_pos=x_pos, padding=padding)
        return self.ffn(self.seeds(x, seeds, x_pos=x_pos, memory_pos=seeds_pos))


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [nn.Linear(widths[0], widths[1])]
    for i, o in pairwise(widths[1:]):
        layers += [nn.ReLU(), nn.Linear(i, o)]
    return nn.Sequential(*layers)


class Heads(nn.Module):
    """Residual of the centre (3), size (3, softplus), token logits (C) of queries."""

    def __init__(self, width: int, slots: int):
        super().__init__()
        self.body = nn.Sequential(perceptron(width, width, width), nn.ReLU())
        self.box, self.slots = nn.Linear(width, 6), nn.Linear(width, slots)

    def forward(self, x: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        shift, size = self.box(x).float().split(3, -1)
        return torch.cat([origin + shift, F.softplus(size)], -1), self.slots(x)


class WordEmbedding(nn.Module):
    """Learned words and places; ids [B, L] int64, -1 is padding."""

    def __init__(self, vocabulary: int, length: int, width: int):
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.words(ids.clamp_min(0)) + self.places.weight[: ids.shape[1]])


class ReadyFeatures(nn.Module):
    """Features [B, L, C] of a frozen language model, projected; rows of zeros are padding."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.project, self.norm = nn.Linear(channels, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, feats: Tensor) -> Tensor:
        return self.norm(self.project(feats.float()))


@dataclass
class Grounded:
    """What the transformer says about B sentences; heads are listed first to last.

    seed_xyz [B, S, 3], seed_feats [B, d, S] after the encoder, objectness [B, S], chosen [B, Q]
    (seed of each query), query [B, Q, d] of the last layer, boxes (one [B, Q, 6] a head: centre,
    size), logits (one [B, Q, C] a head), query_emb (one [B, Q, p] a head) and token_emb [B, L, p]
    of length 1, padding [B, L]; and before the encoder: backbone [B, S, d], first_xyz [R, S1, 3],
    first_feats [R, S1, C1] of the first set abstraction.
    """

    seed_xyz: Tensor
    seed_feats: Tensor
    objectness: Tensor
    chosen: Tensor
    query: Tensor
    boxes: list[Tensor]
    logits: list[Tensor]
    query_emb: list[Tensor]
    token_emb: Tensor
    padding: Tensor
    backbone: Tensor
    first_xyz: Tensor
    first_feats: Tensor


class Grounder(nn.Module):
    """Points and sentences to boxes, token logits and embeddings of `queries` candidates."""

    def __init__(
        self,
        levels: Sequence[Level],
        embed_dim: int,
        num_heads: int,
        hidden: int,
        depths: tuple[int, int],
        queries: int,
        slots: int,
        text: nn.Module,
        projection: int = 64,
        channels: int = 3,
        ups: int = 0,
        norm: str = "layer",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.queries, self.text, d = queries, text, embed_dim
        self.points = PointNet(channels, levels, d, ups, norm)
        make = (d, num_heads, hidden, drop_rate)
        self.seed_place = perceptron(3, d, d)
        self.encoder = nn.ModuleList(CrossEncoder(*make) for _ in range(depths[0]))
        self.objectness = perceptron(d, d, d, 1)
        self.start = nn.Linear(d, d)
        self.decoder = nn.ModuleList(Decoder(*make) for _ in range(depths[1]))
        self.box_place = nn.ModuleList(perceptron(6, d, d) for _ in range(depths[1]))
        self.heads = nn.ModuleList(Heads(d, slots) for _ in range(depths[1] + 1))
        self.align_query, self.align_token = (perceptron(d, d, d, projection) for _ in range(2))

    def forward(
        self, xyz: Tensor, feats: Tensor, near: Neighbourhood, tokens: Tensor, room_of: Tensor
    ) -> Grounded:
        """Rooms xyz [R, N, 3], feats [R, N, C]; tokens [B, L] or [B, L, C]; room_of [B]."""
        (first_xyz, first_feats), (seed_xyz, backbone) = self.points(xyz, feats, near)
        padding = tokens < 0 if tokens.dim() == 2 else (tokens == 0).all(-1)
        words, seeds, pos = self.text(tokens), backbone, self.seed_place(seed_xyz)
        for number, layer in enumerate(self.encoder):
            shared = room_of if number == 0 else None
            seeds, words = layer(seeds, words, pos, padding, shared)
            pos = pos[room_of] if number == 0 else pos
        seed_xyz, backbone = seed_xyz[room_of], backbone[room_of]
        objectness = self.objectness(seeds).squeeze(-1)
        chosen = objectness.topk(min(self.queries, seeds.shape[1]), dim=1).indices
        rows = chosen[..., None]
        origin = seed_xyz.gather(1, rows.expand(-1, -1, 3))
        x = self.start(seeds.gather(1, rows.expand(-1, -1, seeds.shape[-1])))
        found = [self._say(self.heads[0], x, origin)]
        for layer, place, heads in zip(self.decoder, self.box_place, self.heads[1:], strict=True):
            x = layer(x, place(found[-1][0].detach()), words, padding, seeds, pos)
            found.append(self._say(heads, x, origin))
        token_emb = F.normalize(self.align_token(words).float(), dim=-1)
        boxes, logits, emb = (list(part) for part in zip(*found, strict=True))
        return Grounded(
            seed_xyz, seeds.transpose(1, 2), objectness, chosen, x, boxes, logits, emb, token_emb,
            padding, backbone, first_xyz, first_feats,
        )  # fmt: skip

    def _say(self, heads, x, origin):
        boxes, logits = heads(x, origin)
        return boxes, logits, F.normalize(self.align_query(x).float(), dim=-1)
