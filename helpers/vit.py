"""A timm vision transformer in pieces, for methods that act between its layers."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shape(NamedTuple):
    """What the cost of a ViT depends on."""

    num_tokens: int  # with the class token
    dim: int
    patch_dim: int  # numbers in a patch
    num_classes: int


def read_shape(model: nn.Module, user: str = "this code") -> Shape:
    """Shape of a timm ViT whose class token is the only one besides the patches.

    Raises ValueError (saying that `user` needs something else) for register or distillation
    tokens, average pooling, or an MLP ratio that is not 4.
    """
    name, problem = type(model).__name__, None
    if getattr(model, "cls_token", None) is None or model.num_prefix_tokens != 1:
        problem = f"{name} has no class token, or register or distillation tokens beside it"
    elif model.global_pool != "token":
        problem = f"{name} has global_pool {model.global_pool!r}, allowed: 'token'"
    elif any(block.mlp.fc1.out_features != 4 * model.embed_dim for block in model.blocks):
        problem = f"{name} has an MLP ratio other than 4"
    if problem:
        raise ValueError(f"{user} needs a class-token ViT: {problem}")
    patch_dim = model.patch_embed.proj.weight[0].numel()
    return Shape(model.patch_embed.num_patches + 1, model.embed_dim, patch_dim, model.num_classes)


def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Tokens [B, N, C] that enter block 0."""
    return model.norm_pre(model._pos_embed(model.patch_embed(images)))


def project(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B, H, N, D] of a block for x [B, N, C]."""
    attn, (batch, tokens, _) = block.attn, x.shape
    qkv = attn.qkv(block.norm1(x)).view(batch, tokens, 3, attn.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(query), attn.k_norm(key), value


def add_heads(block: nn.Module, x: Tensor, heads: Tensor) -> Tensor:
    """x [B, N, C] plus the attention's output for attended values heads [B, H, N, D]."""
    attn = block.attn
    return x + block.ls1(attn.proj(attn.norm(heads.transpose(1, 2).flatten(2))))


def add_mlp(block: nn.Module, x: Tensor) -> Tensor:
    """x [B, N, C] plus the MLP's output."""
    return x + block.ls2(block.mlp(block.norm2(x)))


def add_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """x [B, K, C] with rows [B, M, C] added, each to row index [B, M] of its own image."""
    batch, count, _ = x.shape
    flat = index + count * torch.arange(batch, device=x.device)[:, None]
    return x.flatten(0, 1).index_add(0, flat.flatten(), rows.flatten(0, 1)).view_as(x)


def pick(x: Tensor, order: Tensor) -> Tensor:
    """Rows order [B, M] of x [B, N, C]."""
    return x.take_along_dim(order[..., None], 1)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine similarity [B, M, K] of the rows of x [B, M, C] and y [B, K, C]."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


def attend(
    block: nn.Module, x: Tensor, size: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of a block: x [B, N, C] after it, the class token's row [B, N], keys [B, H, N, D].

    size [B, N, 1] makes it proportional: + log size on the logits of every column (Bolya et al.
    2023, section 3.2). The fused attention never shows its N x N map, so the class token's row,
    averaged over heads, is computed once more by itself.
    """
    query, key, value = project(block, x)
    bias = None if size is None else log_size(size).to(query.dtype)
    heads = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    row = query[:, :, :1] @ key.mT * block.attn.scale
    row = (row if bias is None else row + bias).float().softmax(-1).mean(1).squeeze(1)
    return add_heads(block, x, heads), row, key


def log_size(size: Tensor) -> Tensor:
    """The bias [B, 1, 1, N] of proportional attention for sizes [B, N, 1]."""
    return size.log().mT[:, None]


def order_by_class(row: Tensor, count: int | None = None, mask: Tensor | None = None) -> Tensor:
    """Token indices [B, N or count] by falling class attention row [B, N], class token first.

    mask [B, N]: tokens with 0 come last. Without a count the sort is stable.
    """
    score = row[:, 1:] if mask is None else row[:, 1:].masked_fill(mask[:, 1:] < 0.5, -torch.inf)
    if count is None:
        best = score.sort(dim=-1, descending=True, stable=True).indices
    else:
        best = score.topk(count - 1).indices
    return F.pad(best + 1, (1, 0))


def check_finite(logits: Tensor, blocks: Iterable[Tensor]) -> Tensor:
    """The logits; FloatingPointError naming the first bad block when one is NaN or infinite.

    blocks: tokens after every block, a generator that is only run when something is wrong
    (the arg max of NaN would look like a class).
    """
    if not logits.isfinite().all():
        bad = next((i for i, x in enumerate(blocks) if not x.isfinite().all()), "the head")
        raise FloatingPointError(f"logits are not finite, first in block {bad}")
    return logits
