"""N:M sparsity: masks, masked products with separate forward and backward masks, layer selection.

N:M means that of every M consecutive entries along one dimension at most N are non-zero.
Masks are bool tensors of the weight's shape; True = kept.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair


class PatternTypeError(TypeError, ValueError):
    """N or M is no integer."""


def check_pattern(n: int, m: int) -> None:
    """Raise `ValueError` unless 1 <= n <= m, `PatternTypeError` unless both are integers."""
    integers = all(isinstance(v, int) and not isinstance(v, bool) for v in (n, m))
    if not integers or not 1 <= n <= m:
        error = ValueError if integers else PatternTypeError
        raise error(f"need 1 <= n <= m, got n={n}, m={m}")


def parse_pattern(pattern: str) -> tuple[int, int]:
    """Read "N:M" as the integers (n, m)."""
    n, colon, m = str(pattern).partition(":")
    if not (colon and n.strip().isdecimal() and m.strip().isdecimal()):
        raise ValueError(f"pattern must look like 'N:M', got {pattern!r}")
    check_pattern(int(n), int(m))
    return int(n), int(m)


def nm_mask(weight: Tensor, n: int, m: int, dim: int = -1) -> Tensor:
    """Keep the n largest magnitudes of every m consecutive entries along `dim`.

    weight: any shape, floating point; returns a bool mask of that shape with exactly n ones per
    group. Equal magnitudes: the lower index wins (for m > 8 and n > 1 as `topk` decides).
    Raises `ValueError` when the size along `dim` is not a multiple of m: groups never cross rows.
    """
    check_pattern(n, m)
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    dim = dim % weight.dim()
    if weight.shape[dim] % m:
        raise ValueError(f"size {weight.shape[dim]} of dim {dim} is not a multiple of m={m}")
    groups = weight.detach().abs().unflatten(dim, (-1, m))
    if m <= 8:
        kept = _rank_pairwise(groups, n, dim + 1)
    else:
        largest = groups.argmax(dim + 1, keepdim=True) if n == 1 else groups.topk(n, dim + 1)[1]
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(dim + 1, largest, True)
    return kept.flatten(dim, dim + 1)


def _rank_pairwise(groups: Tensor, n: int, dim: int) -> Tensor:
    # m(m-1)/2 comparisons of whole slices: no sort, no index tensor, and a compiler can fuse it
    slices = groups.unbind(dim)
    rank = [torch.zeros(s.shape, dtype=torch.uint8, device=s.device) for s in slices]
    for i, left in enumerate(slices):
        for j in range(i + 1, len(slices)):
            beaten = slices[j] > left
            rank[i] += beaten
            rank[j] += ~beaten
    return torch.stack([r < n for r in rank], dim)


def is_nm_sparse(weight: Tensor, n: int, m: int, dim: int = 1) -> bool:
    """Whether at most n of every m consecutive entries along `dim` are non-zero.

    Raises `ValueError` when the size along `dim` is not a multiple of m.
    """
    check_pattern(n, m)
    dim = dim % weight.dim()
    if weight.shape[dim] % m:
        raise ValueError(f"size {weight.shape[dim]} of dim {dim} is not a multiple of m={m}")
    return bool(((weight != 0).unflatten(dim, (-1, m)).sum(dim + 1) <= n).all())


def check_mask(name: str, mask: Tensor, weight: Tensor) -> None:
    """Raise `TypeError` unless mask is bool, `ValueError` unless it has the weight's shape."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}")
    if mask.shape != weight.shape:
        shapes = f"{tuple(mask.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(f"{name} has shape {shapes}; they must agree")


def check_matrix(weight: Tensor, m: int, both: bool = False) -> None:
    """Raise `ValueError` unless weight is 2-D (out, in) and m divides its rows (both: columns)."""
    if weight.dim() != 2:
        shape = tuple(weight.shape)
        raise ValueError(f"expected a 2-D (out, in) matrix; use weight.flatten(1), got {shape}")
    if weight.shape[0] % m:
        raise ValueError(f"O={weight.shape[0]} is not a multiple of m={m}: keep the layer dense")
    if both and weight.shape[1] % m:
        raise ValueError(f"size {weight.shape[1]} of dim 1 is not a multiple of m={m}")


def check_kernel(name: str, tensor: Tensor) -> None:
    """Raise `ValueError` unless the tensor is (out, in, kh, kw), not empty and finite."""
    if tensor.dim() != 4 or tensor.numel() == 0:
        raise ValueError(f"{name}: expected (out, in, kh, kw), got shape {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} contains NaN or Inf; the masks would be meaningless")


def check_permutations(permutations: Tensor, rows: int) -> None:
    """Raise unless there is a permutation and each (..., rows) holds 0..rows-1 exactly once."""
    if permutations.numel() == 0:
        raise ValueError("need at least one candidate permutation")
    if permutations.is_floating_point() or permutations.dtype == torch.bool:
        raise TypeError(f"permutation must hold integers, got {permutations.dtype}")
    ordered = torch.arange(rows, device=permutations.device)
    if permutations.shape[-1:] != (rows,) or (permutations.sort(-1).values != ordered).any():
        raise ValueError("permutation must contain 0..O-1 exactly once")


def _decayed(grad_weight: Tensor, weight: Tensor, forward_mask: Tensor, decay: float) -> Tensor:
    # SR-STE: the dense gradient, plus a pull to zero on the pruned entries. Once per step, not per
    # sample, so that its strength does not depend on the batch size.
    grad_weight = grad_weight.to(weight.dtype)
    return grad_weight + decay * (weight * ~forward_mask) if decay else grad_weight


class _MaskedLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, forward_mask, backward_mask, bias, decay):
        ctx.save_for_backward(x, weight, forward_mask, backward_mask)
        ctx.decay = decay
        return F.linear(x, (weight * forward_mask).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, forward_mask, backward_mask = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ (weight * backward_mask).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = grad.flatten(0, -2).T @ x.flatten(0, -2)
            grad_weight = _decayed(grad_weight, weight, forward_mask, ctx.decay)
        if ctx.needs_input_grad[4]:
            grad_bias = grad.flatten(0, -2).sum(0)
        return grad_x, grad_weight, None, None, grad_bias, None


class _MaskedConv2d(Function):
    @staticmethod
    def forward(ctx, x, weight, forward_mask, backward_mask, bias, stride, padding, decay):
        ctx.save_for_backward(x, weight, forward_mask, backward_mask)
        ctx.geometry, ctx.decay = (stride, padding, (1, 1), False, (0, 0), 1), decay
        return F.conv2d(x, (weight * forward_mask).to(x.dtype), bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, forward_mask, backward_mask = ctx.saved_tensors
        need_x, need_weight, *_, need_bias = ctx.needs_input_grad[:5]
        grad_x = grad_weight = grad_bias = None
        size = [weight.shape[0]] if need_bias else None
        native = torch.ops.aten.convolution_backward
        if need_x:
            masked = (weight * backward_mask).to(x.dtype)
            grad_x = native(grad, x, masked, size, *ctx.geometry, [True, False, False])[0]
        if need_weight or need_bias:  # the weight enters only by its shape
            wanted = [False, need_weight, need_bias]
            dense = weight.to(x.dtype)
            _, grad_weight, grad_bias = native(grad, x, dense, size, *ctx.geometry, wanted)
        if need_weight:
            grad_weight = _decayed(grad_weight, weight, forward_mask, ctx.decay)
        return grad_x, grad_weight, None, None, grad_bias, None, None, None


class _SRSTE(Function):
    @staticmethod
    def forward(ctx, weight, mask, decay):
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _decayed(grad, *ctx.saved_tensors, ctx.decay), None, None


def sr_ste(weight: Tensor, mask: Tensor, decay: float = 2e-4) -> Tensor:
    """weight * mask with the gradient g + decay (1 - mask) weight (Zhou et al. 2021, eq. 9).

    Under fp16 loss scaling the pull would be unscaled away: use bf16. Raises as
    `check_mask` does, and `TypeError` for integer weights.
    """
    check_mask("mask", mask, weight)
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    return _SRSTE.apply(weight, mask, decay)


def _autocast(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    # custom_fwd is bound to one device type when it decorates; casting here serves all of them.
    # The weight is cast after masking, so that masks come from the full-precision weights.
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return x, None if bias is None else bias.to(x.dtype)


def bimask_linear(
    x: Tensor,
    weight: Tensor,
    forward_mask: Tensor,
    backward_mask: Tensor,
    bias: Tensor | None = None,
    decay: float = 0.0,
) -> Tensor:
    """Linear layer whose two weight products use two masks.

    x (..., in), weight and masks (out, in), bias (out,) -> (..., out).
    y = x (W f)^T + bias; dx = g (W b); dW = g^T x + decay (1 - f) W; dbias = sum g.
    With b = f this is SR-STE (Zhou et al. 2021); b != f is Bi-Mask (arXiv:2302.06058).
    """
    check_mask("forward_mask", forward_mask, weight)
    check_mask("backward_mask", backward_mask, weight)
    x, bias = _autocast(x, bias)
    return _MaskedLinear.apply(x, weight, forward_mask, backward_mask, bias, decay)


Pair = int | tuple[int, int]


def bimask_conv2d(
    x: Tensor,
    weight: Tensor,
    forward_mask: Tensor,
    backward_mask: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    decay: float = 0.0,
) -> Tensor:
    """The convolution of `bimask_linear`: native kernels, as many operations as a dense layer.

    x (batch, in, height, width), weight and masks (out, in, kh, kw) -> (batch, out, h', w').
    """
    check_mask("forward_mask", forward_mask, weight)
    check_mask("backward_mask", backward_mask, weight)
    x, bias = _autocast(x, bias)
    geometry = _pair(stride), _pair(padding)
    return _MaskedConv2d.apply(x, weight, forward_mask, backward_mask, bias, *geometry, decay)


def why_dense(module: nn.Module, m: int, both: bool = True) -> str:
    """Say why a conv or linear layer cannot be N:M sparse; "" when it can.

    both: the outputs too must come in groups of m, as a mask of the backward pass needs.
    """
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"{type(module).__name__} is not a plain Conv2d or Linear"
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return f"groups = {module.groups}"
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return "padding is not a number of zeros"
        if module.dilation != (1, 1):
            return f"dilation {module.dilation}"
    outputs, inputs = module.weight.shape[0], module.weight[0].numel()
    if inputs % m:
        return f"{inputs} inputs are not a multiple of {m}"
    if both and outputs % m:
        return f"{outputs} outputs are not a multiple of {m}"
    return ""


def select_layers(
    model: nn.Module, m: int, keep_dense: Iterable[str] = (), both: bool = True
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Find the layers of a model that can be N:M sparse.

    keep_dense: names of layers (or of blocks of layers) to leave alone.
    Returns {name: layer} to convert and {name: reason} for convs and linears left dense.
    Raises `ValueError` when a name in keep_dense is not in the model.
    """
    names = {name for name, _ in model.named_modules()}
    if unknown := sorted(set(keep_dense) - names):
        raise ValueError(f"keep_dense names layers that the model lacks: {unknown}")
    sparse, dense = {}, {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        chosen = any(name == kept or name.startswith(f"{kept}.") for kept in keep_dense)
        reason = "kept dense by choice" if chosen else why_dense(module, m, both)
        if reason:
            dense[name] = reason
        else:
            sparse[name] = module
    return sparse, dense
