"""2:4 sparse products of NVIDIA GPUs from Ampere (compute capability 8.0) on."""

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import bench
from helpers.sparsity import is_nm_sparse

MULTIPLE = 64  # what both sizes of a half-precision operand must be multiples of


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


class _Product(nn.Module):
    """rows (samples, in) times a 2:4 matrix (out, in), padded with zeros to multiples of 64."""

    def __init__(self, matrix: Tensor, bias: Tensor | None, compress: Callable | None, dtype):
        super().__init__()
        (self.outputs, inputs), self.dtype = matrix.shape, dtype
        self.pad = -inputs % MULTIPLE
        matrix = F.pad(matrix.detach().to(dtype), (0, self.pad, 0, -self.outputs % MULTIPLE))
        self.weight = (compress or torch.sparse.to_sparse_semi_structured)(matrix.contiguous())
        self.bias = None if bias is None else bias.detach().to(dtype)

    def product(self, rows: Tensor) -> Tensor:
        y = F.linear(F.pad(rows, (0, self.pad)).to(self.dtype), self.weight)[..., : self.outputs]
        return (y if self.bias is None else y + self.bias).to(rows.dtype)


class SemiStructuredLinear(_Product):
    """A linear layer (..., in) -> (..., out) whose 2:4 matrix is stored compressed."""

    def __init__(self, linear: nn.Linear, compress: Callable | None = None, dtype=torch.float16):
        super().__init__(linear.weight, linear.bias, compress, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class SemiStructuredConv2d(_Product):
    """A convolution (batch, in, height, width) -> (batch, out, height', width') as one product.

    The kernel is 2:4 along its input channels. Its matrix is (out, kh kw in) with the channels
    innermost, so that groups of 4 stay together; the images are unfolded alike.
    """

    def __init__(self, conv: nn.Conv2d, compress: Callable | None = None, dtype=torch.float16):
        matrix = conv.weight.permute(0, 2, 3, 1).flatten(1)
        super().__init__(matrix, conv.bias, compress, dtype)
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        (kh, kw), (sh, sw), (ph, pw) = self.kernel_size, self.stride, self.padding
        windows = F.pad(x, (pw, pw, ph, ph)).permute(0, 2, 3, 1).unfold(1, kh, sh).unfold(2, kw, sw)
        rows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
        return self.product(rows).unflatten(0, windows.shape[:3]).permute(0, 3, 1, 2)


def why_no_product(module: nn.Module) -> str:
    """Why a module cannot become a compressed 2:4 product; "" when it can."""
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"{type(module).__name__} is not a plain Conv2d or Linear"
    if isinstance(module, nn.Conv2d) and (
        module.groups != 1 or module.dilation != (1, 1) or isinstance(module.padding, str)
    ):
        return f"groups {module.groups}, dilation {module.dilation}, padding {module.padding}"
    if module.weight.shape[1] % 4 or not is_nm_sparse(module.weight, 2, 4, dim=1):
        return "the weight is not 2:4 along its inputs"
    return ""


def export(
    model: nn.Module, compress: Callable | None = None, dtype=torch.float16
) -> tuple[nn.Module, list[str]]:
    """A copy of a model whose 2:4 layers run as compressed products, and the names of these.

    compress: makes the compressed operand of a dense matrix in `dtype`; the default,
    `torch.sparse.to_sparse_semi_structured`, needs an NVIDIA GPU of capability 8.0 (`why_not`).
    """
    model = deepcopy(model)
    found = [name for name, module in model.named_modules() if not why_no_product(module)]
    for name in found:
        layer = model.get_submodule(name)
        kind = SemiStructuredConv2d if isinstance(layer, nn.Conv2d) else SemiStructuredLinear
        model.set_submodule(name, kind(layer, compress, dtype))
    return model, found


@torch.no_grad()
def print_network_speed(model: nn.Module, x: Tensor, device: torch.device) -> None:
    """Time a network with 2:4 layers on images x in half precision, dense and compressed.

    Raises `AssertionError` when the logits differ by more than half precision explains.
    """
    model, x = deepcopy(model).to(device).half().eval(), x.to(device).half()
    compressed, _ = export(model)
    close = {"rtol": 2e-2, "atol": 2e-2 * float(model(x).abs().max())}
    torch.testing.assert_close(compressed(x), model(x), **close)
    contenders = {"dense": lambda: model(x), "2:4": lambda: compressed(x)}
    bench.print_table(
        bench.compare(contenders, baseline="dense"), f"{len(x)} images, half precision"
    )
