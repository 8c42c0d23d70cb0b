"""MultiQuant's hot path, the joint step, against the straightforward forms; ratios of one run."""

import torch
import torch.nn.functional as F

from helpers import bench, recipes, width_training
from helpers.notebooks import load
from helpers.recipes import Recipe

M = load("multiquant")
WIDTHS = [2, 4, 6, 8]


class AnewConv2d(M.BranchConv2d):
    """Quantizes the chosen branches again for every width, through index copies."""

    def prepare(self):
        pass

    def codes(self):
        ids = list(range(self.running.first, self.running.first + self.running.count))
        return M.weight_codes(self.weight[ids], self.weight_lower[ids], self.weight_upper[ids])


def step(net, x, y, forward) -> None:
    """One joint step up to the gradients."""
    for p in net.parameters():
        p.grad = None
    logits = dict(zip(net.widths, forward(net, x), strict=True))
    sum(M.inplace_distillation_losses(logits, y).values()).backward()


def joint_step(recipe: Recipe, shape: tuple[int, ...], batch: int) -> None:
    torch.manual_seed(0)
    nets = [recipes.network(recipe)[0] for _ in range(4)]
    branches = {k: M.select_branches(k) for k in WIDTHS}
    ours, anew = (M.MultiWidthNet(nets, layer, branches) for layer in (M.BranchConv2d, AnewConv2d))
    x, y = torch.randn(batch, *shape), torch.arange(batch) % 10
    width_training.set_ranges(ours, x)
    anew.load_state_dict(ours.state_dict())
    contenders = {
        "each width anew": lambda: step(
            anew, x, y, lambda net, x: [net(x, [k])[:, 0] for k in net.widths]
        ),
        "shared codes and stem (ours)": lambda: step(ours, x, y, lambda net, x: net(x).unbind(1)),
    }
    for contender in contenders.values():
        contender()
    for p, q in zip(ours.parameters(), anew.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)
    rows = bench.compare(contenders, baseline="each width anew", seconds=4)
    bench.print_table(rows, f"joint step of {recipe.model} at {WIDTHS}, batch {batch}")
    for row in rows:
        print(f"  {row.name}: {batch / row.timing.median:.0f} images/s")


def weight_codes(channels: int) -> None:
    weight = torch.randn(4, channels, channels, 3, 3)
    lower, upper = M.init_weight_range(weight)
    chosen = [[branch for branch, _ in M.select_branches(k)] for k in WIDTHS]

    def again():
        return [M.weight_codes(weight[ids], lower[ids], upper[ids]) for ids in chosen]

    def once():
        codes = M.weight_codes(weight, lower, upper)
        return [codes[ids[0] : ids[-1] + 1] for ids in chosen]

    assert all(torch.equal(a, b) for a, b in zip(again(), once(), strict=True))
    rows = bench.compare({"each width": again, "once, slices": once}, baseline="each width")
    bench.print_table(rows, f"2-bit codes of 4 branches, {channels} x {channels} x 3 x 3")


def convolutions(channels: int, size: int, batch: int) -> None:
    x, w = torch.rand(batch, 4 * channels, size, size), torch.randn(4, channels, channels, 3, 3)

    def grouped():
        return F.conv2d(x, w.flatten(0, 1), padding=1, groups=4)

    def loop():
        blocks = x.unflatten(1, (4, -1)).unbind(1)
        return torch.cat([F.conv2d(a, b, padding=1) for a, b in zip(blocks, w, strict=True)], 1)

    torch.testing.assert_close(grouped(), loop(), rtol=1e-3, atol=1e-3)
    contenders = {"a loop over branches": loop, "one grouped (ours)": grouped}
    rows = bench.compare(contenders, baseline="a loop over branches")
    bench.print_table(rows, f"4 branches of {channels} channels, {size} x {size}, batch {batch}")


def main() -> None:
    """Print all tables; about a minute."""
    torch.set_num_threads(1)  # so small that threads would wait for each other
    torch.manual_seed(0)
    joint_step(Recipe(model="tiny"), (1, 28, 28), 64)
    wide = Recipe(model="resnet", dataset="cifar10", depth=8, width=32)
    for batch in (4, 32):
        joint_step(wide, (3, 32, 32), batch)
    for channels in (32, 256):
        weight_codes(channels)
    convolutions(16, 14, 64)
    convolutions(64, 14, 16)


if __name__ == "__main__":
    main()
