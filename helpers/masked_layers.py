"""Layers with two N:M masks, one for the output and one for the input gradient.

`MaskedConv2d` and `MaskedLinear` hold what does not depend on how the masks are made: when they are
rebuilt, what a resumed run needs, and the products. A method subclasses them, calls
`start_masks` when it makes a layer and says in `rebuild` what the masks are.
"""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from helpers.sparsity import bimask_conv2d, bimask_linear, select_layers


class MaskedLayer:
    """Masks `forward_mask` and `backward_mask` of the weight's shape, after a forward pass.

    fixed: True keeps the masks that someone has set. steps_done: training steps so far; the buffer
    `step` is the same number for checkpoints, since reading a buffer would make a GPU wait.
    """

    def start_masks(self, decay: float = 0.0) -> None:
        """Add the step counter; decay is the pull of pruned weights to zero (SR-STE)."""
        self.decay, self.fixed, self.steps_done = decay, False, 0
        zero = torch.zeros((), dtype=torch.int64, device=self.weight.device)
        self.register_buffer("step", zero)
        self.register_load_state_dict_post_hook(_recount)

    def rebuild(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and backward mask for a weight (out, in); in evaluation without side effects."""
        raise NotImplementedError

    def masks(self) -> tuple[Tensor, Tensor]:
        """Both masks, rebuilt from the weight unless fixed; counts a step in training."""
        if not self.fixed:
            forward_mask, backward_mask = self.rebuild(self.weight.detach().flatten(1))
            self.forward_mask = forward_mask.view_as(self.weight)
            self.backward_mask = backward_mask.view_as(self.weight)
            if self.training:
                self.step += 1
                self.steps_done += 1
        return self.forward_mask, self.backward_mask


def _recount(layer: MaskedLayer, _) -> None:
    layer.steps_done = int(layer.step)


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """`nn.Conv2d` whose output and input gradient see the weight through two masks."""

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in, height, width) -> (batch, out, height', width')."""
        options = self.bias, self.stride, self.padding, self.decay
        return bimask_conv2d(x, self.weight, *self.masks(), *options)


class MaskedLinear(MaskedLayer, nn.Linear):
    """`nn.Linear` whose output and input gradient see the weight through two masks."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return bimask_linear(x, self.weight, *self.masks(), self.bias, self.decay)


def masked_layers(model: nn.Module) -> list[MaskedLayer]:
    """The masked layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, MaskedLayer)]


def convert(
    model: nn.Module, m: int, conv: type, linear: type, keep_dense: Iterable[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Change the class of all layers that can be N:M sparse, in place; start none of them.

    Weights, names and optimizers stay. Returns the names of the changed layers and
    {name: reason} of the convolutions and linear layers left dense.
    """
    sparse, dense = select_layers(model, m, keep_dense)
    for layer in sparse.values():
        layer.__class__ = conv if isinstance(layer, nn.Conv2d) else linear
    return list(sparse), dense


def kept_and_eligible(model: nn.Module, n: int, m: int) -> dict[str, float]:
    """Fractions of survivors of f that b keeps, and of blocks of m rows with at most n survivors.

    Over all masked layers, which must have run; in the row order `permutation` of each.
    """
    survivors = kept = eligible = blocks = 0
    for layer in masked_layers(model):
        f = layer.forward_mask.flatten(1)
        counts = f[layer.permutation].unflatten(0, (-1, m)).sum(1)
        survivors, kept = survivors + int(f.sum()), kept + int(layer.backward_mask.sum())
        eligible, blocks = eligible + int((counts <= n).sum()), blocks + counts.numel()
    return {"kept": kept / survivors, "eligible": eligible / blocks}


class GradientProbe:
    """The gradient of a network with N:M masks on one batch, under any backward masks.

    x, y: the batch.
    Masks and `weights` are lists of (out, in) tensors, one a layer; `forward` are the masks in use.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, session):
        self.model, self.x, self.y, self.session = model.train(), x, y, session
        self.layers = masked_layers(model)
        self.weights = [layer.weight.detach().flatten(1) for layer in self.layers]
        self.forward = [layer.rebuild(layer.weight.detach().flatten(1))[0] for layer in self.layers]
        self.first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))

    def gradients(self, backward: list[Tensor]) -> list[Tensor]:
        """Cross-entropy gradients of the first convolution and the masked layers, without decay."""
        for layer, *masks in zip(self.layers, self.forward, backward, strict=True):
            layer.fixed, layer.decay = True, 0.0
            layer.forward_mask, layer.backward_mask = (b.view_as(layer.weight) for b in masks)
        self.model.zero_grad()
        with self.session.autocast():
            logits = self.model(self.x)
        F.cross_entropy(logits.float(), self.y).backward()
        return [layer.weight.grad.clone() for layer in (self.first, *self.layers)]

    def kept(self, backward: list[Tensor]) -> float:
        """Fraction of the survivors of the forward masks that the backward masks keep."""
        return sum(int(b.sum()) for b in backward) / sum(int(f.sum()) for f in self.forward)


def draw_masks(axis, f, b, order, n: int, m: int, blocks: bool = False) -> None:
    """Draw 32 x 48 entries of two masks, rows in an order: kept in both, in f only, pruned.

    blocks: mark blocks of m rows instead of groups of m columns, and shade those of at most n.
    """
    survivors = f[order].unflatten(0, (-1, m)).sum(1).repeat_interleave(m, 0)
    ground = 3 * ((survivors <= n) & blocks).int()
    code = torch.where(b[order], 1, torch.where(f[order], 2, ground))[:32, :48].cpu()
    shades = ListedColormap(["white", "#0072B2", "#D55E00", "#D9EFE4"])
    axis.imshow(code, cmap=shades, vmin=0, vmax=3, aspect="auto")
    axis.grid(False)
    for edge in range(m, 32 if blocks else 48, m):
        (axis.axhline if blocks else axis.axvline)(edge - 0.5, color="0.6", lw=0.6)


def draw_triptych(f, b, order, n: int, m: int, title: str) -> Figure:
    """The forward mask, both masks with rows in an order, and both in the layer's own order."""
    rows = torch.arange(len(f))
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
    draw_masks(axes[0], f, f, rows, n, m)
    draw_masks(axes[1], f, b, order, n, m, blocks=True)
    draw_masks(axes[2], f, b, rows, n, m)
    axes[0].set(title=f"f: {n} of {m} inputs in each row", xlabel="input", ylabel="output")
    axes[1].set(title=title, xlabel="input")
    axes[2].set(title="b: blue kept, orange without gradient", xlabel="input")
    return figure
