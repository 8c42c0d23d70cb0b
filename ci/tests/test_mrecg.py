"""MRECG's invariants, its fast loop against the plain one, chains, and bad inputs."""

import inspect
import runpy
from functools import partial
from itertools import pairwise

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from helpers import ROOT, chains, models, post_training, reconstruction, soft_rounding
from helpers import unit_figures as figures
from helpers.notebooks import load
from helpers.quantization import minmax_qparams
from helpers.session import start

M = load("mrecg")
BENCH = runpy.run_path(str(ROOT / "ci/bench/mrecg.py"))
EASY = settings(deadline=None, max_examples=40)
LOSSES = st.lists(st.floats(0, 100, width=32), min_size=2, max_size=12)
PUBLIC = (
    "mse_qparams init_alpha adaround_weight fake_quant_act rounding_loss module_capacity "
    "select_joint group_modules oscillation reconstruct_unit"
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", PUBLIC.split())
def test_public_names_are_documented(name):
    assert inspect.getdoc(getattr(M, name))


# -- selection and grouping ----------------------------------------------------------------------


@EASY
@given(n=st.integers(1, 15), data=st.data())
def test_units_partition_the_modules(n, data):
    joined = data.draw(st.sets(st.integers(0, max(0, n - 2)))) if n > 1 else set()
    units = M.group_modules(n, sorted(joined))
    assert [i for unit in units for i in unit] == list(range(n))
    assert len(units) == n - len(joined)
    assert {i for unit in units for i in unit[:-1]} == joined
    assert M.group_modules(n, []) == [[i] for i in range(n)]
    assert M.group_modules(n, range(n - 1)) == [list(range(n))]


@EASY
@given(values=LOSSES, data=st.data())
def test_selection_is_the_sorted_definition(values, data):
    k = data.draw(st.integers(0, len(values) - 1))
    falls = [a - b for a, b in pairwise(values)]
    for rule, score in (("square", [f**2 for f in falls]), ("drop", falls)):
        order = sorted(range(len(falls)), key=lambda i, score=score: (-score[i], i))[:k]
        expected = sorted(i for i in order if rule == "square" or score[i] > 0)
        assert M.select_joint(values, k, rule=rule) == expected
    assert M.select_joint(sorted(values), k, rule="drop") == []


def test_ties_go_to_the_lower_index():
    assert M.select_joint([3, 2, 1, 0], 2, rule="drop") == [0, 1]
    assert M.select_joint([0, 1, 0, 1], 2) == [0, 1]


@EASY
@given(losses=LOSSES, factor=st.floats(0.1, 10), data=st.data())
def test_oscillation(losses, factor, data):
    value = M.oscillation(losses)
    assert M.oscillation(sorted(losses)) == 0
    i = data.draw(st.integers(0, len(losses) - 1))
    assert M.oscillation([*losses[:i], losses[i], *losses[i:]]) == pytest.approx(value)
    if max(losses) > 1e-6:
        assert M.oscillation([factor * loss for loss in losses]) == pytest.approx(value)
        falls = sum(max(0, a - b) for a, b in pairwise(losses))
        assert value == pytest.approx(falls / max(losses))


def test_oscillation_of_one_value_or_zeros_is_zero():
    assert M.oscillation([3.0]) == M.oscillation([0, 0, 0]) == 0.0


def test_capacity_adds_up():
    convs = [(100, 1), (30, 2), (7, 1)]
    total = M.module_capacity(convs, 4)
    assert total == sum(M.module_capacity([conv], 4) for conv in convs)
    assert M.module_capacity(convs, 8) == 2 * total
    assert M.module_capacity([(10, 2)], 4) == pytest.approx(1.6 * M.module_capacity([(10, 1)], 4))
    assert M.module_capacity(convs, [8, 2, 4]) == pytest.approx(800 + 96 + 28)
    assert M.select_joint([total, total, total], 2, rule="drop") == []


def test_published_partitions_follow_from_the_published_falls():
    def read(text):
        return [float(v) for v in text.split()]

    brecq = read("1 1.5 7 4 5.1 7.4 5.2 7.4 8.2 9.4 7.3 10.1 14.5 6.8 10.9 16.7 10.7")
    once = read("1 1.6 3.5 3.5 4.8 5.2 5.2 6.9 7.8 7 7 9.6 6.7 6.7 9.8 10.7 10.7")
    found = [M.select_joint(losses, 16, rule="drop") for losses in (brecq, once)]
    assert sorted(found[0] + found[1]) == M.PUBLISHED["EfficientNet", 18]
    units = M.group_modules(18, M.PUBLISHED["EfficientNet", 18])
    assert [u for u in units if len(u) > 1] == [[2, 3], [5, 6], [8, 9, 10], [11, 12, 13], [15, 16]]


@pytest.mark.parametrize(
    ("joined", "moved"),
    [([2, 3, 5], [1, 2, 4]), ([1, 2], [2, 3]), ([], []), ([1, 8], [2, 9]), ([1, 9], [1, 9])],
)
def test_the_control_has_the_same_sizes(joined, moved):
    units, control = M.group_modules(12, joined), M.shifted(M.group_modules(12, joined))
    assert control == M.group_modules(12, moved)
    assert sorted(map(len, units)) == sorted(map(len, control))


def test_rounds_join_falls_but_neither_the_stem_nor_the_classifier():
    profiles = {7: [9, 8, 3, 5, 4, 6, 1.0], 5: [9, 3, 3, 4, 4, 2, 1.0], 4: [9, 3, 3, 3, 3, 3, 1.0]}

    def ptq(units):
        return M.Outcome(units, profiles[len(units)], [], [], [], 0)

    history = M.mrecg(ptq, 7, 2)
    assert [len(outcome.units) for outcome in history] == [7, 5, 4]
    assert history[1].units == [[0], [1, 2], [3, 4], [5], [6]]
    assert history[2].units == [[0], [1, 2], [3, 4, 5], [6]]
    assert M.mrecg(ptq, 7, 0)[0].units == M.group_modules(7, [])


# -- grids and roundings -------------------------------------------------------------------------


@EASY
@given(seed=st.integers(0, 99), bits=st.integers(2, 8), factor=st.sampled_from([0.25, 4.0]))
def test_searched_ranges_are_never_worse_than_the_full_one(seed, bits, factor):
    x = normal(4, 60, seed=seed)

    def error(found, bits):
        return (M.fake_quantize(x, *found, bits, axis=0) - x).abs().pow(2.4).mean(1)

    found = M.mse_qparams(x, bits, axis=0)
    assert (error(found, bits) <= error(minmax_qparams(x, bits, axis=0), bits) + 1e-7).all()
    scaled = M.mse_qparams(factor * x, bits, axis=0)
    torch.testing.assert_close(scaled[0], factor * found[0])
    assert torch.equal(scaled[1], found[1])
    assert (error(M.mse_qparams(x, 8, axis=0), 8) < error(M.mse_qparams(x, 2, axis=0), 2)).all()


def test_alpha_starts_at_the_fraction_and_ends_on_the_grid():
    w = normal(6, 5, 3, 3)
    scale, zero = M.mse_qparams(w, 3, axis=0)
    s, z = (v.view(-1, 1, 1, 1) for v in (scale, zero))
    alpha = M.init_alpha(w, scale)
    assert alpha.abs().max() <= 2.3980
    torch.testing.assert_close(
        M.rectified_sigmoid(alpha), w / s - (w / s).floor(), atol=1e-6, rtol=0
    )
    soft = M.adaround_weight(w, scale, zero, alpha, 3)
    torch.testing.assert_close(soft / s, (w / s).clamp(-z, 7 - z), atol=1e-5, rtol=0)
    hard = M.adaround_weight(w, scale, zero, alpha, 3, hard=True)
    codes = hard / s + z
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert codes.round().min() >= 0
    assert codes.round().max() <= 7
    inside = (w / s + z > 0) & (w / s + z < 7)
    assert ((hard - w).abs() < s)[inside].all()


def test_fake_quant_act_masks():
    x = normal(400).requires_grad_()
    scale, zero = torch.tensor(0.5, requires_grad=True), torch.tensor(1.0)
    y = M.fake_quant_act(x, scale, zero, 2)
    slope, to_scale = torch.autograd.grad(y.sum(), [x, scale])
    code = (x / 0.5).round() + 1
    assert torch.equal(slope, ((code >= 0) & (code <= 3)).float())
    expected = torch.where(slope > 0, (x / 0.5).round() - x / 0.5, code.clamp(0, 3) - 1)
    torch.testing.assert_close(to_scale, expected.sum().detach())
    assert torch.equal(M.fake_quant_act(y, scale, zero, 2), y)
    assert M.fake_quant_act(torch.zeros(3), scale, zero, 2).eq(0).all()
    assert torch.equal(M.fake_quant_act(x, scale, zero, 2, quant_prob=0.0), x)
    some = M.fake_quant_act(x, scale, zero, 2, quant_prob=0.25, generator=generator())
    assert ((some == x) | (some == y)).all()
    assert 0.15 < (some == y).float().mean() < 0.35


@pytest.mark.parametrize("channels_last", [False, True])
def test_drop_mixes_with_the_given_probability_in_any_layout(channels_last):
    x = torch.zeros(8, 16, 9, 9)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    for p, low, high in ((0.0, 0, 0), (0.3, 0.27, 0.33), (1.0, 1, 1)):
        mixed = soft_rounding.drop(torch.ones_like(x), x, p, generator())
        assert mixed.shape == x.shape
        assert low <= mixed.mean() <= high
        assert low <= mixed[:, 5].mean() + 1e-6 or p == 0.3


@pytest.mark.parametrize("shape", [(4, 7, 3, 3), (9, 5), (31,)])
def test_fast_activation_quantizer_is_the_plain_one(shape):
    x, grad = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    grid = (torch.tensor(0.4, requires_grad=True), torch.tensor(2.0), 3)
    ends = soft_rounding.code_ends(grid)
    fast = soft_rounding.on_grid(x, grid[0], ends)
    plain = M.fake_quantize(x, *grid)
    assert torch.equal(fast, plain)
    pairs = [torch.autograd.grad(y, [x, grid[0]], grad) for y in (fast, plain)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_rounding_loss_and_its_exponent():
    alphas = [normal(5, 4), normal(7, seed=1)]
    numel, zero = 27, [torch.zeros(5, 4), torch.zeros(7)]
    assert M.rounding_loss(alphas, 1, 100) == M.rounding_loss(alphas, 19, 100) == 0
    assert M.rounding_loss([torch.tensor([10.0, -10.0])], 50, 100) == 0
    assert M.rounding_loss(zero, 60, 100, weight=0.5).item() == pytest.approx(0.5 * numel)
    later = [M.rounding_loss(alphas, step, 100).item() for step in range(20, 101, 10)]
    assert later == sorted(later, reverse=True)
    assert M.exponent(20, 100) == 20.0
    assert M.exponent(100, 100) == 2.0


@pytest.mark.parametrize("power_at", [1, 60])
def test_written_out_gradient_is_that_of_autograd(power_at):
    weights = [normal(6, 4, 3, 3), 2 * normal(5, 6, seed=1)]
    grids = [(*M.mse_qparams(w, 2, axis=0, steps=60), 2) for w in weights]
    fast = soft_rounding.Rounding(weights, grids)
    fast.alpha += 0.7 * normal(len(fast.alpha), seed=2)
    fast.alpha[::7] = 4.0  # h is clipped to 1 there
    alphas = [a.clone().requires_grad_() for a in fast.split(fast.alpha)]
    soft = [
        M.adaround_weight(w, scale, zero, alpha, bits)
        for w, (scale, zero, bits), alpha in zip(weights, grids, alphas, strict=True)
    ]
    flat = fast.soft()
    torch.testing.assert_close(flat, torch.cat([w.flatten() for w in soft]), atol=1e-6, rtol=1e-5)
    given = normal(len(flat), seed=3)
    loss = (torch.cat([w.flatten() for w in soft]) * given).sum()
    (loss + M.rounding_loss(alphas, power_at, 100, weight=0.3)).backward()
    expected = torch.cat([alpha.grad.flatten() for alpha in alphas])
    found = fast.gradient(given, M.exponent(power_at, 100), 0.3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    hard = [
        M.adaround_weight(w, scale, zero, alpha, bits, hard=True)
        for w, (scale, zero, bits), alpha in zip(weights, grids, alphas, strict=True)
    ]
    for a, b in zip(fast.hard(), hard, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


# -- one unit ------------------------------------------------------------------------------------


def toy_unit(bits=2, n=48, dtype=torch.float32):
    """Two layers with a ReLU6 between: the arguments of reconstruct_unit."""

    def draw(*shape, seed):
        return normal(*shape, seed=seed).to(dtype)

    first, second = draw(8, 4, 3, 3, seed=0), 0.3 * draw(4, 8, 1, 1, seed=2)
    steps = [
        chains.Step(first, draw(8, seed=1), padding=1, act=nn.ReLU6(), saves=True),
        chains.Step(second, draw(4, seed=3), adds=True),
    ]
    x = draw(n, 4, 6, 6, seed=4)
    with torch.no_grad():
        y = chains.plain(steps, x)
    grids = reconstruction.find_grids([steps], x, bits, bits, edge_bits=bits)
    weights = [step.weight for step in steps]
    return partial(chains.run, steps), weights, grids.weights[0], grids.acts[0], x, y


def test_fast_unit_follows_the_plain_loop():
    # in double precision, since at 2 bits a last bit of float32 soon moves a value to another code
    arguments = toy_unit(dtype=torch.float64)
    options = {"steps": 30, "batch_size": 16, "lr": 0.05, "act_lr": 0.01, "weight": 0.02}
    fast = M.reconstruct_unit(*arguments, **options, generator=generator())
    plain = BENCH["plain_unit"](*arguments, **options, generator=generator())
    torch.testing.assert_close(fast.rec_loss, plain.rec_loss, rtol=1e-9, atol=1e-9)
    for a, b in zip(fast.alphas, plain.alphas, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for a, b, grid in zip(fast.act_scales, plain.act_scales, arguments[3], strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-9)
        assert a != grid[0]


def test_unit_learns_decides_and_changes_nothing_it_was_given():
    forward, weights, weight_q, act_q, x, y = toy_unit()
    before = [t.clone() for t in (*weights, *(t for q in weight_q + act_q for t in q[:2]), x, y)]
    found = M.reconstruct_unit(
        forward, weights, weight_q, act_q, x, y, steps=60, lr=0.1, weight=0.0
    )
    assert found.rec_loss[-1] <= found.rec_loss[0]
    assert found.rec_loss.shape == (60,)
    decided = M.reconstruct_unit(
        forward, weights, weight_q, act_q, x, y, steps=300, lr=0.1, weight=0.2
    )
    h = M.rectified_sigmoid(torch.cat([a.flatten() for a in decided.alphas]))
    assert ((h < 0.01) | (h > 0.99)).float().mean() >= 0.95
    for w, hard, (scale, zero, bits) in zip(weights, decided.weights, weight_q, strict=True):
        codes = hard / scale.view(-1, 1, 1, 1) + zero.view(-1, 1, 1, 1)
        assert torch.allclose(codes, codes.round(), atol=1e-4)
        assert all(len(c.round().unique()) <= 2**bits for c in codes)
        assert hard.shape == w.shape
    after = (*weights, *(t for q in weight_q + act_q for t in q[:2]), x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    nearest = M.nearest(forward.args[0], weight_q, act_q, x, y)
    errors = []
    for result in (decided, nearest):
        quantizers = soft_rounding.quantizers(result.act_scales, act_q)
        errors.append(reconstruction.squared_error(forward(x, result.weights, quantizers), y))
    assert errors[0] < 0.9 * errors[1]


def test_unit_is_deterministic_and_dropping_needs_a_seed_only():
    arguments = toy_unit()
    options = {"steps": 8, "batch_size": 16, "lr": 0.05, "x_fp": arguments[4] + 0.1}
    for p in (1.0, 0.5):
        runs = [
            M.reconstruct_unit(*arguments, **options, quant_prob=p, generator=generator())
            for _ in range(2)
        ]
        assert torch.equal(runs[0].rec_loss, runs[1].rec_loss)
    full = M.reconstruct_unit(*arguments, steps=8, batch_size=16, lr=0.05, generator=generator())
    assert not torch.equal(full.rec_loss, runs[0].rec_loss)


def test_a_unit_without_activation_quantizers():
    w, x = normal(5, 7), normal(20, 7, seed=1)
    grid = [(*M.mse_qparams(w, 3, axis=0), 3)]
    found = M.reconstruct_unit(lambda x, w, a: x @ w[0].T, [w], grid, [], x, x @ w.T, steps=5)
    assert found.act_scales == []
    assert found.rec_loss[0] < 1e-6 + (x @ w.T).square().sum(1).mean()


def test_a_loss_that_is_not_finite_names_step_and_unit():
    forward, weights, weight_q, act_q, x, y = toy_unit()
    y = torch.full_like(y, torch.inf)
    with pytest.raises(FloatingPointError, match="step 1"):
        M.reconstruct_unit(forward, weights, weight_q, act_q, x, y, steps=3)
    with (
        pytest.raises(FloatingPointError, match=r"unit \[3, 4\]: .*step 1"),
        reconstruction.named([3, 4]),
    ):
        M.reconstruct_unit(forward, weights, weight_q, act_q, x, y, steps=3)


# -- chains --------------------------------------------------------------------------------------


def small_network(kind):
    torch.manual_seed(0)
    if kind == "mini":
        network = chains.mini_mobilenet()
    elif kind in ("basic", "bottleneck"):
        block = BasicBlock if kind == "basic" else Bottleneck
        network = ResNet(block, (1, 2, 1, 1), num_classes=10, channels=(8, 8, 16, 16))
    else:
        network = timm.create_model(kind, num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return network.eval()


@pytest.mark.parametrize(
    ("kind", "count"),
    [("mini", 13), ("basic", 7), ("bottleneck", 7), ("tf_efficientnet_lite0", 17),
     ("mobilenetv2_035", 18), ("regnetx_002", 15)],
)  # fmt: skip
def test_chains_reproduce_the_network_and_leave_it_alone(kind, count):
    network, x = small_network(kind), normal(2, 3, 48, 48)
    before = models.parameters_hash(network)
    modules = chains.read_modules(network, x)
    assert len(modules) == count
    assert models.parameters_hash(network) == before
    features = x
    with torch.no_grad():
        for steps in modules:
            features = chains.plain(steps, features)
        torch.testing.assert_close(features, network(x), rtol=1e-3, atol=1e-3)


def test_networks_that_are_no_chain_are_refused(monkeypatch):
    x = normal(1, 3, 32, 32)
    with pytest.raises(TypeError, match="VisionTransformer"):
        chains.read_modules(models.vit(), x)
    with pytest.raises(ValueError, match="squeeze"):
        chains.read_modules(timm.create_model("efficientnet_b0").eval(), x)
    network = small_network("mini")
    reader = chains.READERS["EfficientNet"]
    monkeypatch.setitem(
        chains.READERS, "EfficientNet", lambda net: reader(net)[:3] + reader(net)[4:]
    )
    with pytest.raises((ValueError, RuntimeError)):
        chains.read_modules(network, x)
    network.eval()
    monkeypatch.setitem(chains.READERS, "EfficientNet", reader)
    with pytest.raises(ValueError, match="differ from the network's by"):
        chains.read_modules(network, x, tolerance=-1.0)


def test_equal_neighbours_and_stages_of_the_small_network():
    modules = chains.read_modules(small_network("mini"), normal(1, 3, 32, 32))
    assert figures.equal_neighbours(modules) == [2, 5, 8]
    assert figures.stage_starts(modules) == [1, 4, 7, 10, 12]


# -- the whole network ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """The committed network: modules, test images and labels."""
    network = models.checkpoint("mrecg_mobilenet", chains.mini_mobilenet)
    draw, test = post_training.calibration_and_test("digits", None, size=32, count=400)
    return chains.read_modules(network, test[0][0][:8]), draw, test


def options(**changed):
    return {"steps": 4, "batch_size": 16, "lr": 0.1} | changed


def test_eight_bits_cost_nothing_without_training(small):
    modules, draw, test = small
    x = draw(64, generator())
    grids = reconstruction.find_grids(modules, x, 8, 8)
    parts = M.run_ptq(modules, grids, x, M.group_modules(13, []), M.nearest, 0).parts
    plain = [partial(chains.plain, steps) for steps in modules]
    found, full = post_training.judge(
        {"RTN": [parts]}, plain, test, (0.0, 1.0), torch.device("cpu")
    )
    assert abs(found["RTN"][0]["accuracy"] - full) <= 0.5
    assert found["RTN"][0]["kl"] < 0.01


def test_no_joins_is_brecq_and_known_prefixes_change_nothing(small):
    modules, draw, _ = small
    x = draw(48, generator())
    grids = reconstruction.find_grids(modules, x, 2, 2)
    fit, known = partial(M.jointly, **options()), {}
    ptq = partial(M.run_ptq, modules, grids, x, fit=fit, seed=3)
    history = M.mrecg(partial(ptq, known=known), 13, 1)
    fresh = ptq(M.group_modules(13, []))
    assert history[0].losses == fresh.losses == fresh.inner
    assert ptq(history[1].units).losses == history[1].losses
    for unit in history[1].units:
        assert len({history[1].losses[i] for i in unit}) == 1
        assert history[1].inner[unit[-1]] == history[1].losses[unit[-1]]
    features, target = x, x  # carried features equal a full forward pass
    with torch.no_grad():
        for part, steps in zip(fresh.parts, [[], *modules], strict=True):
            features, target = part(features), chains.plain(steps, target)
    error = reconstruction.squared_error(features, target).item()
    assert error == pytest.approx(fresh.losses[-1], rel=1e-3)


def test_all_methods_run_and_learn_something(small):
    modules, draw, _ = small
    x = draw(32, generator())
    grids = reconstruction.find_grids(modules, x, 2, 2)
    extras = M.EXTRAS
    found = M.all_methods(modules, grids, x, 0, options(), extras=extras, published=[2, 3])
    expected = "RTN BRECQ/round 1/MRECG/control/square/published/AdaRound/QDrop/MRECG + QDrop"
    assert list(found) == ["RTN", *expected.removeprefix("RTN ").split("/")]
    sizes = [sorted(map(len, found[name].units)) for name in ("MRECG", "control")]
    assert sizes[0] == sizes[1]
    joined = sum(len(unit) - 1 for unit in found["MRECG"].units)
    assert sum(len(unit) - 1 for unit in found["square"].units) == joined
    assert found["AdaRound"].flipped[5] > 0
    assert max(found["RTN"].flipped) == 0
    assert found["BRECQ"].losses[5] < found["RTN"].losses[5]
    assert found["QDrop"].losses != found["BRECQ"].losses


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_adaround_handles_shortcuts_with_layers(kind):
    network, x = small_network(kind), normal(12, 3, 32, 32)
    modules = chains.read_modules(network, x)
    grids = reconstruction.find_grids(modules, x, 8, 8)
    fit = partial(M.layerwise, **options(steps=3, lr=1e-3, batch_size=None))
    outcome = M.run_ptq(modules, grids, x, M.group_modules(len(modules), []), fit, 0)
    with torch.no_grad():
        reference = network(x)
    assert outcome.losses[-1] < 0.02 * reference.square().sum(1).mean()


def test_ranges_average_over_batches_and_edges_have_their_bits(small):
    modules, draw, _ = small
    x = draw(32, generator())
    grids = reconstruction.find_grids(modules, x, 3, 4, batch_size=16)
    bits = [[grid[2] for grid in own] for own in grids.weights]
    assert bits[0] == [8, 3, 3]
    assert bits[-1] == [3, 8]
    assert [grid[2] for grid in grids.acts[-1]] == [4, 8]
    assert grids.image[2] == 8
    halves = [reconstruction.find_grids(modules, part, 3, 4) for part in x.split(16)]
    low, high = (half.acts[0][0][0] for half in halves)
    mixed = grids.acts[0][0][0]
    torch.testing.assert_close(mixed, 0.9 * low + 0.1 * high, rtol=1e-3, atol=1e-5)


def test_constant_zero_channels_are_no_error():
    w = normal(3, 4)
    w[1] = 0
    scale, zero = M.mse_qparams(w, 4, axis=0)
    assert scale[1] == pytest.approx(1.19e-7)
    assert M.adaround_weight(w, scale, zero, M.init_alpha(w, scale), 4)[1].eq(0).all()


def test_the_watcher_sees_the_starting_fractions():
    forward, weights, weight_q, act_q, x, y = toy_unit(bits=4)
    watch = figures.Watcher(forward.args[0], weight_q, (1, 3))
    M.reconstruct_unit(watch, weights, weight_q, act_q, x, y, steps=3, lr=0.1)
    assert sorted(watch.seen) == [1, 3]
    flat = torch.cat([(w / q[0].view(-1, 1, 1, 1)).flatten() for w, q in zip(weights, weight_q)])  # noqa: B905
    fractions = flat - flat.floor()
    assert len(watch.seen[1]) <= len(fractions)
    assert torch.isin((watch.seen[1] * 1e3).round(), (fractions * 1e3).round()).float().mean() > 0.9


# -- data ----------------------------------------------------------------------------------------


def test_photographs_calibrate_and_test():
    draw, test = post_training.calibration_and_test("photos", None, size=48, count=150, seed=1)
    assert [len(x) for x, _ in test] == [100, 50]
    assert (test[0][1] == -1).all()
    assert draw(5, generator()).shape == (5, 3, 48, 48)
    assert torch.equal(draw(5, generator()), draw(5, generator()))


def test_half_of_the_validation_pictures_calibrate(tmp_path):
    for name, value in zip("abcdef", (0, 50, 100, 150, 200, 250), strict=True):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (value,) * 3).save(tmp_path / "val" / name / "0.png")
    draw, test = post_training.calibration_and_test("images", tmp_path, size=32, source="val")
    calibration = {round(255 * image.mean().item()) for image in draw(3, generator())}
    assert calibration == {0, 100, 200}
    ((x, labels),) = list(test)
    assert labels.tolist() == [1, 3, 5]
    assert [round(255 * image.mean().item()) for image in x] == [50, 150, 250]
    with pytest.raises(ValueError, match="there are 3"):
        draw(4, generator())
    with pytest.raises(FileNotFoundError, match="train"):
        post_training.calibration_and_test("images", tmp_path, size=32)[0](2, generator())


def test_judging_uses_the_reference_where_labels_are_unknown():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    test = [(torch.zeros(2, 3, 4, 4), torch.tensor([-1, 0]))]
    same, other = [lambda x: logits], [lambda x: logits.flip(1)]
    found, full = post_training.judge(
        {"a": [same, other]}, same, test, (0.0, 1.0), torch.device("cpu")
    )
    assert full == 50
    assert [row["accuracy"] for row in found["a"]] == [50, 50]
    assert found["a"][0]["kl"] == 0
    p = torch.tensor(2.0).sigmoid()
    assert found["a"][1]["kl"] == pytest.approx(((2 * p - 1) * 2).item(), rel=1e-5)


def test_training_a_network_and_refusing_unknown_weights():
    session = start(seed=0, device="cpu", banner=False)
    recipe = {"dataset": "digits", "steps": 2, "batch_size": 8, "lr": 1e-3}
    network = post_training.load_network("mini", 1.0, "train", recipe, False, session)
    assert not network.training
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        post_training.load_network("mini", 1.0, "nothing_here", recipe, False, session)
    assert post_training.normalization("mini", network) == (0.0, 1.0)
    mean, std = post_training.normalization("other", timm.create_model("tf_efficientnet_lite0"))
    assert mean.shape == std.shape == (3, 1, 1)


# -- bad input -----------------------------------------------------------------------------------

WEIGHT, SCALE = torch.ones(2, 3), torch.ones(2)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "bits", lambda: M.mse_qparams(WEIGHT, 9)),
        (ValueError, "bits", lambda: M.fake_quant_act(WEIGHT, SCALE[0], SCALE[0], 1)),
        (ValueError, "p", lambda: M.mse_qparams(WEIGHT, 4, p=0)),
        (ValueError, "x", lambda: M.mse_qparams(torch.empty(0), 4)),
        (ValueError, "x", lambda: M.mse_qparams(torch.tensor([1.0, torch.nan]), 4)),
        (ValueError, "x", lambda: M.mse_qparams(torch.tensor([1, 2]), 4)),
        (ValueError, "scale", lambda: M.init_alpha(WEIGHT, -SCALE)),
        (ValueError, "scale", lambda: M.init_alpha(WEIGHT, torch.ones(3))),
        (ValueError, "alpha", lambda: M.adaround_weight(WEIGHT, SCALE, SCALE, torch.ones(2), 4)),
        (ValueError, "quant_prob",
         lambda: M.fake_quant_act(WEIGHT, SCALE[0], SCALE[0], 4, quant_prob=1.5)),
        (ValueError, "step", lambda: M.rounding_loss([WEIGHT], 0, 10)),
        (ValueError, "total", lambda: M.rounding_loss([WEIGHT], 1, 0)),
        (ValueError, "warmup", lambda: M.rounding_loss([WEIGHT], 1, 10, warmup=1.0)),
        (ValueError, "conv", lambda: M.module_capacity([], 4)),
        (ValueError, "weights > 0", lambda: M.module_capacity([(0, 1)], 4)),
        (ValueError, "stride", lambda: M.module_capacity([(5, 3)], 4)),
        (ValueError, "bits for each", lambda: M.module_capacity([(5, 1)], [4, 4])),
        (ValueError, "k", lambda: M.select_joint([1, 2], -1)),
        (ValueError, "k", lambda: M.select_joint([1, 2], 2)),
        (ValueError, "2 values", lambda: M.select_joint([1], 0)),
        (ValueError, "NaN", lambda: M.select_joint([1, float("nan")], 1)),
        (ValueError, "square, drop", lambda: M.select_joint([1, 2], 1, rule="rise")),
        (ValueError, "distinct", lambda: M.group_modules(4, [1, 1])),
        (ValueError, "0..2", lambda: M.group_modules(4, [3])),
        (TypeError, "list", lambda: M.group_modules(4, "[1, 2]")),
        (ValueError, "losses", lambda: M.oscillation([])),
        (ValueError, "losses", lambda: M.oscillation([1, -1])),
        (ValueError, "losses", lambda: M.oscillation([1, float("inf")])),
        (ValueError, "calibration", lambda: post_training.calibration_and_test(
            "digits", None, size=32, source="test")),
        (FileNotFoundError, "data_root", lambda: post_training.calibration_and_test(
            "images", None, size=32)),
    ],
)  # fmt: skip
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_bad_units():
    forward, weights, weight_q, act_q, x, y = toy_unit(n=8)

    def call(x=x, y=y, forward=forward, **changed):
        M.reconstruct_unit(forward, weights, weight_q, act_q, x, y, **{"steps": 2} | changed)

    with pytest.raises(ValueError, match="first dimension"):
        call(y=y[:4])
    with pytest.raises(ValueError, match="shape"):
        call(forward=lambda x, w, a: forward(x, w, a)[:, :2])
    with pytest.raises(ValueError, match="x_fp"):
        call(quant_prob=0.5)
    with pytest.raises(ValueError, match="batch_size"):
        call(batch_size=9)
    with pytest.raises(ValueError, match="total"):
        call(steps=0)
