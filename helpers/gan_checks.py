"""Checks of what goes into a comparison of maps, and of what comes out of a training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def check_taps(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    student_connectors: Sequence[nn.Module],
    teacher_connectors: Sequence[nn.Module],
    discriminator: nn.Module,
) -> None:
    """Raise ValueError, naming the tap and the shapes, unless maps (n, c, h, w) and the rest fit.

    A connector has a convolution `conv` from the channels of its map to `in_channels` of the
    discriminator. Student and teacher maps of a tap have one batch size and one height and width.
    """
    parts = (student_maps, teacher_maps, student_connectors, teacher_connectors)
    counts = [len(part) for part in parts]
    if len(set(counts)) > 1 or counts[0] == 0:
        raise ValueError(f"need as many maps as connectors on both sides, at least 1: got {counts}")
    for tap, (s, t, q, p) in enumerate(zip(*parts, strict=True)):
        shapes = f"student {tuple(s.shape)}, teacher {tuple(t.shape)}"
        if (len(s), s.shape[2:]) != (len(t), t.shape[2:]):
            raise ValueError(f"tap {tap}: batch or size differ: {shapes}")
        for side, x, connector in (("student", s, q), ("teacher", t, p)):
            to, of = connector.conv.weight.shape[:2]
            if (x.shape[1], discriminator.in_channels) != (of, to):
                raise ValueError(
                    f"tap {tap}: the {side} connector turns {of} channels into {to}; maps: "
                    f"{shapes}; the discriminator takes {discriminator.in_channels} channels"
                )


def check_finite(losses: Sequence[tuple[Tensor, str, int]]) -> None:
    """Raise ValueError naming who and the step for the first (loss, who, step) not finite."""
    if not losses:
        return
    finite = torch.stack([loss for loss, *_ in losses]).isfinite().tolist()
    for good, (_, who, step) in zip(finite, losses, strict=True):
        if not good:
            raise ValueError(f"{who} student diverged at step {step}")
