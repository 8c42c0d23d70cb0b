"""Counting what a model costs; thin over torch's own counter."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def macs(model: nn.Module, *inputs) -> int:
    """Multiply-adds of one forward pass in eval mode."""
    return layer_macs(model, *inputs)[""]


def layer_macs(model: nn.Module, *inputs) -> dict[str, int]:
    """Multiply-adds of one forward pass in eval mode, by module name; "" is the whole model.

    Works on the meta device, where nothing is computed. torch counts two operations for each.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        model.train(training)
    root = type(model).__name__
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    inner = {name.removeprefix(f"{root}."): count for name, count in counts.items()}
    return {name: count for name, count in inner.items() if name not in ("Global", root)} | {
        "": counts["Global"]
    }


def parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; a shared one counts once."""
    return sum(p.numel() for p in model.parameters())
