"""Training, testing and costing networks of several bit-widths (those of `helpers.bit_widths`).

A network here has `widths`, `branches` {bits: chosen branches}, `stem`, `body`, `head`, `convs`,
`running`, and returns logits (batch, widths, classes).
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from helpers import bit_widths, metrics, recipes
from helpers.claims import Paired, paired
from helpers.data.folders import data_folder
from helpers.quantization import check_bits
from helpers.recipes import Recipe
from helpers.training import accelerator, fit, reestimate_norms

Losses = Callable[[dict[int, Tensor], Tensor], dict[int, Tensor]]


def sorted_widths(widths: Sequence[int], num_branches: int) -> list[int]:
    """The widths in ascending order. Raises ValueError for one that cannot be served."""
    for bits in widths:
        check_bits(bits, 2, 2 * num_branches)
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"widths must be different and at least one, got {list(widths)}")
    return sorted(widths)


def check_names(chosen: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a method that is not known."""
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"unknown methods {', '.join(unknown)}; known: {', '.join(known)}")


def check_setup(recipe: Recipe, session, init: str, fp_steps: int) -> None:
    """Raise FileNotFoundError or ValueError when a run could not start."""
    if recipe.dataset != "digits":
        data_folder(session.data_root, recipe.dataset)
    if init == "pretrained" and fp_steps == 0:
        raise ValueError("init=pretrained copies a network that fp_steps=0 leaves out")
    with torch.device("meta"):
        bit_widths.parts(recipes.network(recipe)[0])  # raises for an unknown architecture


def check_logits(logits: dict[int, Tensor], target: Tensor) -> None:
    """Raise ValueError unless all logits are (batch, classes) and fit target (batch,)."""
    shapes = {tuple(z.shape) for z in logits.values()}
    if len(shapes) != 1:
        raise ValueError(f"need logits of one shape for one width or more, got {sorted(shapes)}")
    batch, classes = shapes.pop()
    known = target.device.type == "cpu"  # a look at a GPU's tensor would make the step wait
    if len(target) != batch or (known and not bool(((target >= 0) & (target < classes)).all())):
        raise ValueError(f"target must hold {batch} classes in 0..{classes - 1}")


def full_precision(recipe: Recipe, session, bn_images: int) -> dict:
    """Train one ordinary network: its weights `state` and its top-1 `accuracy` [%]."""
    net = synchronized(recipes.network(recipe)[0].to(session.device), session)
    recipes.train(recipe, net, session, description="full precision")
    reestimate_norms(net, recipes.first_images(recipe, session, bn_images)[0], session=session)
    return {"state": state(net), "accuracy": recipes.test_accuracy(recipe, net, session)}


def state(net: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, on the CPU."""
    return {name: value.cpu() for name, value in net.state_dict().items()}


def copies(recipe: Recipe, count: int, start: dict[str, Tensor], noise: float) -> list[nn.Module]:
    """Networks for `count` branches: with new weights, or, if `start` has weights, copies of it.

    noise: standard deviation of what is added to the convolutions of the bodies of several
    copies, in standard deviations of the weight. Random numbers are torch's global ones.
    """
    nets = [recipes.network(recipe)[0] for _ in range(count)]
    for net in nets if start else []:
        net.load_state_dict(start)
        for p in bit_widths.parts(net)[1].parameters() if count > 1 else []:
            if p.dim() == 4:
                p.data += noise * p.data.std() * torch.randn(p.shape)
    return nets


@torch.no_grad()
def set_ranges(net: nn.Module, x: Tensor) -> None:
    """First ranges of the inputs, layer by layer while a batch flows through, small widths first.

    All widths run in train mode, in which the network is left.
    """
    for calibrating in (True, False):
        for conv in net.convs:
            conv.calibrating = calibrating
        if calibrating:
            net.train()(x, sorted(net.widths))


def fit_widths(
    net: nn.Module, recipe: Recipe, session, losses: Losses, range_lr: float, **options
) -> list[list[float]]:
    """Train all widths in every step; the losses (steps, widths) in the order of net.widths.

    losses({bits: logits}, y) -> {bits: loss ()}, whose sum is minimised. Weights and norms follow
    the recipe's optimizer, ranges Adam on a cosine. options: of `helpers.training.fit`.
    Raises FloatingPointError naming width and step of a loss that is not finite.
    """
    weights, ranges = split_parameters(net)
    optimizer, scheduler = recipes.optimization(recipe, weights)
    adam, history = torch.optim.Adam(ranges or [torch.zeros(())], range_lr), []
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, recipe.steps)

    def loss(logits, y):
        by_width = losses(dict(zip(net.widths, logits.unbind(1), strict=True)), y)
        history.append(torch.stack([by_width[k] for k in net.widths]).detach())
        return sum(by_width.values())

    def step_ranges(step):
        adam.step()
        adam.zero_grad(set_to_none=True)
        cosine.step()

    options |= {"steps": recipe.steps, "session": session, "scheduler": scheduler}
    batches = recipes.batches(recipe, session, "train")
    try:
        fit(net, batches, loss, optimizer, on_step=step_ranges, **options)
    except FloatingPointError:
        step, column = (~torch.stack(history).isfinite()).nonzero()[0].tolist()
        which = f"the loss of {net.widths[column]} bits is not finite at step {step}"
        raise FloatingPointError(which) from None
    return torch.stack(history).tolist()


@torch.no_grad()
def hits(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], session) -> Tensor:
    """1 where a test image is classified correctly, else 0: float (outputs, images), on the CPU.

    model(x) -> logits (batch, outputs, classes). A `DataLoader` is shared out over processes.
    """
    runner, shared = accelerator(), isinstance(batches, DataLoader)
    batches = runner.prepare(batches) if shared else batches
    device = runner.device if runner.num_processes > 1 else session.device
    training = model.training
    model.to(device).eval()
    right = []
    for x, y in batches:
        hit = model(x.to(device)).argmax(-1) == y.to(device)[:, None]
        right.append(runner.gather_for_metrics(hit) if shared else hit)
    model.train(training)
    return torch.cat(right).T.float().cpu()


def hits_before_and_after(net: nn.Module, recipe: Recipe, session, images: Tensor) -> Tensor:
    """Hits (2, outputs, test images): as training left the norms, and recalibrated on images."""
    found = [hits(net, recipes.batches(recipe, session, "test"), session)]
    reestimate_norms(net, images, session=session)
    return torch.stack([*found, hits(net, recipes.batches(recipe, session, "test"), session)])


def split_parameters(model: nn.Module) -> tuple[nn.ParameterList, list[nn.Parameter]]:
    """(weights and norms, clipping ranges): parameters named lower or upper are ranges."""
    found = {True: [], False: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            found["lower" in name or "upper" in name].append(p)
    return nn.ParameterList(found[False]), found[True]


def synchronized(model: nn.Module, session) -> nn.Module:
    """The model with batch norms that see the batches of all processes (on several GPUs)."""
    if accelerator().num_processes > 1 and session.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def lead(ours: Sequence[dict], theirs: Sequence[dict]) -> Paired:
    """Points of accuracy, the mean over the widths, by which one method's runs are ahead.

    Runs have `hits` (widths, images); they are paired by position and test image. Nothing to
    compare gives an endless interval around 0.
    """
    if not ours or not theirs:
        return Paired(0.0, -math.inf, math.inf, 0)
    return paired(*(torch.cat([100 * r["hits"].mean(0) for r in many]) for many in (ours, theirs)))


def prepare(net: nn.Module) -> None:
    """What the widths share, before parts of a network are used on their own."""
    for conv in net.convs:
        conv.prepare()


@torch.no_grad()
def body_macs(net: nn.Module, x: Tensor, bits: int) -> int:
    """Multiply-adds of all passes through the body at a width, for one image x (1, C, h, w)."""
    total, h = 0, net.stem.eval()(x)
    prepare(net)
    for now in bit_widths.passes(bits, net.branches[bits]):
        net.running.become(now)
        total += metrics.macs(net.body, now.tile(h))
    return total


@torch.no_grad()
def same_codes(net: nn.Module) -> bool:
    """Whether every branch multiplies with the same codes, of four levels, at all widths."""
    prepare(net)
    fine = []
    for conv in net.convs:
        seen = {}
        for now in (p for k in net.widths for p in bit_widths.passes(k, net.branches[k])):
            net.running.become(now)
            for branch, codes in enumerate(conv.codes(), now.first):
                fine.append(torch.equal(seen.setdefault(branch, codes), codes))
                fine.append(len(codes.unique()) <= 4)
    return all(fine)


def pair_accuracies(net: nn.Module, images: Tensor, batches, session) -> Tensor:
    """Top-1 [%] (widths, widths) of weights at one even width and inputs at another, ascending.

    The norms of a copy of the network are recalibrated on the images for each pair.
    """
    net, columns = copy.deepcopy(net), []
    net.widths = [k for k in net.widths if k % 2 == 0]
    for bits in sorted(net.widths):
        net.act_bits = bits
        reestimate_norms(net, images, session=session)
        columns.append(100 * hits(net, batches, session).mean(1).flip(0))
    return torch.stack(columns, 1)


@torch.no_grad()
def branches_alone(net: nn.Module, batches, bits: int, device) -> tuple[Tensor, Tensor]:
    """Top-1 [%] of each branch of a width (n,), and their pooled features' mean cosine (n, n)."""
    right, similar, count = [], [], len(net.branches[bits])
    net.eval()
    prepare(net)
    for x, y in batches:
        features = net.features(net.stem(x.to(device)), bits).unflatten(1, (count, -1))
        logits = torch.stack([net.head(f) for f in features.unbind(1)], 1)
        right.append(logits.argmax(-1) == y.to(device)[:, None])
        pooled = F.normalize(features.flatten(3).mean(-1), dim=-1)
        similar.append(pooled @ pooled.transpose(1, 2))
    return 100 * torch.cat(right).double().mean(0).cpu(), torch.cat(similar).mean(0).cpu()
