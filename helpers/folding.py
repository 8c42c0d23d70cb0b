"""Replace layers of a network by training-time forms, and fold these back into plain ones.

A layer folds when it has a method `merge() -> nn.Module`, the layer that it is in evaluation.
"""

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

from helpers.metrics import largest_difference
from helpers.sparsity import is_nm_sparse


def replace_pairs(
    model: nn.Module, why_not: Callable[..., str], make: Callable[..., nn.Module], keep=()
) -> tuple[list[str], dict[str, str]]:
    """Replace convolutions, and the norms after them, by layers `make(conv, norm)`, in place.

    why_not(conv, norm): the reason for leaving a pair alone, "" to replace it. What follows a
    convolution is the next module in the order of definition, None at the end. keep: names of
    layers or blocks to leave alone; `ValueError` when the model lacks one.
    Returns the names of the new layers and {name: reason} of the convolutions that stay.
    """
    named, replaced, left = [*model.named_modules(), ("", None)], [], {}
    if unknown := sorted(set(keep) - {name for name, _ in named}):
        raise ValueError(f"keep_dense names layers that the model lacks: {unknown}")
    for (name, conv), (after, norm) in pairwise(named):
        if not isinstance(conv, nn.Conv2d):
            continue
        chosen = any(f"{name}.".startswith(f"{kept}.") for kept in keep)
        if reason := "kept dense by choice" if chosen else why_not(conv, norm):
            left[name] = reason
            continue
        model.set_submodule(name, make(conv, norm))
        model.set_submodule(after, nn.Identity())
        replaced.append(name)
    return replaced, left


def convolution(kernel: Tensor, bias: Tensor, stride, padding) -> nn.Conv2d:
    """A convolution that owns copies of a kernel (O, I, kh, kw) and a bias (O,)."""
    outputs, inputs, *size = kernel.shape
    conv = nn.utils.skip_init(nn.Conv2d, inputs, outputs, size, stride, padding)
    conv.weight, conv.bias = (nn.Parameter(t.detach().clone()) for t in (kernel, bias))
    return conv


def merge_model(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation with every layer that folds replaced by its plain form."""
    model = deepcopy(model).eval()
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "merge"):
            model.set_submodule(name, layer.merge())
    return model


def fold_check(model: nn.Module, x: Tensor, n: int, m: int) -> dict:
    """Compare a model with its folded form on inputs x; for kernels that are N:M along inputs.

    error, error_fp32: relative differences of the outputs in double and single precision;
    fits: whether all folded kernels are n:m; nonzeros of these kernels; size: parameters.
    """
    two = deepcopy(model).float().eval()
    found = {"error_fp32": largest_difference(merge_model(two), two, x)}
    merged = merge_model(two.double())
    kernels = [
        merged.get_submodule(k).weight for k, v in two.named_modules() if hasattr(v, "merge")
    ]
    return found | {
        "error": largest_difference(merged, two, x.double()),
        "fits": all(is_nm_sparse(kernel, n, m) for kernel in kernels),
        "nonzeros": sum(int(torch.count_nonzero(kernel)) for kernel in kernels),
        "size": sum(p.numel() for p in merged.parameters()),
    }
