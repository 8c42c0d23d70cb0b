"""DFSQ's points, quantizers and networks: invariants, independent forms, readers, bad inputs."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import layer_inputs, super_resolution
from helpers.data.super_resolution import PHOTOGRAPHS, align, downscale, sr_pairs
from helpers.metrics import psnr, psnr_y
from helpers.notebooks import load
from helpers.sr_networks import RDN, SRResNet, load_strictly, sr_network
from helpers.subsets import SortedRows, brute_force

D = load("dfsq")
U, U2 = D.universal_set(), D.universal_set(D.SQ_WORDS)
EASY = settings(deadline=None, max_examples=25)
PUBLIC = (
    "universal_set kmeans_1d snap_to_set calibrate_points optimal_points subset_quantize "
    "quantize_activation quantize_weight_minmax EDSR quantize_model psnr_y"
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, **options):
    return torch.randn(*shape, generator=generator(seed), **options)


def values(count, seed=0, width=0.3):
    return (width * draw(count, seed=seed, dtype=torch.float64)).clamp(-1, 1)


def points_for(channels, bits, seed=0, post_relu=False):
    x = draw(2, channels, 24, 24, seed=seed)
    return D.calibrate_points(x.relu() if post_relu else x, bits, post_relu, generator=generator())


def nearest(z, points):
    """By distance, with float64 and an explicit tie rule: the smaller point."""
    points = points.sort(-1).values
    distance = (z.double().unsqueeze(-1) - points).abs()
    return points.expand_as(distance).gather(-1, distance.argmin(-1, keepdim=True)).squeeze(-1)


@pytest.mark.parametrize("name", PUBLIC.split())
def test_public_names_are_documented(name):
    assert inspect.getdoc(getattr(D, name))


# ---------------------------------------------------------------- universal set


def test_universal_set_by_its_definition():
    sums = {sum(choice) / 4 for choice in itertools.product(*D.DFSQ_WORDS)}
    assert U.tolist() == sorted(sums | {-s for s in sums})
    assert (len(U), len(D.universal_set(signed=False)), len(U2)) == (377, 189, 29)
    assert U.dtype == torch.float64
    assert torch.equal(U, -U.flip(0))
    assert (U.diff() > 0).all()
    assert (U[0], U[-1]) == (-1, 1)
    assert torch.equal((U * 1024).round(), U * 1024)
    assert U.diff().max() == 0.125
    small = (D.universal_set(D.SQ_WORDS, signed=False) * 32).int().tolist()
    assert small == [0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 17, 18, 20, 24, 32]
    assert not (U == 0).logical_and(torch.signbit(U)).any()


def test_one_word_and_no_word():
    assert D.universal_set(((1.0, 0.5, 0.0),)).tolist() == [-1, -0.5, 0, 0.5, 1]
    for words in ((), ((1.0,), ())):
        with pytest.raises(ValueError, match="words"):
            D.universal_set(words)


def test_snapping_to_the_set_is_a_projection():
    z = values(500)
    snapped = D.snap_to_set(z, U)
    assert torch.equal(D.snap_to_set(snapped, U), snapped)
    torch.testing.assert_close((z - snapped).abs(), (z[:, None] - U).abs().amin(1))
    assert D.snap_to_set(torch.tensor([[0.9375, -0.9375]]).double(), U).tolist() == [[0.875, -1]]


# ---------------------------------------------------------------- selection


def plain_kmeans(x, init, rounds):
    """Lloyd with a distance matrix; asserts that no cluster is empty."""
    centers = init.clone()
    for _ in range(rounds):
        order = centers.sort(stable=True)
        index = order.indices[(x[:, None] - order.values).abs().argmin(1)]
        assert len(index.unique()) == len(centers)
        centers = torch.stack([x[index == k].mean() for k in range(len(centers))])
        centers[-1] = 0
    return centers.sort().values


@EASY
@given(k=st.integers(1, 8), seed=st.integers(0, 99), rounds=st.integers(1, 6))
def test_kmeans_is_plain_lloyd(k, seed, rounds):
    x = values(400, seed)
    quantiles = x.sort().values[torch.linspace(20, 380, k).long()]
    init = torch.cat([quantiles[quantiles.abs() > 0.02][: k - 1], torch.zeros(1)])
    found = D.kmeans_1d(x, init, max_iter=rounds, tol=0)
    torch.testing.assert_close(found, plain_kmeans(x, init.double(), rounds))
    assert (found == 0).any()


def test_kmeans_stops_and_does_not_need_a_start_in_order():
    x = torch.cat([torch.full((20,), v) for v in (-0.5, 0.0, 0.25, 0.75)]).double()
    found = D.kmeans_1d(x, torch.tensor([0.8, -0.4, 0.2, 0.0]))
    assert found.tolist() == [-0.5, 0, 0.25, 0.75]
    assert D.kmeans_1d(x, torch.zeros(1)).tolist() == [0]


def test_rare_values_among_zeros_are_found():
    x = torch.zeros(5000, dtype=torch.float64)
    x[:40] = torch.linspace(0.2, 1, 40)
    row = SortedRows(x[None])
    points = D.select_points(row, 4, U, 5, generator())
    assert row.sse(points) < 1.5 * optimum(x, 4)


def optimum(z, k):
    return D.optimal_points(z, U, k, pin_zero=True)[1]


@EASY
@given(k=st.integers(1, 4), seed=st.integers(0, 999), pin=st.booleans(), width=st.floats(0.05, 1))
def test_the_optimum_is_what_enumeration_finds(k, seed, pin, width):
    z, some = values(60, seed, width), U[torch.randperm(377, generator=generator(seed))[:11]]
    some = torch.cat([some, torch.zeros(1)]).unique()
    points, sse = D.optimal_points(z, some, k, pin_zero=pin)
    subsets = [s for s in itertools.combinations(some.tolist(), k) if not pin or 0.0 in s]
    tried = [(z[:, None] - torch.tensor(s)).square().amin(1).sum().item() for s in subsets]
    assert sse == pytest.approx(min(tried))
    assert (z[:, None] - points).square().amin(1).sum().item() == pytest.approx(sse)
    assert len(points) == len(points.unique()) == k
    assert not pin or (points == 0).any()
    if not pin:
        assert brute_force(z, some, k)[1] == pytest.approx(sse)


def test_the_optimum_against_everything_else():
    z, row = values(3000), SortedRows(values(3000)[None])
    free = [D.optimal_points(z, U, k)[1] for k in range(1, 20)]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(free))
    for k in (2, 4, 8, 16):
        pinned = optimum(z, k)
        assert free[k - 1] <= pinned + 1e-12
        assert pinned <= row.sse(D.select_points(row, k, U, 5, generator())).item() + 1e-12
        random = U[torch.randperm(377, generator=generator(k))[:k]].sort().values
        assert free[k - 1] <= row.sse(random[None]).item()
    everything, sse = D.optimal_points(z, U, 377)
    assert torch.equal(everything, U)
    assert sse == pytest.approx((z - D.snap_to_set(z, U)).square().sum().item())


def test_kmeans_is_close_to_the_optimum():
    z = values(4000)
    row = SortedRows(z[None])
    for k, most in ((4, 1.1), (8, 1.2), (16, 1.6)):
        ratio = row.sse(D.select_points(row, k, U, 5, generator())).item() / optimum(z, k)
        assert 1 - 1e-9 <= ratio < most


def test_rows_are_independent_and_sums_agree():
    rows = values(4 * 300).view(4, 300)
    data = SortedRows(rows)
    points = D.best_subsets(data, U, 5, pin_zero=True)
    for row, found in zip(rows, points, strict=True):
        assert torch.equal(D.optimal_points(row, U, 5, pin_zero=True)[0], found)
    for factor in (1.0, 0.5):
        distances = (factor * rows[:, :, None] - points[:, None]).square().amin(2).sum(1)
        torch.testing.assert_close(data.scaled(factor).sse(points), distances)


@pytest.mark.parametrize("bits", [1, 3, 4, 6])
@pytest.mark.parametrize("post_relu", [False, True])
def test_calibrated_points(bits, post_relu):
    points = points_for(5, bits, post_relu=post_relu)
    assert points.shape == (5, 2**bits)
    assert points.dtype == torch.float64
    assert (points.diff(dim=1) >= 0).all()
    assert torch.isin(points, U).all()
    assert (points == 0).any(1).all()
    assert not post_relu or (points >= 0).all()
    again = points_for(5, bits, post_relu=post_relu)
    assert torch.equal(points, again)


# ---------------------------------------------------------------- rounding activations


@EASY
@given(bits=st.integers(1, 8), seed=st.integers(0, 99), grid=st.booleans())
def test_subset_quantize_takes_the_nearest_point(bits, seed, grid):
    choice = torch.rand(3, 377, generator=generator(seed)).argsort(1)[:, : 2**bits]
    points = U[choice] if grid else torch.rand(3, 2**bits, generator=generator(seed)).double()
    borders = (points.sort(1).values[:, 1:] + points.sort(1).values[:, :-1]).flatten() / 2
    z = torch.cat([draw(40, seed=seed).clamp(-1, 1), borders.float()[:80], U.float()[::5]])
    z = z.repeat(2 * 3).view(2, 3, 1, -1)
    q = D.subset_quantize(z, points)
    expected = nearest(z, points[:, None, None])
    assert q.dtype == z.dtype
    if grid:
        assert torch.equal(q, expected.float())
    else:  # float32 borders
        torch.testing.assert_close((z - q).abs(), (z - expected).abs().float())
    assert torch.equal(D.subset_quantize(q, points), q)
    ordered = D.subset_quantize(z.sort(-1).values, points)
    assert (ordered.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_ties_go_to_the_smaller_point_and_ends_are_clamped(dtype):
    points = torch.tensor([[1.0, -0.5, 0.0, 0.25]])
    z = torch.tensor([-9, -1, -0.25, -0.2490234375, 0.125, 0.625, 0.6259765625, 5], dtype=dtype)
    q = D.subset_quantize(z.view(1, 1, 1, -1), points).flatten()
    assert q.tolist() == [-0.5, -0.5, -0.5, 0, 0, 0.25, 1, 1]


def test_gradient_is_the_identity():
    x = draw(2, 3, 8, 8).requires_grad_()
    points = points_for(3, 2)
    D.subset_quantize(x, points).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    x.grad = None
    D.quantize_activation(x, points).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def plain_activation(x, points, post_relu):
    """The definition, in float64."""
    x = x.double()
    mu = torch.zeros(()) if post_relu else x.mean((2, 3), keepdim=True)
    s = (x - mu).abs().amax((2, 3), keepdim=True) + 1e-8
    return nearest((x - mu) / s, points[:, None, None]) * s + mu


def mostly_close(a, b, share=0.001):
    """Equal up to a few values that rounding flips to the neighbouring point."""
    return (~torch.isclose(a.double(), b.double(), rtol=1e-4, atol=1e-4)).double().mean() <= share


@pytest.mark.parametrize("post_relu", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantize_activation_is_its_definition(bits, post_relu):
    x = 40 * draw(3, 4, 30, 30, seed=1) + 7
    x = x.relu() if post_relu else x
    points = points_for(4, bits, post_relu=post_relu)
    found = D.quantize_activation(x, points, post_relu)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert mostly_close(found, plain_activation(x, points, post_relu))
    alone = torch.cat([D.quantize_activation(part, points, post_relu) for part in x.split(1)])
    assert torch.equal(found, alone)
    flipped = D.quantize_activation(x.flip(2, 3), points, post_relu).flip(2, 3)
    assert mostly_close(flipped, found)
    assert mostly_close(D.quantize_activation(3 * x, points, post_relu), 3 * found)
    for channel in found.flatten(0, 1):
        assert len(channel.unique()) <= 2**bits
    if post_relu:
        assert not found[x == 0].any()
    else:
        assert mostly_close(D.quantize_activation(x + 50, points), found + 50)


def test_flat_channels_come_back():
    points = points_for(3, 4)
    x = torch.tensor([0.0, 3.0, -1e-3]).view(1, 3, 1, 1).expand(2, 3, 7, 5)
    torch.testing.assert_close(D.quantize_activation(x, points), x)
    zero = torch.zeros(1, 3, 4, 4)
    assert torch.equal(D.quantize_activation(zero, points, post_relu=True), zero)


# ---------------------------------------------------------------- weights and networks


@EASY
@given(bits=st.integers(1, 8), seed=st.integers(0, 99), shift=st.floats(-2, 2))
def test_weights(bits, seed, shift):
    w = draw(4, 3, 3, 3, seed=seed) + shift
    w[0] = 0.7  # a constant channel
    rounded = D.quantize_weight_minmax(w, bits)
    low, high = w.amin((1, 2, 3)), w.amax((1, 2, 3))
    d = (high - low) / (2**bits - 1)
    assert torch.equal(rounded[0], w[0])
    for channel, step, before in zip(rounded[1:], d[1:], w[1:], strict=True):
        assert len(channel.unique()) <= 2**bits
        assert (channel - before).abs().max() <= step * 1.001 + 1e-6
        codes = channel / step
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
    torch.testing.assert_close(D.quantize_weight_minmax(rounded, bits), rounded, atol=1e-5, rtol=0)


def test_weights_keep_zeros_and_improve_with_bits():
    w = draw(8, 4, 3, 3)
    w[:, :, 1, 1] = 0
    errors = []
    for bits in range(1, 9):
        rounded = D.quantize_weight_minmax(w, bits)
        assert not rounded[:, :, 1, 1].any()
        errors.append((rounded - w).square().sum().item())
    assert errors == sorted(errors, reverse=True)
    d = (w.amax((1, 2, 3)) - w.amin((1, 2, 3))) / 255
    assert ((rounded - w).abs().amax((1, 2, 3)) <= 0.51 * d).all()


def small_edsr(**options):
    torch.manual_seed(0)
    return D.EDSR(**{"n_resblocks": 3, "n_feats": 8} | options).eval()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_shape_and_keys(scale):
    model = small_edsr(scale=scale)
    x = 255 * torch.rand(2, 3, 9, 7, generator=generator())
    with torch.no_grad():
        assert model(x).shape == (2, 3, scale * 9, scale * 7)
    names = {key.rsplit(".", 1)[0] for key in model.state_dict()}
    blocks = {f"body.{i}.body.{j}" for i in range(3) for j in (0, 2)}
    tail = {"tail.0.0", "tail.1"} | ({"tail.0.2"} if scale == 4 else set())
    assert names == {"sub_mean", "add_mean", "head.0", "body.3"} | blocks | tail


def test_edsr_baseline_has_the_known_number_of_parameters():
    with torch.device("meta"):
        model = D.EDSR()
    shifts = 24
    assert sum(p.numel() for p in model.parameters()) == 1_369_859 + shifts
    inside = [model.get_submodule(n).weight.numel() for n in model.quantized_layers()]
    assert (len(inside), sum(inside)) == (32, 1_179_648)


def test_edsr_by_hand():
    model, x = small_edsr(res_scale=0.1), 255 * torch.rand(1, 3, 6, 6, generator=generator())
    mean = 255 * torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    with torch.no_grad():
        h = model.head(x - mean)
        y = h
        for block in model.body[:-1]:
            y = y + 0.1 * block.body[2](block.body[0](y).relu())
        y = model.tail[0][0](model.body[-1](y) + h)
        y = model.tail[1](torch.nn.functional.pixel_shuffle(y, 2)) + mean
        torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("kind", ["edsr", "rdn", "srresnet"])
def test_every_network_tells_its_layers(kind):
    with torch.device("meta"):
        model = sr_network(kind, 4, 16, 64)
        assert model(torch.empty(1, 3, 8, 8)).shape == (1, 3, 32, 32)
    layers = model.quantized_layers()
    assert len(layers) == {"edsr": 32, "rdn": 16 * 9 + 2, "srresnet": 32}[kind]
    assert sum(layers.values()) == (16 if kind == "edsr" else 0)
    assert all(isinstance(model.get_submodule(n), torch.nn.Conv2d) for n in layers)


def test_official_key_names_of_the_other_networks():
    with torch.device("meta"):
        rdn, srresnet = set(RDN().state_dict()), set(SRResNet().state_dict())
    assert {"SFENet1.weight", "RDBs.15.convs.7.conv.0.bias", "RDBs.0.LFF.weight", "GFF.1.weight",
            "UPNet.0.weight", "UPNet.2.bias"} <= rdn  # fmt: skip
    assert {"conv_input.weight", "residual.15.in2.running_mean", "residual.0.relu.weight",
            "bn_mid.bias", "upscale.0.weight", "upscale.2.weight",
            "conv_output.weight"} <= srresnet  # fmt: skip
    assert not any(k.startswith("upscale") and k.endswith("bias") for k in srresnet)


def calibrated(model, bits=3):
    x = 255 * torch.rand(4, 3, 12, 12, generator=generator())
    return layer_inputs.at_each_layer(
        model, x, lambda x, relu: D.calibrate_points(x, bits, relu, generator=generator())
    )


def test_quantized_model():
    model = small_edsr()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    points = calibrated(model)
    x = 255 * torch.rand(1, 3, 10, 10, generator=generator(1))
    with torch.no_grad():
        exact = D.quantize_model(model, dict.fromkeys(points), None)
        assert torch.equal(exact(x), model(x))
        quantized = D.quantize_model(model, points, 4)
        y = quantized(x)
        assert torch.equal(quantized(x), y)
        assert not torch.equal(y, model(x))
        distance = [
            psnr(D.quantize_model(model, calibrated(model, b), max(4, b))(x), model(x))
            for b in (2, 4, 6)
        ]
    assert distance == sorted(distance)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    wrapped = [
        n for n, m in quantized.named_modules() if isinstance(m, layer_inputs.QuantizedConv2d)
    ]
    assert wrapped == list(points) == [f"body.{i}.body.{j}" for i in range(3) for j in (0, 2)]
    state = quantized.state_dict()
    for key, value in before.items():
        name, kind = key.rsplit(".", 1)
        if name not in points:
            assert torch.equal(state[key], value)
        elif kind == "weight":
            assert torch.equal(state[f"{name}.conv.weight"], D.quantize_weight_minmax(value, 4))
        else:
            assert torch.equal(state[f"{name}.conv.bias"], value)
    relu = {n: quantized.get_submodule(n).quantizer.post_relu for n in points}
    assert relu == {n: n.endswith(".2") for n in points}


# ---------------------------------------------------------------- baselines


def uniform(x, low, high, bits):
    d = (high - low) / (2**bits - 1)
    return ((x - low) / d).round().clamp(0, 2**bits - 1) * d + low


@pytest.mark.parametrize("post_relu", [False, True])
def test_uniform_baselines_by_their_definitions(post_relu):
    x = 20 * draw(2, 3, 40, 40, dtype=torch.float64) + 5
    x = x.relu() if post_relu else x
    layer, bits = layer_inputs.Layer(x, post_relu, D.normalise), 3
    found = {name: make(layer, bits)(x) for name, make in D.METHODS.items()}
    low, high = x.min(), x.max()
    torch.testing.assert_close(found["minmax"], uniform(x, low, high, bits))
    cut = x.flatten().sort().values[[int(0.001 * x.numel()), -1 - int(0.001 * x.numel())]]
    cut[0] *= not post_relu
    torch.testing.assert_close(found["percentile"], uniform(x, *cut, bits))
    ranges = [uniform(x, f * low, f * high, bits) for f in torch.linspace(0.05, 1, 60).double()]
    least = min((y - x).square().mean().item() for y in ranges)
    assert (found["mse"] - x).square().mean().item() == pytest.approx(least)
    a, b = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    torch.testing.assert_close(found["dyn_minmax"], uniform(x, a, b, bits))
    z, s, mu = D.normalise(x, post_relu)
    torch.testing.assert_close(
        found["cn_uniform"], uniform(z, 0.0 if post_relu else -1.0, 1.0, bits) * s + mu
    )
    scale = x.abs().max()
    levels = (found["sq_tensor"] / scale).unique()
    assert len(levels) <= 8
    torch.testing.assert_close(levels, D.snap_to_set(levels, U))


def test_point_baselines():
    x = draw(2, 3, 40, 40)
    layer = layer_inputs.Layer(x, False, D.normalise, seed=5)
    points = {name: choose(layer, 4) for name, choose in D.POINTS.items()}
    error = {name: layer.rows.sse(p) for name, p in points.items()}
    assert torch.isin(points["sq_2word"], U2).all()
    assert torch.isin(points["exact"], U).all()
    assert not torch.isin(points["centroid"], U).all()
    assert (error["exact"] <= error["dfsq"] + 1e-9).all()
    assert (error["exact"] <= error["sq_2word"]).all()
    assert D.POINTS["sq_2word"](layer, 5).shape == (3, 29)
    expected = D.calibrate_points(x, 4, generator=generator(5))
    assert torch.equal(points["dfsq"], expected)


def test_an_experiment_pairs_its_methods():
    model, pairs = small_edsr(), sr_pairs("photographs", None, 2)
    tests = {"photographs": [super_resolution.centre_crop(p, 16) for p in pairs]}
    experiment = layer_inputs.Experiment(
        model, D.METHODS, D.quantize_weight_minmax, D.normalise, tests,
        references=super_resolution.images(model, tests, "cpu"), pairs=pairs,
        patches=2, patch=12, scale=2, restarts=2, device=torch.device("cpu"),
    )  # fmt: skip
    found = experiment.run([(["minmax", "dfsq"], 3, [0, 1]), (["dfsq"], 2, [0])])
    assert {key: len(runs) for key, runs in found.items()} == {
        ("minmax", 3): 2, ("dfsq", 3): 2, ("dfsq", 2): 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"no methods.*exact"):
        experiment.run([(["minimax"], 3, [0])])
    again = experiment.run([(["dfsq"], 3, [1])])
    assert again["dfsq", 3][0]["fid"] == found["dfsq", 3][1]["fid"]
    ahead = layer_inputs.leads(found, "dfsq", "minmax", 3)
    assert min(ahead) == layer_inputs.worst_lead(found, "dfsq", "minmax", 3) > 0
    assert math.isnan(layer_inputs.worst_lead(found, "dfsq", "minmax", 2))


# ---------------------------------------------------------------- images


def test_photographs_are_split_and_downscaled():
    train, test = (sr_pairs("photographs", None, 2, split=s) for s in ("train", "test"))
    assert [p.name for p in train] == list(PHOTOGRAPHS["train"])
    assert [p.name for p in test] == ["chelsea", "coffee", "flower"]
    assert not {p.name for p in train} & {p.name for p in test}
    for pair in test:
        assert pair.hr.shape[1:] == tuple(2 * side for side in pair.lr.shape[1:])
        whole = Image.fromarray(pair.hr.permute(1, 2, 0).numpy())
        small = whole.resize(pair.lr.shape[:0:-1], Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.array(small)).permute(2, 0, 1)
        assert psnr(pair.lr[None].float(), expected[None].float()) > 48  # PIL rounds in between


def test_patches_are_aligned_and_reproducible():
    pairs = sr_pairs("photographs", None, 2, split="train")
    lr, hr = super_resolution.random_patches(pairs, 6, 24, 2, generator())
    assert (lr.shape, hr.shape) == ((6, 3, 24, 24), (6, 3, 48, 48))
    small = torch.stack([downscale(image, 2) for image in hr])
    assert psnr(small[:, :, 2:-2, 2:-2], lr[:, :, 2:-2, 2:-2]) > 45
    again = super_resolution.random_patches(pairs, 6, 24, 2, generator())
    assert torch.equal(again[0], lr)


def save(path, shape, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, shape, generator=generator(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)


def test_layouts_of_the_field(tmp_path):
    save(tmp_path / "benchmark/Set5/HR/baby.png", (21, 17, 3))
    save(tmp_path / "benchmark/Set5/LR_bicubic/X2/babyx2.png", (10, 8, 3))
    save(tmp_path / "DIV2K/DIV2K_train_HR/0001.png", (12, 12, 3))
    save(tmp_path / "DIV2K/DIV2K_train_HR/0002.png", (12, 12, 3))
    save(tmp_path / "DIV2K/DIV2K_train_LR_bicubic/X2/0001x2.png", (6, 6, 3))
    save(tmp_path / "DIV2K/DIV2K_train_LR_bicubic/X2/0002x2.png", (6, 6, 3))
    save(tmp_path / "data/Urban100/image_SRF_2/img_001_SRF_2_HR.png", (16, 14))  # grey
    save(tmp_path / "data/Urban100/image_SRF_2/img_001_SRF_2_LR.png", (8, 7))
    save(tmp_path / "Mine/b.png", (9, 8, 3))
    save(tmp_path / "Mine/a.jpg", (9, 8, 3))
    (baby,) = sr_pairs("Set5", tmp_path, 2)
    assert (baby.name, baby.lr.shape, baby.hr.shape) == ("baby", (3, 10, 8), (3, 20, 16))
    assert [p.name for p in sr_pairs("DIV2K", tmp_path, 2, split="train")] == ["0001", "0002"]
    assert len(sr_pairs("DIV2K", tmp_path, 2, count=1)) == 1
    (grey,) = sr_pairs("Urban100", tmp_path, 2)
    assert grey.lr.shape == (3, 8, 7)
    assert torch.equal(grey.hr[0], grey.hr[2])
    made = sr_pairs("Mine", tmp_path, 3)
    assert [p.name for p in made] == ["a", "b"]
    assert torch.equal(made[1].lr, downscale(made[1].hr, 3).byte())


def test_layout_errors(tmp_path):
    for name, scale in (("Set5", 2), ("Urban100", 3)):
        with pytest.raises(FileNotFoundError, match="LR_bicubic"):
            sr_pairs(name, tmp_path, scale)
    with pytest.raises(FileNotFoundError, match="data_root"):
        sr_pairs("Set5", None, 2)
    save(tmp_path / "DIV2K/DIV2K_train_HR/0001.png", (12, 12, 3))
    save(tmp_path / "DIV2K/DIV2K_train_LR_bicubic/X2/0009x2.png", (6, 6, 3))
    with pytest.raises(FileNotFoundError, match="0001x2"):
        sr_pairs("DIV2K", tmp_path, 2)
    save(tmp_path / "benchmark/B100/HR/a.png", (12, 12, 3))
    save(tmp_path / "benchmark/B100/LR_bicubic/X2/ax2.png", (3, 6, 3))
    with pytest.raises(ValueError, match="not 2 times"):
        sr_pairs("B100", tmp_path, 2)[0]
    with pytest.raises(ValueError, match="not 3 times"):
        align("x", torch.zeros(3, 4, 4), torch.zeros(3, 11, 12), 3)
    with pytest.raises(ValueError, match="patch"):
        super_resolution.random_patches(sr_pairs("DIV2K", tmp_path, 3), 1, 5, 3, generator())
    with pytest.raises(ValueError, match="shave"):
        psnr_y(torch.zeros(1, 3, 4, 9), torch.zeros(1, 3, 4, 9), 2)


# ---------------------------------------------------------------- training and weights


SETUP = {
    "network": "edsr", "upscale": 2, "n_resblocks": 1, "n_feats": 8, "train_set": "photographs",
    "train_images": 0, "seed": 0, "device": "cpu", "data_root": "", "precision": "fp32",
}  # fmt: skip
RECIPE = {"steps": 3, "batch_size": 2, "patch": 8, "lr": 1e-3, "decay": "cosine", "clip": 20.0}


def test_training_moves_the_network_and_not_the_mean_shift():
    tests = [super_resolution.centre_crop(sr_pairs("photographs", None, 2)[0], 8)]
    state = super_resolution.train_network(SETUP, **RECIPE)
    fresh = super_resolution.prepare(SETUP)[1].state_dict()
    assert not torch.equal(state["head.0.weight"], fresh["head.0.weight"])
    assert torch.equal(state["sub_mean.bias"], fresh["sub_mean.bias"])
    halved = super_resolution.train_network(SETUP, **RECIPE | {"decay": "halve", "clip": 0.0})
    assert not torch.equal(state["head.0.weight"], halved["head.0.weight"])
    model = super_resolution.trained("dfsq", SETUP, "train", RECIPE, tests=tests)
    assert torch.equal(model.state_dict()["head.0.weight"], state["head.0.weight"])
    assert not model.training


def test_missing_checkpoint_stops_or_trains():
    tests = [super_resolution.centre_crop(sr_pairs("photographs", None, 2)[0], 8)]
    with pytest.raises(FileNotFoundError, match="retrain=true"):
        super_resolution.trained("dfsq", SETUP, "dfsq_absent", RECIPE, tests=tests)
    model = super_resolution.trained(
        "dfsq", SETUP, "dfsq_absent", RECIPE, tests=tests, fallback_steps=2
    )
    assert isinstance(model, D.EDSR)


def test_committed_checkpoint_beats_bicubic():
    setup = SETUP | {"n_resblocks": 6, "n_feats": 32}
    pairs = [super_resolution.centre_crop(p, 48) for p in sr_pairs("photographs", None, 2)]
    model = super_resolution.trained("dfsq", setup, "dfsq_edsr", {}, tests=pairs)
    assert sum(p.numel() for p in model.parameters()) - 24 == 158_979
    ours = super_resolution.judge(model, pairs, 2)
    plain = super_resolution.judge(lambda x: super_resolution.bicubic(x, 2), pairs, 2)
    assert all(a["psnr_y"] > b["psnr_y"] + 0.3 for a, b in zip(ours, plain, strict=True))


def test_weights_files_are_loaded_strictly(tmp_path):
    model, file = small_edsr(), tmp_path / "edsr.pt"
    torch.save({"state_dict": model.state_dict()}, file)
    setup = SETUP | {"n_resblocks": 3}
    loaded = super_resolution.trained("dfsq", setup, str(file), {}, tests=[])
    assert torch.equal(loaded.state_dict()["tail.1.bias"], model.state_dict()["tail.1.bias"])
    with pytest.raises(RuntimeError, match=r"edsr\.pt does not hold a EDSR x4"):
        load_strictly(small_edsr(scale=4), file)
    with pytest.raises(RuntimeError, match=r"edsr\.pt"):
        load_strictly(small_edsr(n_feats=16), file)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_strictly(model, tmp_path / "absent.pt")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("bits", [0, 9, 2.0, True, "4"])
def test_bits_must_be_an_integer_in_range(bits):
    for call in (
        lambda: D.calibrate_points(draw(1, 2, 20, 20), bits),
        lambda: D.quantize_weight_minmax(draw(1, 2, 3, 3), bits),
    ):
        with pytest.raises(ValueError, match=r"bits must be an integer in 1\.\.8, got"):
            call()


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8), (1, 2, 3, 4, 5)])
def test_activations_must_be_four_dimensional(shape):
    x, points = torch.zeros(shape), torch.zeros(3, 4)
    for call in (
        lambda: D.quantize_activation(x, points),
        lambda: D.subset_quantize(x, points),
        lambda: D.calibrate_points(x, 2),
    ):
        with pytest.raises(ValueError, match=r"\[N, C, H, W\].*shape"):
            call()


def test_points_must_fit():
    x = draw(1, 64, 4, 4)
    for quantize in (D.subset_quantize, D.quantize_activation):
        with pytest.raises(ValueError, match="points has 32 rows but x has 64 channels"):
            quantize(x, torch.zeros(32, 4))
        with pytest.raises(ValueError, match="points must be"):
            quantize(x, torch.zeros(64))
        with pytest.raises(ValueError, match="points"):
            quantize(x, torch.full((64, 4), torch.nan))


def test_values_must_be_finite():
    x = draw(1, 2, 20, 20)
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="calibration data"):
        D.calibrate_points(x, 2)
    with pytest.raises(ValueError, match="weight"):
        D.quantize_weight_minmax(x, 4)
    with pytest.raises(ValueError, match="z "):
        D.optimal_points(x.flatten(), U, 3)
    with pytest.raises(ValueError, match="x "):
        D.kmeans_1d(x.flatten(), torch.zeros(1))


def test_calibration_data_must_suffice():
    with pytest.raises(ValueError, match="need at least 256 values per channel, got 144"):
        D.calibrate_points(draw(1, 2, 12, 12), 8)
    with pytest.raises(ValueError, match="post_relu"):
        D.calibrate_points(draw(1, 2, 12, 12), 2, post_relu=True)


@pytest.mark.parametrize("universal", [[-1, 0.5, 1], [[0, 1]], [0, 1, 0.5], [0, 0, 1]])
def test_universal_set_must_be_one(universal):
    universal = torch.tensor(universal, dtype=torch.float64)
    with pytest.raises(ValueError, match="universal"):
        D.calibrate_points(draw(1, 2, 12, 12), 1, universal=universal)
    with pytest.raises(ValueError, match="universal"):
        D.optimal_points(values(10), universal, 1)


@pytest.mark.parametrize("k", [0, 378, -1])
def test_number_of_points_must_fit_the_set(k):
    with pytest.raises(ValueError, match=r"k must be in 1\.\.377"):
        D.optimal_points(values(10), U, k)


@pytest.mark.parametrize("init", [[0.0, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.0]])
def test_kmeans_needs_a_pinned_zero_and_enough_values(init):
    with pytest.raises(ValueError, match="init"):
        D.kmeans_1d(values(5), torch.tensor(init))


def test_layer_names_must_match():
    model = small_edsr()
    points = calibrated(model)
    points["body.9.body.0"] = points.pop("body.0.body.0")
    with pytest.raises(KeyError, match=r"body\.0\.body\.0.*body\.9\.body\.0"):
        D.quantize_model(model, points, 4)


@pytest.mark.parametrize("scale", [1, 5, 2.5])
def test_scale_must_be_known(scale):
    with pytest.raises(ValueError, match="scale must be 2, 3 or 4"):
        D.EDSR(scale=scale)
    with pytest.raises(ValueError, match="network"):
        sr_network("vdsr", 2, 1, 8)
