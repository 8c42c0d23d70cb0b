"""MRECG's hot path, the loop of one unit, against the straightforward forms; ratios of one run."""

from functools import partial

import torch
from torch import Tensor

from helpers import bench, chains, models, reconstruction, soft_rounding
from helpers.notebooks import load
from helpers.quantization import adaround_weight, fake_quantize, init_alpha

M = load("mrecg")


def plain_unit(
    forward, weights, weight_q, act_q, x, y, *, steps, batch_size, lr, act_lr=4e-5, weight=0.01,
    generator=None, **_,
):  # fmt: skip
    """`reconstruct_unit` as the equations say it: autograd all the way, two optimizers."""
    alphas = [
        init_alpha(w, grid[0]).requires_grad_() for w, grid in zip(weights, weight_q, strict=True)
    ]
    scales = [grid[0].clone().requires_grad_() for grid in act_q]
    optimizers = [torch.optim.Adam(alphas, lr), torch.optim.Adam(scales, act_lr)]
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[1], steps)
    losses = []
    for step in range(1, steps + 1):
        rows = torch.randperm(len(x), generator=generator)[:batch_size]
        soft = [
            adaround_weight(w, scale, zero, alpha, bits)
            for w, (scale, zero, bits), alpha in zip(weights, weight_q, alphas, strict=True)
        ]
        quantizers = [
            partial(fake_quantize, scale=scale, zero_point=grid[1], bits=grid[2])
            for scale, grid in zip(scales, act_q, strict=True)
        ]
        loss = (forward(x[rows], soft, quantizers) - y[rows]).square().sum(1).mean()
        (loss + M.rounding_loss(alphas, step, steps, weight=weight)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        cosine.step()
        losses.append(loss.detach())
    return M.Reconstruction([a.detach() for a in alphas], None, scales, torch.stack(losses))


def small_problem(images: int = 256):
    """The committed network at 2 bits: modules, grids and images."""
    network = models.checkpoint("mrecg_mobilenet", chains.mini_mobilenet)
    x = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    modules = chains.read_modules(network, x[:8])
    return modules, reconstruction.find_grids(modules, x, 2, 2), x


def unit_arguments(modules, grids, x, unit):
    """The positional arguments of reconstruct_unit for a run of modules."""
    before = [step for i in range(unit[0]) for step in modules[i]]
    chosen = (modules, grids.weights, grids.acts)
    steps, weight_q, act_q = ([v for i in unit for v in lists[i]] for lists in chosen)
    with torch.no_grad():
        inputs = chains.plain(before, x)
        target = chains.plain(steps, inputs)
    forward, weights = partial(chains.run, steps), [step.weight for step in steps]
    return forward, weights, weight_q, act_q, inputs, target


def units() -> None:
    problem = small_problem()
    for unit in ([1], [5], [8, 9, 10]):
        arguments = unit_arguments(*problem, unit)
        options = {"steps": 20, "batch_size": 32, "lr": 0.06}

        def call(loop, arguments=arguments, options=options):
            return loop(*arguments, **options, generator=torch.Generator().manual_seed(0))

        first, second = call(plain_unit), call(M.reconstruct_unit)
        torch.testing.assert_close(first.rec_loss, second.rec_loss, rtol=2e-2, atol=1e-3)
        runs = {"as written": partial(call, plain_unit), "fast": partial(call, M.reconstruct_unit)}
        rows = bench.compare(runs, baseline="as written")
        bench.print_table(rows, f"20 steps of unit {unit}, batch 32")


def activations() -> None:
    x = torch.randn(32, 96, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    scale, zero = torch.tensor(0.7, requires_grad=True), torch.tensor(1.0)
    ends = soft_rounding.code_ends((scale, zero, 2))

    def grads(quantize):
        return torch.autograd.grad(quantize().square().sum(), [x, scale])

    runs = {
        "fake_quantize": lambda: grads(lambda: fake_quantize(x, scale, zero, 2)),
        "on_grid": lambda: grads(lambda: soft_rounding.on_grid(x, scale, ends)),
    }
    for a, b in zip(*(run() for run in runs.values()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    rows = bench.compare(runs, baseline="fake_quantize")
    bench.print_table(rows, "activation quantizer, 32 x 96 x 16 x 16, both passes")


def carried_features() -> None:
    modules, grids, x = small_problem()
    outcome = M.run_ptq(modules, grids, x, M.group_modules(len(modules), []), M.nearest, 0)

    @torch.no_grad()
    def from_the_image() -> Tensor:
        for end in range(1, len(outcome.parts) + 1):
            features = x
            for part in outcome.parts[:end]:
                features = part(features)
        return features

    @torch.no_grad()
    def carried() -> Tensor:
        features = x
        for part in outcome.parts:
            features = part(features)
        return features

    torch.testing.assert_close(from_the_image(), carried())
    runs = {"from the image": from_the_image, "carried": carried}
    bench.print_table(bench.compare(runs, baseline="from the image"), "inputs of all 13 units")


def main() -> None:
    """Print all tables; about half a minute on one core."""
    for part in (units, activations, carried_features):
        part()


if __name__ == "__main__":
    main()
