"""Post-training quantization by reconstruction: grids of a chain, losses, and AdaRound's units."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import chains
from helpers.chains import Step
from helpers.quantization import affine_qparams, mse_qparams
from helpers.soft_rounding import QParams, quantizers


class Grids(NamedTuple):
    """Grids of the image, and of the weights and the activations of each module of a chain."""

    image: QParams
    weights: list[list[QParams]]
    acts: list[list[QParams]]


def find_grids(
    modules: list[list[Step]], images: Tensor, weight_bits: int, act_bits: int, *,
    edge_bits: int = 8, batch_size: int = 256, sample: int = 20_000,
) -> Grids:  # fmt: skip
    """Search all ranges with `mse_qparams`, on the network at full precision.

    Weights per output channel; activations per tensor, on at most `sample` values of each batch of
    images, ranges averaged over the batches (0.9 old + 0.1 new). The image, the first weight, and
    weight and input of the classifier have `edge_bits`. (BRECQ's and MRECG's code.)
    """

    def weight_grid(step):
        bits = edge_bits if step.pools or step is modules[0][0] else weight_bits
        return *mse_qparams(step.weight, bits, axis=0), bits

    slots = [[s for s in steps if not s.on_shortcut] for steps in modules]
    bits = [edge_bits] + [edge_bits if s.pools else act_bits for slot in slots for s in slot]
    ranges: list[Tensor | None] = [None] * len(bits)

    def record(index, x):
        rows = torch.randint(x.numel(), (sample,), generator=torch.Generator().manual_seed(0))
        seen = x.flatten()[rows.to(x.device)] if x.numel() > sample else x
        scale, zero = mse_qparams(seen, bits[index])
        found = scale * torch.stack([-zero, 2 ** bits[index] - 1 - zero])
        old = ranges[index]
        ranges[index] = found if old is None else 0.9 * old + 0.1 * found
        return x

    for batch in images.split(batch_size):
        recorders = [partial(record, index) for index in range(len(bits))]
        steps = [step for steps in modules for step in steps]
        chains.run(steps, recorders[0](batch), [s.weight for s in steps], recorders[1:])
    acts = iter([(*affine_qparams(*r, b), b) for r, b in zip(ranges, bits, strict=True)])
    return Grids(
        next(acts),
        [[weight_grid(step) for step in steps] for steps in modules],
        [[next(acts) for _ in slot] for slot in slots],
    )


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over images and positions of the sum over channels of (pred - target)^2; [n, c, ...].

    Raises ValueError when the shapes differ.
    """
    if pred.shape != target.shape:
        shapes = f"{tuple(pred.shape)}, its target {tuple(target.shape)}"
        raise ValueError(f"the unit's output has shape {shapes}")
    return F.mse_loss(pred, target, reduction="sum") * (pred.shape[1] / pred.numel())


@torch.no_grad()
def in_batches(part: Callable[[Tensor], Tensor], x: Tensor, size: int = 256) -> Tensor:
    """part(x), `size` rows at a time."""
    return torch.cat([part(batch) for batch in x.split(size)])


def layer_by_layer(
    fit: Callable, chain: Sequence[Step], weight_q: Sequence[QParams], act_q: Sequence[QParams],
    x: Tensor, y: Tensor, *, x_fp: Tensor, **options,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:  # fmt: skip
    """AdaRound (Nagel et al. 2020): every layer is a unit of its own, in the order of the steps.

    fit: reconstructs a unit; gets (forward, weights, weight_q, act_q, x, y, **options). A layer
    before an addition ends before it, without activation; x, x_fp: quantized and plain input.
    Returns alphas, weights and activation scales of all layers.
    """
    state, state_fp = (x, None), (x_fp, None)
    alphas, weights, scales, rest = [], [], [], iter(act_q)
    for step, grid in zip(chain, weight_q, strict=True):
        alone = replace(
            step, saves=False, adds=False, on_shortcut=False, max_pool=None,
            act=None if step.adds else step.act,
        )  # fmt: skip
        own = [] if step.on_shortcut else [next(rest)]
        inner = [] if step.adds else own
        inputs, plain = (pair[1 if step.on_shortcut else 0] for pair in (state, state_fp))
        target = in_batches(partial(chains.plain, [alone]), plain)
        forward = partial(_with_identity, alone)
        found = fit(forward, [step.weight], [grid], inner, inputs, target, x_fp=plain, **options)
        learned = found.act_scales or [q[0] for q in own]
        alphas, weights = alphas + found.alphas, weights + found.weights
        scales += learned
        state = _advanced(step, *state, found.weights[0], quantizers(learned, own))
        state_fp = _advanced(step, *state_fp, step.weight, [lambda t: t])
    return alphas, weights, scales


@torch.no_grad()
def _advanced(
    step: Step, x: Tensor, shortcut: Tensor | None, weight: Tensor, a: list[chains.Quantizer]
) -> tuple[Tensor, Tensor | None]:
    shortcuts = repeat(None) if shortcut is None else shortcut.split(256)
    pairs = zip(x.split(256), shortcuts, strict=False)
    found = [chains.advance(step, *pair, weight, iter(a)) for pair in pairs]
    features, shortcuts = zip(*found, strict=True)
    return torch.cat(features), None if shortcuts[0] is None else torch.cat(shortcuts)


def _with_identity(step: Step, x: Tensor, w: list[Tensor], a: list[chains.Quantizer]) -> Tensor:
    return chains.run([step], x, w, [*a, lambda t: t])


@contextmanager
def named(unit: Sequence[int]) -> Iterator[None]:
    """Name the unit in the error of a loss that is not finite."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"unit {list(unit)}: {error}") from None
