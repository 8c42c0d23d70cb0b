"""2:4 sparse products of NVIDIA GPUs from Ampere (compute capability 8.0) on, for timing."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import bench


def why_not(device: torch.device) -> str:
    """The reason why 2:4 products cannot run on a device; "" when they can."""
    if device.type != "cuda":
        return f"no NVIDIA GPU in this run (device {device.type})"
    major, minor = torch.cuda.get_device_capability(device)
    return "" if major >= 8 else f"compute capability {major}.{minor}, 2:4 needs 8.0"


def linear_products(
    weight: Tensor, forward_mask: Tensor, backward_mask: Tensor, permutation: Tensor, samples: int
) -> dict[str, Callable[[], object]]:
    """The two weight products of a linear layer in float16, dense and 2:4, ready to be timed.

    weight and masks (out, in) on the GPU, both divisible by 64; forward_mask 2:4 along the inputs,
    backward_mask 2:4 along the outputs in the order of permutation (out,). The forward operand is
    W f, the backward operand ((W b)[permutation]).T times the gathered gradient.
    Raises `AssertionError` when a 2:4 product differs from the dense product of the masked weight.
    """
    compress = torch.sparse.to_sparse_semi_structured
    weight = weight.half()
    generator = torch.Generator(weight.device).manual_seed(0)
    options = {"generator": generator, "device": weight.device, "dtype": weight.dtype}
    x, grad = (torch.randn(samples, size, **options) for size in reversed(weight.shape))
    kept_forward = weight * forward_mask
    kept_backward = (weight * backward_mask)[permutation].T.contiguous()
    forward, backward = compress(kept_forward), compress(kept_backward)

    def backward_product() -> Tensor:
        return F.linear(grad[:, permutation], backward)

    close = {"rtol": 1e-2, "atol": 1e-2 * float(weight.float().norm(dim=1).max())}
    torch.testing.assert_close(F.linear(x, forward), F.linear(x, kept_forward), **close)
    torch.testing.assert_close(backward_product(), grad @ (weight * backward_mask), **close)
    return {
        "forward dense": lambda: F.linear(x, weight),
        "forward 2:4": lambda: F.linear(x, forward),
        "backward dense": lambda: grad @ weight,
        "backward 2:4 with gather": backward_product,
        "compress both operands": lambda: (compress(kept_forward), compress(kept_backward)),
    }


def print_speed(size: int, samples: int, masks: Callable, device: torch.device) -> None:
    """Time a square layer's weight products. masks(weight) -> forward and backward mask, order."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(device)
    products = linear_products(weight, *masks(weight), samples)
    rows = bench.compare(products, baseline="forward dense")
    bench.print_table(rows, f"{size} x {size}, {samples} samples")
