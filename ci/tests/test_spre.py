"""SpRe: masks, the layer, the fold, conversion and bad input."""

import math
from copy import deepcopy
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import models, recipes
from helpers.notebooks import load
from helpers.pretrained import spatial_kernels
from helpers.recipes import Recipe

S = load("spre")
PATTERNS = [(1, 4), (2, 4), (1, 16), (4, 8), (4, 4)]
EASY = settings(deadline=None, max_examples=30)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(inputs=16, outputs=8, size=3, *, seed=0, steps=3, **options):
    """A layer after some training steps on noise, so that nothing in it is at its start."""
    torch.manual_seed(seed)
    module = S.SpReConv2d(inputs, outputs, size, padding=size // 2, **({"n": 1, "m": 4} | options))
    sgd = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(steps):
        sgd.zero_grad()
        y = module(torch.randn(4, inputs, 6, 6))
        (y * torch.randn_like(y)).sum().backward()
        sgd.step()
    return module


def brute_unstructured(weight, n, m):
    """Drop one by one: the smallest magnitudes, of equal ones the last."""
    size = weight.abs().flatten().tolist()
    order = sorted(range(len(size)), key=lambda i: (size[i], -i))
    kept = torch.ones(len(size), dtype=torch.bool)
    kept[order[: len(size) * (m - n) // m]] = False
    return kept.view_as(weight)


@EASY
@given(st.sampled_from(PATTERNS), st.integers(0, 99), st.booleans())
def test_unstructured_mask_drops_the_smallest_and_counts_exactly(pattern, seed, ties):
    weight = draw(3, 16, 3, 3, seed=seed)
    weight = weight.mul(2).round() if ties else weight
    mask, (n, m) = S.unstructured_mask(weight, *pattern), pattern
    assert mask.sum() == weight.numel() - weight.numel() * (m - n) // m
    assert torch.equal(mask, brute_unstructured(weight, n, m))
    if weight.numel() % m == 0:
        assert S.spatial_sparsity(mask).mean() == pytest.approx(1 - n / m, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_nm_masks_are_flat_over_the_positions(n, m):
    weight = draw(8, 32, 3, 3)
    for w in (weight, weight.mul(2).round(), torch.zeros_like(weight)):
        mask = S.nm_mask(w, n, m, dim=1)
        assert (mask.unflatten(1, (-1, m)).sum(2) == n).all()
        assert (S.spatial_sparsity(mask) == 1 - n / m).all()
        assert S.spatial_dispersion(mask) == 0


def test_dispersion_is_the_index_of_its_definition():
    mask = S.unstructured_mask(draw(6, 8, 3, 3), 1, 4)
    kept = [mask[:, :, y, x].double().mean().item() for y in range(3) for x in range(3)]
    d = sum(kept) / 9
    expected = sum(48 * (k - d) ** 2 for k in kept) / (d * (1 - d)) / 8
    assert S.spatial_dispersion(mask) == pytest.approx(expected)
    assert S.spatial_dispersion(mask.float() * 0.3) == pytest.approx(expected)
    assert S.spatial_dispersion(torch.ones(4, 4, 3, 3)) == 0
    assert S.spatial_dispersion(torch.zeros(4, 4, 3, 3)) == 0
    assert S.spatial_dispersion(mask[:, :, :1, :1]) == 0


def test_dispersion_of_random_weights_is_one_on_average():
    values = [
        S.spatial_dispersion(S.unstructured_mask(draw(32, 32, 3, 3, seed=i), 1, 4))
        for i in range(200)
    ]
    assert sum(values) / 200 == pytest.approx(1, abs=0.12)
    assert sum(value > 3.3 for value in values) <= 3


@EASY
@given(st.sampled_from([(1, 4), (2, 4), (1, 16), (4, 5)]), st.integers(0, 99))
def test_spatial_mask_marks_positions_less_sparse_than_the_pattern(pattern, seed):
    n, m = pattern
    weight = draw(4, 20 if m == 5 else 16, 3, 3, seed=seed)
    chosen = S.spatial_mask(weight, n, m)
    kept = S.unstructured_mask(weight, n, m).sum((0, 1)).double()
    assert torch.equal(chosen, kept / (weight.shape[0] * weight.shape[1]) > n / m + 1e-12)
    assert torch.equal(S.spatial_mask(-3 * weight, n, m), chosen)
    assert torch.equal(S.spatial_mask(weight.flip(0), n, m), chosen)
    assert torch.equal(S.spatial_mask(weight.transpose(2, 3), n, m), chosen.T)
    if weight.numel() % m == 0:
        assert not chosen.all()


def test_spatial_mask_of_one_position_or_equal_positions_is_false():
    assert S.spatial_mask(draw(4, 16, 1, 1), 1, 4).tolist() == [[False]]
    assert not S.spatial_mask(draw(4, 16, 3, 3), 4, 4).any()
    same = draw(4, 16, 1, 1).expand(4, 16, 1, 2).contiguous()
    assert not S.spatial_mask(same, 1, 4).any()  # exactly n/m kept at both: not strictly more


def test_masks_follow_a_permutation_of_the_outputs():
    weight, order = draw(8, 16, 3, 3), torch.randperm(8)
    assert torch.equal(S.nm_mask(weight[order], 1, 4, 1), S.nm_mask(weight, 1, 4, 1)[order])


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_sr_ste_passes_the_gradient_and_pulls_the_pruned(decay):
    weight, mask, grad = draw(4, 8).requires_grad_(), draw(4, 8, seed=1) > 0, draw(4, 8, seed=2)
    y = S.sr_ste(weight, mask, decay)
    y.backward(grad)
    assert torch.equal(y, weight * mask)
    torch.testing.assert_close(weight.grad, grad + decay * ~mask * weight.detach())
    if decay == 0:
        assert torch.equal(weight.grad, grad)


@pytest.mark.parametrize("affine", [True, False])
def test_fused_kernel_is_convolution_and_batch_norm(affine):
    bn, weight, x = nn.BatchNorm2d(6, affine=affine), draw(6, 4, 3, 3), draw(2, 4, 7, 7, seed=1)
    bn(F.conv2d(x, weight))  # moves the running statistics
    if affine:
        nn.init.normal_(bn.weight), nn.init.normal_(bn.bias)
    kernel, bias = S.fuse_conv_bn(weight, bn)
    expected = bn.eval()(F.conv2d(x, weight))
    torch.testing.assert_close(F.conv2d(x, kernel, bias), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["spre", "all", "inverse", "none"])
@pytest.mark.parametrize("options", [{}, {"n": 4}, {"size": 1}, {"size": 5, "n": 2}, {"steps": 0}])
def test_merged_layer_is_the_two_branch_layer(positions, options):
    module = layer(positions=positions, **options).double().eval()
    before = models.parameters_hash(module)
    merged, x = module.merge(), draw(2, 16, 9, 9).double()
    torch.testing.assert_close(merged(x), module(x), rtol=1e-10, atol=1e-10)
    assert S.is_nm_sparse(merged.weight, module.n, 4)
    assert not merged.weight[~module.mask()].any()
    again = module.merge()
    assert torch.equal(again.weight, merged.weight)
    assert torch.equal(again.bias, merged.bias)
    merged.weight.data.zero_()
    assert models.parameters_hash(module) == before
    single = module.float()
    torch.testing.assert_close(single.merge()(x.float()), single(x.float()), rtol=1e-4, atol=1e-5)


def test_merge_branches_is_what_the_layer_does_and_leaves_its_arguments_alone():
    m = layer()
    weights = m.weight.detach().clone(), m.extra_weight.detach().clone()
    kernel, bias = S.merge_branches(*weights, 1, 4, m.spatial_mask, m.bn, m.extra_bn)
    assert torch.equal(kernel, m.merge().weight)
    assert torch.equal(bias, m.merge().bias)
    assert torch.equal(weights[0], m.weight)


def test_without_positions_or_second_norm_only_the_main_branch_is_left():
    m = layer().eval()
    main = S.fuse_conv_bn(m.weight * m.mask(), m.bn)
    m.spatial_mask.zero_()
    merged, bn = m.merge(), m.extra_bn
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    torch.testing.assert_close(merged.weight, main[0])
    torch.testing.assert_close(merged.bias, main[1] + bn.bias - bn.running_mean * scale)
    m.spatial_mask.fill_(True)
    nn.init.zeros_(bn.weight), nn.init.zeros_(bn.bias)
    x = draw(2, 16, 6, 6)
    torch.testing.assert_close(m(x), m.bn(F.conv2d(x, m.weight * m.mask(), padding=1)))


def test_training_forward_is_two_convolutions_with_their_own_norms():
    m, x = layer(), draw(4, 16, 6, 6)
    with torch.no_grad():
        chosen = S.spatial_mask(m.weight, 1, 4)
        main = F.conv2d(x, m.weight * m.mask(), padding=1)
        extra = F.conv2d(x, m.extra_weight * (m.mask() & chosen), padding=1)
        norms = deepcopy(m.bn), deepcopy(m.extra_bn)
        torch.testing.assert_close(m(x), norms[0](main) + norms[1](extra))
    assert torch.equal(m.spatial_mask, chosen)


def test_gradients_of_both_branches():
    m = layer(decay=0.0)
    m.zero_grad()
    (m(draw(4, 16, 6, 6)) * draw(4, 8, 6, 6, seed=1)).sum().backward()
    used = m.mask() & m.spatial_mask
    assert (m.extra_weight.grad[~used] == 0).all()
    assert (m.extra_weight.grad[used] != 0).all()
    assert (m.weight.grad != 0).all()


def test_a_dense_pattern_is_a_dense_layer():
    m, x = layer(n=4, steps=0).eval(), draw(2, 16, 6, 6)
    assert m.mask().all()
    assert not m.update_spatial_mask().any()
    expected = m.bn(F.conv2d(x, m.weight, padding=1)) + m.extra_bn(torch.zeros(2, 8, 6, 6))
    torch.testing.assert_close(m(x), expected)


def test_positions_and_the_interval_of_their_update():
    assert layer(positions="all").spatial_mask.all()
    assert not hasattr(layer(positions="none"), "extra_weight")
    spre, inverse = (layer(positions=k, steps=0) for k in ("spre", "inverse"))
    assert spre.spatial_mask.all()  # S = 1 until the first update
    for m in (spre, inverse):
        m(draw(2, 16, 5, 5))
    assert torch.equal(spre.spatial_mask, ~inverse.spatial_mask)
    slow, seen = layer(update_every=3, steps=0), []
    for step in range(6):
        with torch.no_grad():
            slow.weight.copy_(draw(8, 16, 3, 3, seed=step))
        slow(draw(2, 16, 5, 5))
        seen.append(S.spatial_mask(slow.weight, 1, 4).equal(slow.spatial_mask))
    assert seen[0]
    assert seen[3]
    assert not all(seen)


def test_one_shot_masks_stay_and_pruned_weights_get_no_gradient():
    m = layer(steps=0)
    m.fix_masks()
    mask, chosen = m.mask().clone(), m.spatial_mask.clone()
    (m(draw(4, 16, 6, 6)) * draw(4, 8, 6, 6, seed=1)).sum().backward()
    assert (m.weight.grad[~mask] == 0).all()
    m.weight.data[mask] *= 1e-3
    assert not torch.equal(S.nm_mask(m.weight, 1, 4, 1), mask)  # another mask would be due
    assert torch.equal(m.mask(), mask)
    assert torch.equal(m.update_spatial_mask(), chosen)
    m, x = m.double().eval(), draw(2, 16, 6, 6).double()
    torch.testing.assert_close(m.merge()(x), m(x), rtol=1e-10, atol=1e-10)
    assert not m.merge().weight[~mask].any()


def test_the_control_keeps_the_largest_weights_anywhere():
    m = S.UnstructuredConv2d(16, 8, 3, padding=1, n=1, m=4, positions="none").eval()
    assert torch.equal(m.mask(), S.unstructured_mask(m.weight, 1, 4))
    x = draw(2, 16, 6, 6)
    torch.testing.assert_close(m.merge()(x), m(x), rtol=1e-4, atol=1e-5)


def test_conversion_of_a_residual_network():
    model, x = models.resnet(8, 16), draw(2, 3, 32, 32)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    sparse, dense = S.convert(model, 1, 16, keep_dense=["stem"], generator=generators[0])
    assert sparse == [f"layers.{b}.conv{c}" for b in range(3) for c in (1, 2)]
    assert dense == {"stem.0": "kept dense by choice"}
    assert torch.equal(model.layers[1].conv2.weight, weights["layers.1.conv2.weight"])
    assert model.layers[1].conv2.bn.weight.shape == (32,)
    assert isinstance(model.layers[1].norm2, nn.Identity)
    twin = models.resnet(8, 16)
    S.convert(twin, 1, 16, keep_dense=["stem"], generator=generators[1])
    assert torch.equal(twin.layers[0].conv1.extra_weight, model.layers[0].conv1.extra_weight)
    model.train()(x)
    folded = S.folding.merge_model(model.double().eval())
    torch.testing.assert_close(folded(x.double()), model(x.double()), rtol=1e-9, atol=1e-9)
    assert {type(k) for k in folded.modules()} & {S.SpReConv2d} == set()


def test_conversion_of_timm_networks():
    import timm

    model = timm.create_model("resnet50")
    sparse, dense = S.convert(model, 2, 4, keep_dense=["conv1", "fc"])
    assert len(sparse) == 52  # 16 x 3 in blocks, 4 shortcuts
    assert dense == {"conv1": "kept dense by choice"}
    three = S.spatial_layers(model)
    assert len(three) == 16
    assert all(k.positions == "spre" for k in three)
    assert model.layer1[0].conv1.positions == "none"  # one position: plain SR-STE
    with torch.no_grad():
        x = draw(1, 3, 64, 64)
        y, folded = model.eval()(x), S.folding.merge_model(model)
        torch.testing.assert_close(folded(x), y, rtol=1e-3, atol=1e-3 * y.abs().max().item())
    mobile = timm.create_model("mobilenetv3_small_050")
    _, reasons = S.convert(mobile, 2, 4)
    assert any("SpRe needs groups=1" in reason for reason in reasons.values())


def test_the_kernels_of_a_real_network_differ_between_positions():
    values = [
        S.spatial_dispersion(S.unstructured_mask(w, 1, 4)) for w in spatial_kernels().values()
    ]
    assert len(values) == 17
    assert [round(v, 1) for v in values[:4]] == [5.4, 8.0, 11.6, 35.0]
    assert round(max(values)) == 351
    sparser = [
        S.spatial_dispersion(S.unstructured_mask(w, 1, 16)) for w in spatial_kernels().values()
    ]
    assert sum(value > 3.3 for value in sparser) == 15


SMALL = Recipe(steps=6, warmup=1, schedule="cosine", batch_size=16)


@pytest.mark.parametrize("method", S.LABELS)
def test_every_method_builds_trains_and_reports(method, monkeypatch):
    full = recipes.batches
    monkeypatch.setattr(
        recipes, "batches", lambda r, s, split, *rest: list(full(r, s, split, *rest))[:2]
        if split == "test" else full(r, s, split, *rest)
    )  # fmt: skip
    begin = S.build(SMALL, "dense", "1:16", 0, {})[0].state_dict() if "asp" in method else None
    found = S.run(asdict(SMALL), method, "1:16", 5, {}, begin, device="cpu")
    assert len(found["losses"]) == 6
    assert all(map(math.isfinite, found["losses"]))
    assert 0 <= found["accuracy"] <= 100
    assert found["nll"] > 0
    if method == "dense":
        assert found["sparse"] == []
        return
    assert found["sparse"] == [f"layers.{i}.0" for i in range(4)]
    assert found["error"] < 1e-10
    assert found["fits"] == (method != "unstructured")
    weights = 9 * (16 * 32 + 32 * 64 + 2 * 64 * 64)
    assert found["nonzeros"] == weights // 16
    assert len(found["trace"]) == len(found["at"]) == 6
    assert len(found["trace"][0]["D"]) == len(found["trace"][0]["S"]) == 4


def test_methods_of_a_seed_start_from_the_same_weights():
    starts = {}
    for method in S.LABELS:
        torch.manual_seed(7)
        network = S.build(SMALL, method, "1:16", 7, {})[0]
        starts[method] = network.layers[2][0].weight.detach(), network.head.weight.detach()
    assert len({tuple(float(w.sum()) for w in pair) for pair in starts.values()}) == 1


def test_re_estimated_statistics_are_those_of_the_images():
    torch.manual_seed(0)
    network = S.build(SMALL, "srste", "1:16", 0, {})[0]
    session = S.start(seed=0, device="cpu", banner=False)
    images = draw(200, 1, 28, 28)
    S.training.reestimate_norms(network, images, session=session)
    y = F.conv2d(images, network.stem[0].weight, stride=2, padding=1)
    torch.testing.assert_close(
        network.stem[1].running_mean, y.mean((0, 2, 3)), rtol=1e-3, atol=1e-4
    )


W = draw(8, 16, 3, 3)
BN = nn.BatchNorm2d(8)
BAD = [
    (lambda: S.nm_mask(W, 3, 2, 1), ValueError, "need 1 <= n <= m, got n=3, m=2"),
    (lambda: S.unstructured_mask(W, 0, 4), ValueError, "need 1 <= n <= m"),
    (lambda: S.unstructured_mask(W, 1.5, 4), TypeError, "need 1 <= n <= m"),
    (lambda: S.spatial_mask(W, True, 4), TypeError, "need 1 <= n <= m"),
    (lambda: S.spatial_mask(W[0], 1, 4), ValueError, r"expected \(out, in, kh, kw\), got shape"),
    (lambda: S.spatial_sparsity(W[0]), ValueError, r"expected \(out, in, kh, kw\)"),
    (lambda: S.spatial_dispersion(W[0]), ValueError, r"expected \(out, in, kh, kw\)"),
    (lambda: S.spatial_mask(W * math.nan, 1, 4), ValueError, "contains NaN or Inf"),
    (lambda: S.unstructured_mask(W / 0, 1, 4), ValueError, "NaN or Inf"),
    (lambda: S.unstructured_mask(W[:0], 1, 4), ValueError, "empty"),
    (lambda: S.sr_ste(W, W[0] > 0), ValueError, "they must agree"),
    (lambda: S.sr_ste(W, W), TypeError, "must be bool"),
    (lambda: S.sr_ste(W.int(), W > 0), TypeError, "floating point"),
    (lambda: S.merge_branches(W, W[:4], 1, 4, W[0, 0] > 0, BN, BN), ValueError, "must agree"),
    (lambda: S.merge_branches(W, W, 1, 4, W[0] > 0, BN, BN), ValueError, "must agree"),
    (lambda: S.merge_branches(W, W.int(), 1, 4, W[0, 0] > 0, BN, BN), TypeError, "floating point"),
    (lambda: S.fuse_conv_bn(W, nn.BatchNorm2d(8, track_running_stats=False)), ValueError,
     "no running statistics"),
    (lambda: S.SpReConv2d(3, 8, 3, n=1, m=4), ValueError, "has size 3, not divisible by m=4"),
    (lambda: S.SpReConv2d(4, 8, 3, n=5, m=4), ValueError, "need 1 <= n <= m"),
    (lambda: S.SpReConv2d(4, 8, 3, n=1, m=4, positions="x"), ValueError, "'inverse', 'none'"),
    (lambda: S.SpReConv2d(4, 8, 3, n=1, m=4, update_every=0), ValueError, "at least 1, got 0"),
    (lambda: S.is_nm_sparse(draw(4, 6), 1, 4), ValueError, "not a multiple of m=4"),
    (lambda: S.convert(models.resnet(8), 1, 4, keep_dense=["stam"]), ValueError, "stam"),
    (lambda: S.build(SMALL, "magic", "1:4", 0, {}), ValueError, "srste, spre, all"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
