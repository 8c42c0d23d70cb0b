"""MultiQuant's invariants, its network against an independent one, baselines, and bad inputs."""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import bit_widths as bw
from helpers import metrics, recipes, training
from helpers import width_layers as layers
from helpers import width_training as wt
from helpers.notebooks import load
from helpers.recipes import Recipe
from helpers.session import start

M = load("multiquant")
EASY = settings(deadline=None, max_examples=25)
WIDTHS = [2, 4, 6, 8]
OPTIONS = {"bit_widths": WIDTHS, "num_branches": 4, "branch_noise": 0.1}
OPTIONS |= {"bn_images": 64, "range_lr": 1e-3, "init": "pretrained"}
TINY = Recipe(model="tiny", steps=2, batch_size=16, lr=0.05, schedule="cosine")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def session(seed=0):
    return start(seed=seed, device="cpu", banner=False)


def build(method="mb", widths=WIDTHS, recipe=TINY, state=None, **options):
    return M.quantized_network(recipe, OPTIONS | options, method, widths, 0, state or {})


def digits(net, count=32):
    """A network whose ranges are set by real digits, and a batch."""
    x, y = recipes.first_images(TINY, session(), count)
    wt.set_ranges(net, x)
    return x, y


def train(net, teacher="largest"):
    losses = partial(M.inplace_distillation_losses, teacher=teacher)
    return wt.fit_widths(net, TINY, session(), losses, 1e-3)


@EASY
@given(bits=st.integers(1, 8), seed=st.integers(0, 999), low=st.floats(-2, 0.5))
def test_quantizer_levels_errors_and_gradients(bits, seed, low):
    high, q = low + 1.7, 2**bits - 1
    x = draw(300, seed=seed).requires_grad_()
    ends = [torch.tensor(v, requires_grad=True) for v in (low, high)]
    y = M.uniform_quantize(x, *ends, bits)
    assert y.min() >= 0
    assert y.max() <= 1
    torch.testing.assert_close(y * q, (y * q).round(), rtol=0, atol=1e-4)
    assert torch.equal(M.uniform_quantize(y.detach(), 0, 1, bits), y)
    assert (y.detach()[x.detach().argsort()].diff() >= 0).all()
    inside = ((x >= low) & (x <= high)).detach()
    error = (low + y * 1.7 - x)[inside].abs()
    assert error.max() <= 1.7 / (2 * q) + 1e-5
    g = draw(300, seed=seed + 1)
    y.backward(g)
    assert (x.grad[~inside] == 0).all()
    torch.testing.assert_close(x.grad[inside], g[inside] / 1.7)
    total = sum(end.grad for end in ends)
    torch.testing.assert_close(total, -g[inside].sum() / 1.7, rtol=1e-4, atol=1e-4)
    to_upper = -(g * (x.detach() - low) / 1.7**2)[inside].sum()
    torch.testing.assert_close(ends[1].grad, to_upper, rtol=1e-4, atol=1e-4)


@EASY
@given(seed=st.integers(0, 999), sigma=st.floats(0.5, 4))
def test_two_bit_weights_have_no_zero_and_are_symmetric(seed, sigma):
    w = draw(500, seed=seed)
    codes = M.quantize_weight(w, -sigma, sigma)
    assert set((3 * codes).round().int().tolist()) <= {-3, -1, 1, 3}
    torch.testing.assert_close(M.quantize_weight(-w, -sigma, sigma), -codes)


def test_initial_ranges_are_those_of_each_branch():
    w = torch.stack([draw(4, 3, 3, 3), 5 * draw(4, 3, 3, 3, seed=1) + 2])
    lower, upper = M.init_weight_range(w)
    assert upper.tolist() == pytest.approx([3 * branch.std().item() for branch in w])
    assert torch.equal(lower, -upper)
    assert not upper.requires_grad
    x = draw(2000, seed=2).relu()
    low, high = M.init_activation_range(x)
    assert low == 0
    assert low.dim() == high.dim() == 0
    assert high.item() == pytest.approx(3 * x.std().item() / math.sqrt(1 - 2 / math.pi), rel=1e-5)


TABLE = {  # bits: (amortized, plain)
    2: ([(0, 1)], [(0, 1)]),
    3: ([(0, 1), (1, 0.5)], [(0, 1), (1, 0.5)]),
    4: ([(1, 1), (2, 1)], [(0, 1), (1, 1)]),
    5: ([(1, 1), (2, 1), (3, 0.5)], [(0, 1), (1, 1), (2, 0.5)]),
    6: ([(1, 1), (2, 1), (3, 1)], [(0, 1), (1, 1), (2, 1)]),
    7: ([(0, 1), (1, 1), (2, 1), (3, 0.5)], [(0, 1), (1, 1), (2, 1), (3, 0.5)]),
    8: ([(0, 1), (1, 1), (2, 1), (3, 1)], [(0, 1), (1, 1), (2, 1), (3, 1)]),
}


@pytest.mark.parametrize("bits", TABLE)
def test_the_branch_table(bits):
    assert M.select_branches(bits) == TABLE[bits][0]
    assert M.select_branches(bits, amortize=False) == TABLE[bits][1]


@EASY
@given(num_branches=st.integers(1, 8), amortize=st.booleans(), data=st.data())
def test_branches_are_distinct_ascending_and_cost_their_width(num_branches, amortize, data):
    bits = data.draw(st.integers(2, 2 * num_branches))
    chosen = M.select_branches(bits, num_branches, amortize)
    ids, shares = zip(*chosen, strict=True)
    assert sum(shares) == bits / 2
    assert list(ids) == list(range(ids[0], ids[0] + len(ids)))
    assert ids[-1] < num_branches
    assert sum(shares) * M.bit_operations(12, 2, bits) == M.bit_operations(12, bits, bits)


def test_no_offset_in_the_small_setting_and_the_usage_counts():
    assert [M.select_branches(k, 2) for k in (2, 3, 4)] == [TABLE[k][1] for k in (2, 3, 4)]
    assert M.widths_served(WIDTHS, 4, True) == [2, 3, 3, 2]
    assert M.widths_served(WIDTHS, 4, False) == [4, 3, 2, 1]


def case(seed=0, branches=4):
    x = draw(2, 3 * branches, 7, 7, seed=seed).relu()
    weight = draw(4, 5, 3, 3, 3, seed=seed + 1).requires_grad_()
    lower, upper = (end.requires_grad_() for end in M.init_weight_range(weight))
    ends = torch.tensor([0.0, 0.1, 0.0, 0.2]), torch.tensor([2.0, 1.5, 1.0, 3.0])
    return x, weight, lower, upper, *ends


@pytest.mark.parametrize(("bits", "stride", "padding"), [(2, 1, 0), (4, 2, 1), (6, 1, 2)])
def test_one_branch_is_a_plain_convolution_and_several_are_its_concatenation(bits, stride, padding):
    branches = [b for b, _ in M.select_branches(bits)]
    x, w, wl, wu, al, au = case(branches=len(branches))
    y = M.multibranch_conv2d(x, w, wl, wu, al, au, bits, None, stride, padding)
    parts = []
    for block, b in zip(x.split(3, 1), branches, strict=True):
        t = ((block - al[b]) / (au[b] - al[b])).clamp(0, 1)
        a = (t * (2**bits - 1)).round() / (2**bits - 1)
        code = (((w[b] - wl[b]) / (wu[b] - wl[b])).clamp(0, 1) * 3).round()
        parts.append(F.conv2d(a, 2 * code / 3 - 1, stride=stride, padding=padding))
        one = M.multibranch_conv2d(block, w, wl, wu, al, au, bits, [b], stride, padding)
        torch.testing.assert_close(one, parts[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y, torch.cat(parts, 1), rtol=1e-4, atol=1e-5)


def test_unchosen_branches_have_no_influence_and_no_gradient():
    x, w, wl, wu, al, au = case(branches=2)
    y = M.multibranch_conv2d(x, w, wl, wu, al, au, 4)
    y.square().sum().backward()
    for tensor in (w, wl, wu):
        assert (tensor.grad[[0, 3]] == 0).all()
        assert (tensor.grad[[1, 2]] != 0).any()
    changed = [t.detach().clone() for t in (w, wl, wu, al, au)]
    for t in changed:
        t[[0, 3]] *= 2
    changed[1][[0, 3]] -= 1
    assert torch.equal(M.multibranch_conv2d(x, *changed, 4), y)


def test_codes_go_by_branch_and_not_by_position():
    x, w, wl, wu, al, au = case(branches=2)
    y = M.multibranch_conv2d(x, w, wl, wu, al, au, 4, [3, 1])
    swapped = M.multibranch_conv2d(x.roll(3, 1), w, wl, wu, al, au, 4, [1, 3])
    torch.testing.assert_close(y, swapped.roll(5, 1))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_arithmetic_is_the_same(bits):
    x, w, wl, wu, al, au = case(branches=1)
    codes = [(2**bits - 1) * layers.input_codes(x, al[:1], au[:1], bits),
             3 * (M.weight_codes(w[:1], wl[:1], wu[:1]) + 1) / 2]  # fmt: skip
    A, C = (code.round().double() for code in codes)
    integers = F.conv2d(A, 2 * C[0] - 3) / (3 * (2**bits - 1))
    y = M.multibranch_conv2d(x, w, wl, wu, al, au, bits, [0])
    torch.testing.assert_close(y.double(), integers, rtol=0, atol=1e-4)


def test_merging_means_blocks_of_channels():
    x = draw(2, 12, 3, 3)
    assert torch.equal(M.merge_branches(x, 1), x)
    torch.testing.assert_close(M.merge_branches(x, 3), (x[:, :4] + x[:, 4:8] + x[:, 8:]) / 3)
    torch.testing.assert_close(M.merge_branches(x.repeat(1, 4, 1, 1), 4), x)


def test_switching_error_falls_with_the_bits_and_is_zero_without_a_switch():
    w = draw(5000)
    errors = [M.switching_error(w, -3, 3, k) for k in range(2, 9)]
    assert all(a > b for a, b in pairwise(errors))
    assert errors[-1] == 0
    assert errors[0].dim() == 0
    assert errors[0] == pytest.approx(0.33, abs=0.03)
    best = layers.best_range(w, 2)
    assert M.switching_error(w, -best, best, 2) == pytest.approx(0.1, abs=0.03)


def test_distillation_losses_and_their_gradients():
    y = torch.arange(8) % 5
    z = {k: draw(8, 5, seed=k).requires_grad_() for k in (2, 8, 4)}
    z[4] = z[8].detach().clone().requires_grad_()
    losses = M.inplace_distillation_losses(z, y)
    assert losses[8] == F.cross_entropy(z[8], y)
    p = z[8].detach().softmax(-1)
    soft = -(p * z[2].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(losses[2], (soft + F.cross_entropy(z[2], y)) / 2)
    sum(losses.values()).backward()
    alone = z[8].detach().clone().requires_grad_()
    F.cross_entropy(alone, y).backward()
    assert torch.equal(z[8].grad, alone.grad)
    torch.testing.assert_close(z[4].grad, alone.grad / 2)
    z = {k: v.detach() for k, v in z.items()}
    z[4] = draw(8, 5, seed=9)
    chain = M.inplace_distillation_losses(z, y, "larger")
    expected = (F.cross_entropy(z[2], z[4].softmax(-1)) + F.cross_entropy(z[2], y)) / 2
    torch.testing.assert_close(chain[2], expected)
    none = M.inplace_distillation_losses(z, y, "none")
    assert none == {k: F.cross_entropy(v, y) for k, v in z.items()}
    assert M.inplace_distillation_losses({4: z[4]}, y) == {4: F.cross_entropy(z[4], y)}


def test_the_network_is_the_public_functions_composed():
    net = build()
    x, _ = digits(net)
    net.eval()
    with torch.no_grad():
        logits = dict(zip(net.widths, net(x).unbind(1), strict=True))
        for bits in WIDTHS:
            branches = [b for b, _ in M.select_branches(bits)]
            h = net.stem(x).repeat(1, len(branches), 1, 1)
            for conv, norm, relu in net.body:
                acts = conv.act_lower[str(bits)], conv.act_upper[str(bits)]
                ranges = conv.weight_lower, conv.weight_upper, *acts
                h = M.multibranch_conv2d(h, conv.weight, *ranges, bits, None, conv.stride, 1)
                h = relu(norm.norms[str(bits)](h))
            expected = net.head(M.merge_branches(h, len(branches)))
            torch.testing.assert_close(logits[bits], expected, rtol=1e-4, atol=1e-5)


def test_ranges_are_set_where_a_branch_serves():
    net = build()
    digits(net)
    for conv in net.convs:
        for bits in WIDTHS:
            served = [b for b, _ in M.select_branches(bits)]
            upper = conv.act_upper[str(bits)]
            assert (upper[served] != 1).all()
            assert all(upper[b] == 1 for b in range(4) if b not in served)


def test_a_joint_step_reaches_every_branch_range_and_norm():
    net = build()
    x, y = digits(net)
    logits = dict(zip(net.widths, net(x).unbind(1), strict=True))
    losses = M.inplace_distillation_losses(logits, y)
    stem = net.stem[0].weight
    each = [torch.autograd.grad(v, stem, retain_graph=True)[0] for v in losses.values()]
    sum(losses.values()).backward()
    torch.testing.assert_close(stem.grad, sum(each), rtol=1e-3, atol=1e-5)
    for conv in net.convs:
        assert (conv.weight.grad.flatten(1).abs().sum(1) > 0).all()
        assert (conv.weight_upper.grad != 0).all()
        for bits in WIDTHS:
            served = [b for b, _ in M.select_branches(bits)]
            assert (conv.act_upper[str(bits)].grad[served] != 0).all()
    for norm in (m for m in net.body.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.weight.grad.abs().sum() > 0


def test_equal_branches_stay_equal_and_noise_parts_them():
    torch.manual_seed(3)
    state = recipes.network(TINY)[0].state_dict()
    for noise in (0.0, 0.1):
        net = build(state=state, branch_noise=noise)
        digits(net)
        train(net)
        for conv in net.convs:
            assert torch.equal(conv.weight[1], conv.weight[2]) == (noise == 0)
            assert not torch.equal(conv.weight[0], conv.weight[1])
    net = M.MultiWidthNet([recipes.network(TINY)[0]] * 4, M.BranchConv2d, {8: M.select_branches(8)})
    assert torch.equal(net.convs[0].weight[0], net.convs[0].weight[3])


def test_weight_codes_are_computed_once_a_batch(monkeypatch):
    net, calls = build(), []
    x, _ = digits(net)
    count = M.weight_codes
    monkeypatch.setattr(M, "weight_codes", lambda *a: calls.append(1) or count(*a))
    net(x)
    assert len(calls) == len(net.convs)
    shares = net.convs[0].two_bit.untyped_storage().data_ptr()
    net.running.become(bw.Pass(6, 1, 3, False, 6))
    assert net.convs[0].codes().untyped_storage().data_ptr() == shares


@pytest.mark.parametrize("method", [name for name in M.SCHEMES if name != "mb"])
def test_every_method_trains_a_step(method):
    scheme = M.SCHEMES[method]
    net = build(method, WIDTHS if scheme.joint else [4])
    digits(net)
    before = net.convs[0].weight.detach().clone()
    losses = train(net, scheme.teacher)
    assert len(losses) == 2
    assert all(math.isfinite(v) for row in losses for v in row)
    assert not torch.equal(before, net.convs[0].weight)
    net.running.become(bw.Pass(4, *((1, 2) if scheme.choice == "amortized" else (0, 1)), False, 4))
    net.convs[0].prepare()
    assert all(len(code.unique()) <= 16 for code in net.convs[0].codes())


def test_adabits_codes_nest_and_match_the_levels_of_two_bits():
    v = draw(4000).tanh()
    eight = ((layers.floor_codes(v, 8) + 1) * 128 - 0.5).round().int()
    for bits in range(1, 8):
        codes = ((layers.floor_codes(v, bits) + 1) * 2 ** (bits - 1) - 0.5).round().int()
        assert torch.equal(codes, eight >> (8 - bits))
    assert (4 * layers.floor_codes(v, 2)).unique().tolist() == [-3, -1, 1, 3]
    v.requires_grad_()
    layers.floor_codes(v, 2).sum().backward()
    assert (v.grad == 1).all()


def test_switching_uses_one_or_several_weight_ranges():
    assert set(build("same_a").convs[0].weight_upper) == {"all"}
    assert set(build("same_b").convs[0].weight_upper) == set("2468")
    anyprecision = build("anyprecision")
    assert not wt.split_parameters(anyprecision)[1]


def test_fresh_branches_differ_and_copies_carry_the_norms():
    net = build()
    assert not torch.equal(net.convs[0].weight[1], net.convs[0].weight[2])
    source = recipes.network(TINY)[0]
    for norm in (m for m in source.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight)
    net = build(state=source.state_dict())
    gamma = source.layers[0][1].weight
    assert torch.equal(net.body[0][1].norms["6"].weight, gamma.repeat(3))


NETS = {
    "resnet": (Recipe(dataset="cifar10", model="resnet", depth=14), (3, 32, 32), 0.03),
    "resnet18": (Recipe(dataset="imagenet", model="resnet18"), (3, 64, 64), 0.02),
    "mobilenetv1_100": (Recipe(dataset="imagenet", model="mobilenetv1_100"), (3, 64, 64), 0.02),
}


@pytest.mark.parametrize("name", NETS)
def test_real_architectures_serve_even_and_odd_widths_at_their_cost(name):
    recipe, shape, tolerance = NETS[name]
    torch.manual_seed(0)
    net = recipes.network(recipe)[0]
    branches = {k: M.select_branches(k, 2) for k in (2, 3, 4)}
    multi = M.MultiWidthNet([net, copy.deepcopy(net)], M.BranchConv2d, branches)
    x = draw(2, *shape)
    wt.set_ranges(multi, x)
    with torch.no_grad():
        assert multi(x).shape == (2, 3, 1000 if recipe.dataset == "imagenet" else 10)
    macs = {k: wt.body_macs(multi, x[:1], k) for k in branches}
    body = bw.parts(net)[1]
    one = metrics.macs(body, bw.parts(net)[0].eval()(x[:1]))
    assert macs[2] == one
    assert macs[4] == 2 * one
    assert macs[3] == pytest.approx(1.5 * one, rel=tolerance)


def test_a_full_precision_body_is_untouched_by_stem_body_and_head():
    for recipe, shape, _ in NETS.values():
        net = recipes.network(recipe)[0].eval()
        x = draw(2, *shape)
        with torch.no_grad():
            torch.testing.assert_close(nn.Sequential(*bw.parts(net))(x), net(x))


class Exact(bw.WidthConv2d):
    """Neither weights nor inputs are quantized."""

    def codes(self):
        return self.weight[self.running.branches]

    def quantize(self, x):
        return x


@pytest.mark.parametrize("name", NETS)
def test_equal_branches_without_quantization_are_the_network(name):
    recipe, shape, _ = NETS[name]
    torch.manual_seed(0)
    net = recipes.network(recipe)[0]
    x = draw(4, *shape)
    multi = M.MultiWidthNet([net] * 2, Exact, {k: M.select_branches(k, 2) for k in (2, 4)})
    with torch.no_grad():
        expected = net.train()(x)
        for logits in multi.train()(x).unbind(1):
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_recalibration_is_the_plain_mean_over_batches():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Unflatten(1, (1, -1)))
    x = 3 * draw(60, 3, 4, 4) + 1
    net.eval()
    training.reestimate_norms(net, x, session=session(), batch_size=20)
    parts = x.split(20)
    mean = torch.stack([p.mean((0, 2, 3)) for p in parts]).mean(0)
    torch.testing.assert_close(net[0].running_mean, mean)
    assert net[0].momentum == 0.1
    assert not net.training


def test_a_run_depends_on_its_seed_alone():
    torch.manual_seed(0)
    starts = {s: recipes.network(TINY)[0].state_dict() for s in (0, 1)}
    recipe = {"model": "tiny", "steps": 2, "batch_size": 16, "schedule": "cosine"}

    def hits(method, seed):
        return M.run(recipe, OPTIONS, method, seed, starts, device="cpu", data_root="")

    first = hits("mb", 0)
    assert torch.equal(first["hits"], hits("mb", 0)["hits"])
    assert first["hits"].shape == (4, 1000)
    assert not torch.equal(first["hits"], hits("mb", 1)["hits"])
    assert hits("lsq", 0)["mean"] == pytest.approx(
        sum(hits("lsq", 0)[f"{k} bits"] for k in WIDTHS) / 4
    )


def test_pairs_and_single_branches():
    net = build()
    digits(net)
    x, _ = recipes.first_images(TINY, session(), 64)
    tests = recipes.batches(TINY, session(), "test")[:1]
    training.reestimate_norms(net, x, session=session())
    pairs = wt.pair_accuracies(net, x, tests, session())
    own = 100 * wt.hits(net, tests, session()).mean(1).flip(0)
    torch.testing.assert_close(pairs.diagonal(), own)
    assert net.act_bits is None
    alone, similar = wt.branches_alone(net, tests, 8, torch.device("cpu"))
    assert alone.shape == (4,)
    torch.testing.assert_close(similar.diagonal(), torch.ones(4))
    assert wt.same_codes(net)
    assert not wt.same_codes(build("switched"))


def test_a_loss_that_is_not_finite_names_width_and_step():
    net = build()
    digits(net)
    with torch.no_grad():
        net.body[2][1].norms["6"].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="6 bits is not finite at step 0"):
        train(net)


X, W = draw(2, 12, 5, 5).relu(), draw(4, 5, 3, 3, 3)
R = (*M.init_weight_range(W), torch.zeros(4), torch.ones(4))
Y = torch.tensor([0, 1])
Z = {2: draw(2, 3), 4: draw(2, 3)}
BAD = [
    (lambda: M.uniform_quantize(X, 0, 1, 0), ValueError, r"1\.\.16, got 0"),
    (lambda: M.uniform_quantize(X, 0, 1, 17), ValueError, r"1\.\.16, got 17"),
    (lambda: M.uniform_quantize(X, 0, 1, 2.0), ValueError, "got 2.0"),
    (lambda: M.uniform_quantize(X, 0, 1, True), ValueError, "got True"),
    (lambda: M.uniform_quantize(X, 1, 1, 2), ValueError, "empty clipping range"),
    (lambda: M.quantize_weight(W, torch.ones(1), torch.zeros(1)), ValueError, "empty clipping"),
    (lambda: M.uniform_quantize(X.int(), 0, 1, 2), TypeError, "expects a floating-point tensor"),
    (lambda: M.select_branches(1), ValueError, r"2\.\.8, got 1"),
    (lambda: M.select_branches(9), ValueError, r"2\.\.8, got 9"),
    (lambda: M.select_branches(5, 2), ValueError, r"2\.\.4, got 5"),
    (lambda: M.init_weight_range(torch.ones(2, 3, 3)), ValueError, "2 different values"),
    (lambda: M.init_weight_range(draw(2, 1)), ValueError, "2 different values"),
    (lambda: M.init_activation_range(torch.ones(9)), ValueError, "2 different values"),
    (lambda: M.init_activation_range(torch.ones(1)), ValueError, "2 different values"),
    (lambda: M.multibranch_conv2d(X[:, :5], W, *R, 8), ValueError, r"\(2, 5, 5, 5\), weight \(4"),
    (lambda: M.multibranch_conv2d(X, W[0], *R, 8), ValueError, r"weight must be \(G"),
    (lambda: M.multibranch_conv2d(X, W, R[0][:2], *R[1:], 8), ValueError, "one value a branch"),
    (lambda: M.multibranch_conv2d(X[:, :3], W, *R, 8, [4]), ValueError, "different ids"),
    (lambda: M.multibranch_conv2d(X[:, :6], W, *R, 8, [1, 1]), ValueError, "different ids"),
    (lambda: M.multibranch_conv2d(X, W, *R, 8, []), ValueError, "different ids"),
    (lambda: M.multibranch_conv2d(X, W, *R, 3), ValueError, "needs a half branch; pass branches"),
    (lambda: M.multibranch_conv2d(X, W, *R, 17), ValueError, "got 17"),
    (lambda: M.merge_branches(X, 5), ValueError, "does not hold 5 branches"),
    (lambda: M.inplace_distillation_losses({}, Y), ValueError, "one width or more"),
    (lambda: M.inplace_distillation_losses({**Z, 8: draw(2, 4)}, Y), ValueError, "of one shape"),
    (lambda: M.inplace_distillation_losses(Z, Y + 2), ValueError, r"classes in 0\.\.2"),
    (lambda: M.inplace_distillation_losses(Z, Y - 1), ValueError, r"classes in 0\.\.2"),
    (lambda: M.inplace_distillation_losses(Z, Y[:1]), ValueError, "2 classes"),
    (lambda: wt.sorted_widths([2, 4, 2], 4), ValueError, "must be different"),
    (lambda: wt.sorted_widths([], 4), ValueError, "at least one"),
    (lambda: wt.sorted_widths([2, 10], 4), ValueError, r"2\.\.8, got 10"),
    (lambda: build()(X, [2, 3]), ValueError, r"trained: \[2, 4, 6, 8\]"),
    (lambda: M.MultiWidthNet([recipes.network(TINY)[0]], M.BranchConv2d, {4: M.select_branches(4)}),
     ValueError, "3 branches are needed, got 1"),
    (lambda: bw.parts(nn.Sequential()), ValueError, "no stem, body and head"),
    (lambda: bw.passes(4, [(0, 1.0), (2, 1.0)]), ValueError, "neighbours"),
    (lambda: wt.check_setup(Recipe(dataset="cifar10"), session(), "scratch", 0),
     FileNotFoundError, "data_root"),
    (lambda: wt.check_setup(TINY, session(), "pretrained", 0), ValueError, "fp_steps=0"),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(BAD)))
def test_bad_input(index):
    call, error, message = BAD[index]
    with pytest.raises(error, match=message):
        call()


def test_widths_are_sorted():
    assert wt.sorted_widths([8, 2, 6], 4) == [2, 6, 8]
