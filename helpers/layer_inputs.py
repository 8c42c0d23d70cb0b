"""Quantizers for the inputs of layers: record what layers see, wrap them, compare methods.

A model tells its layers by `quantized_layers() -> {name: does its input come out of a ReLU}`.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from time import perf_counter

import torch
from torch import Tensor, nn

from helpers.claims import paired
from helpers.data.super_resolution import Pair
from helpers.experiments import outcome
from helpers.quantization import uniform_quantize
from helpers.subsets import SortedRows, check_calibration
from helpers.super_resolution import judge_sets, random_patches

Normalise = Callable[[Tensor, bool], tuple[Tensor, Tensor, Tensor]]  # -> z, scale, shift


@torch.no_grad()
def at_each_layer(model: nn.Module, x: Tensor, look: Callable[[Tensor, bool], object]) -> dict:
    """{layer: look(its input, post_relu)} in one forward pass; one input at a time is held."""
    found, hooks = {}, []
    for name, post_relu in model.quantized_layers().items():

        def hook(module, inputs, name=name, post_relu=post_relu):
            found[name] = look(inputs[0], post_relu)

        hooks.append(model.get_submodule(name).register_forward_pre_hook(hook))
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class QuantizedConv2d(nn.Module):
    """A convolution whose input passes a quantizer in every call."""

    def __init__(self, conv: nn.Conv2d, quantizer: nn.Module | None):
        super().__init__()
        self.quantizer, self.conv = copy.deepcopy(quantizer) or nn.Identity(), conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.quantizer(x))


def with_quantizers(
    model: nn.Module,
    quantizers: dict[str, nn.Module | None],
    quantize_weight: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """A copy whose layers have quantized inputs and, once and for all, quantized weights.

    quantizers: a module for the input of every layer, or None to leave it exact.
    Raises KeyError when the names are not those of the model's layers.
    """
    layers = model.quantized_layers()
    if set(layers) != set(quantizers):
        raise KeyError(f"layers to quantize are {sorted(layers)}, got {sorted(quantizers)}")
    copied = copy.deepcopy(model)
    for name, quantizer in quantizers.items():
        conv = copied.get_submodule(name)
        if quantize_weight is not None:
            conv.weight.data = quantize_weight(conv.weight.data)
        copied.set_submodule(name, QuantizedConv2d(conv, quantizer))
    return copied


class Uniform(nn.Module):
    """2^bits uniform values in a range: two numbers, or a function of x that gives two tensors."""

    def __init__(self, bits: int, ends: tuple[float, float] | Callable[[Tensor], tuple]):
        super().__init__()
        self.bits, self.ends = bits, ends

    def forward(self, x: Tensor) -> Tensor:
        ends = self.ends(x) if callable(self.ends) else self.ends
        low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in ends)
        high = torch.where(high > low, high, low + 1)  # a constant channel stays what it is
        return uniform_quantize(x, low, high, self.bits) * (high - low) + low


@dataclass
class Layer:
    """Calibration input x [N, C, H, W] of one layer; what methods share is computed once."""

    x: Tensor
    post_relu: bool
    normalise: Normalise
    restarts: int = 5
    seed: int = 0

    def __post_init__(self):
        check_calibration(self.x, self.post_relu)

    def generator(self) -> torch.Generator:
        """The layer's own random numbers, the same for every method."""
        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def rows(self) -> SortedRows:
        """Normalised values, channel by channel."""
        z = self.normalise(self.x, self.post_relu)[0]
        return SortedRows(z.transpose(0, 1).flatten(1))

    @cached_property
    def pool(self) -> SortedRows:
        """Raw values, all channels together."""
        return SortedRows(self.x.reshape(1, -1))

    def ends(self, share: float = 0.0) -> tuple[float, float]:
        """The quantiles `share` and 1 - share of all values; 0 and the upper one after a ReLU."""
        values, cut = self.pool.x[0], int(share * self.pool.x.shape[1])
        return 0.0 if self.post_relu else values[cut].item(), values[-1 - cut].item()


def typical_row(layer: Layer) -> Tensor:
    """Normalised values (m,) of one channel: the most bell-shaped, after a ReLU the spikiest."""
    centred = layer.rows.x - layer.rows.x.mean(1, keepdim=True)
    kurtosis = centred.pow(4).mean(1) / centred.square().mean(1).square().clamp(min=1e-12)
    return layer.rows.x[kurtosis.argmax() if layer.post_relu else (kurtosis - 3).abs().argmin()]


def mse_ends(layer: Layer, bits: int) -> tuple[float, float]:
    """The best of 60 shrunken ranges: the error of a uniform quantizer is that of its points."""
    shares = torch.linspace(0.05, 1, 60, dtype=torch.float64)[:, None]
    low, high = (end * shares for end in layer.ends())
    points = low + (high - low) * torch.arange(2**bits) / (2**bits - 1)
    best = layer.pool.sse(points[None])[0].argmin()
    return low[best].item(), high[best].item()


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of each channel of each image."""
    return x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)


def normalised_ends(x: Tensor, normalise: Normalise, post_relu: bool) -> tuple[Tensor, Tensor]:
    """Where z is -1 (0 after a ReLU) and 1."""
    _, scale, shift = normalise(x, post_relu)
    return (shift if post_relu else shift - scale), shift + scale


UNIFORM = {  # {method: (layer, bits) -> quantizer of its input}
    "minmax": lambda layer, bits: Uniform(bits, layer.ends()),
    "percentile": lambda layer, bits: Uniform(bits, layer.ends(0.001)),
    "mse": lambda layer, bits: Uniform(bits, mse_ends(layer, bits)),
    "dyn_minmax": lambda layer, bits: Uniform(bits, extremes),
    "cn_uniform": lambda layer, bits: Uniform(
        bits, partial(normalised_ends, normalise=layer.normalise, post_relu=layer.post_relu)
    ),
}


@dataclass
class Experiment:
    """Methods on the same network, calibration patches and test images.

    methods: {name: (layer, bits) -> quantizer}. tests, references: as for `judge_sets`.
    """

    model: nn.Module
    methods: dict[str, Callable[[Layer, int], nn.Module]]
    quantize_weight: Callable[[Tensor, int], Tensor]
    normalise: Normalise
    tests: dict[str, Sequence[Pair]]
    references: dict[str, Sequence[Tensor]]
    pairs: Sequence[Pair]
    patches: int
    patch: int
    scale: int
    restarts: int
    device: torch.device

    def layers(self, look: Callable[[Layer], object], seed: int) -> dict:
        """{layer: look(its calibration input)} for the patches of one seed."""
        generator = torch.Generator().manual_seed(seed)
        x = random_patches(self.pairs, self.patches, self.patch, self.scale, generator)[0]

        def look_at(x: Tensor, post_relu: bool) -> object:
            return look(Layer(x, post_relu, self.normalise, self.restarts, seed))

        return at_each_layer(self.model, x.to(self.device), look_at)

    def quantized(
        self, names: Sequence[str], bits: int, seed: int
    ) -> Iterator[tuple[str, nn.Module, float]]:
        """(method, network, seconds of the set-up), one by one; weights have at least 4 bits."""
        seconds = dict.fromkeys(names, 0.0)

        def look(layer: Layer) -> dict[str, nn.Module]:
            made, _ = {}, (layer.rows, layer.pool)  # sorted now, so that no method pays for all
            for name in names:
                began = perf_counter()
                made[name] = self.methods[name](layer, bits)
                seconds[name] += perf_counter() - began
            return made

        made = self.layers(look, seed)
        weight = partial(self.quantize_weight, bits=max(4, bits))
        for name in names:
            quantizers = {layer: found[name] for layer, found in made.items()}
            yield name, with_quantizers(self.model, quantizers, weight), seconds[name]

    def run(self, jobs: Sequence[tuple[Sequence[str], int, Sequence[int]]]) -> dict:
        """{(method, bits): [PSNRs and seconds, seed by seed]} for jobs (methods, bits, seeds).

        Raises ValueError for a method that there is not.
        """
        from IPython.display import display

        unknown = {name for names, _, _ in jobs for name in names} - set(self.methods)
        if unknown:
            raise ValueError(f"no methods {sorted(unknown)}; there are {', '.join(self.methods)}")
        runs = [(names, bits, seed) for names, bits, seeds in jobs for seed in seeds]
        found, began, line = {}, perf_counter(), display("", display_id=True)
        for done, (names, bits, seed) in enumerate(runs, 1):
            for name, network, seconds in self.quantized(names, bits, seed):
                scores = judge_sets(network, self.tests, self.scale, self.device, self.references)
                found.setdefault((name, bits), []).append(scores | {"seconds": seconds})
            if line is not None:  # None outside IPython
                line.update(f"{done} of {len(runs)} calibrations, {perf_counter() - began:.0f} s")
        return found


def leads(runs: dict, ours: str, other: str, bits: int, key: str = "fid") -> list[float]:
    """`ours` minus another method, seed by seed [dB]; NaN where one of them was not run."""
    pair = (outcome(runs, (name, bits), key) for name in (ours, other))
    return [a - b for a, b in zip(*pair, strict=False)]


def worst_lead(runs: dict, ours: str, other: str, bits: int, key: str = "fid") -> float:
    """The least of `leads`; NaN when there is none."""
    return min(leads(runs, ours, other, bits, key), default=math.nan)


def print_leads(runs: dict, ours: str, others: Sequence[str], bits: int) -> None:
    """Print how far the fidelity of one method lies above each other one."""
    print(f"{bits} bits, fidelity of {ours} minus the other's [dB]: mean, 95 % interval, least")
    for other in others:
        ahead = leads(runs, ours, other, bits)
        if other != ours:
            mean = paired(ahead, [0.0] * len(ahead))
            print(f"  {other:12}{mean!s:24}{min(ahead):+6.2f}")
