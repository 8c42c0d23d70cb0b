"""Bi-Mask's invariants, its baselines against brute force, its layers, and its bad inputs."""

import itertools
import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import metrics, recipes, sparsity
from helpers.masked_layers import GradientProbe, masked_layers
from helpers.notebooks import load
from helpers.session import start

B = load("bimask")
PATTERNS = st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (2, 8), (1, 16), (4, 4)])


EASY = settings(deadline=None, max_examples=25)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def order(rows, seed=0):
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))


def case(pattern, blocks, groups, seed):
    """A weight, its forward mask and a row order."""
    n, m = pattern
    weight = draw(blocks * m, groups * m, seed=seed)
    return weight, B.nm_mask(weight, n, m), order(blocks * m, seed)


CASES = {
    "pattern": PATTERNS,
    "blocks": st.integers(1, 4),
    "groups": st.integers(1, 3),
    "seed": st.integers(0, 999),
}


@EASY
@given(**CASES)
def test_backward_mask_keeps_the_largest_survivors_of_each_block(pattern, blocks, groups, seed):
    n, m = pattern
    weight, f, pi = case(pattern, blocks, groups, seed)
    b = B.backward_mask(weight, f, pi, n, m)
    assert b.dtype == torch.bool
    assert not (b & ~f).any()
    for block, column in itertools.product(pi.split(m), range(weight.shape[1])):
        survivors = [i for i in block.tolist() if f[i, column]]
        largest = sorted(survivors, key=lambda i: -abs(weight[i, column]))[:n]
        assert set(largest) == {i for i in block.tolist() if b[i, column]}
    assert b.sum() == B.permutation_scores(f, pi, n, m)
    grad = draw(5, len(weight), seed=seed + 1).double()
    masked = (weight * b).double()
    torch.testing.assert_close(grad @ masked, grad[:, pi] @ masked[pi])


@EASY
@given(**CASES)
def test_order_inside_and_among_blocks_does_not_matter(pattern, blocks, groups, seed):
    n, m = pattern
    weight, f, pi = case(pattern, blocks, groups, seed)
    shuffled = pi.view(blocks, m)[order(blocks, seed + 1)][:, order(m, seed + 2)].flatten()
    assert torch.equal(
        B.backward_mask(weight, f, pi, n, m), B.backward_mask(weight, f, shuffled, n, m)
    )


def test_survivors_of_weight_zero_are_kept_before_pruned_entries():
    f = torch.tensor([[True, False]] * 2 + [[False, True]] * 2)
    b = B.backward_mask(torch.zeros(4, 2), f, torch.tensor([0, 2, 1, 3]), 1, 2)
    assert torch.equal(b, f)


@EASY
@given(**CASES)
def test_eligible_everywhere_means_nothing_is_lost(pattern, blocks, groups, seed):
    n, m = pattern
    weight, f, pi = case(pattern, blocks, groups, seed)
    b = B.backward_mask(weight, f, pi, n, m)
    eligible = B.permutation_scores(f, pi, n, m, "eligible")
    assert (eligible == blocks * weight.shape[1]).item() == torch.equal(b, f)
    everything = torch.ones_like(f)
    full = B.backward_mask(weight, everything, pi, m, m)
    assert full.all()


@EASY
@given(count=st.integers(1, 6), **CASES)
def test_scores_are_the_counts_and_the_best_wins(pattern, blocks, groups, seed, count):
    n, m = pattern
    _, f, _ = case(pattern, blocks, groups, seed)
    orders = B.random_permutations(count, len(f), torch.Generator().manual_seed(seed))
    for score in ("kept", "eligible"):
        scores = B.permutation_scores(f, orders, n, m, score)
        counts = torch.stack([f[pi].unflatten(0, (-1, m)).sum(1) for pi in orders])
        expected = counts.clamp(max=n) if score == "kept" else counts <= n
        assert scores.tolist() == expected.flatten(1).sum(1).tolist()
        assert scores.dtype == torch.int64
        best = B.best_permutation(f, orders, n, m, score)
        first = scores.tolist().index(max(scores.tolist()))
        assert torch.equal(best, orders[first])
    assert torch.equal(B.best_permutation(f, orders[0], n, m), orders[0])


def test_scores_do_not_depend_on_how_candidates_are_chunked():
    f = B.nm_mask(draw(256, 4096), 1, 2)  # 32 candidates fit at once
    orders = B.random_permutations(70, 256, torch.Generator().manual_seed(0))
    together = B.permutation_scores(f, orders, 1, 2)
    assert together.tolist() == [B.permutation_scores(f, pi, 1, 2).item() for pi in orders]


def test_random_permutations_are_nested_and_uniform():
    def permutations(count):
        return B.random_permutations(count, 3, torch.Generator().manual_seed(0))

    many = permutations(6000)
    assert torch.equal(many[:10], permutations(10))
    kinds, counts = many.unique(dim=0, return_counts=True)
    assert len(kinds) == 6
    assert (counts - 1000).abs().max() < 150  # five standard deviations


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3), (1, 3)])
def test_expected_kept_is_the_mean_over_all_orders(n, m):
    f = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    everything = torch.tensor(list(itertools.permutations(range(6))))
    mean = B.permutation_scores(f, everything, n, m).double().mean().item()
    assert B.expected_kept(f, n, m) == pytest.approx(mean)


@EASY
@given(**CASES)
def test_greedy_order_is_a_permutation_of_good_score(pattern, blocks, groups, seed):
    n, m = pattern
    _, f, _ = case(pattern, blocks, groups, seed)
    pi = B.greedy_permutation(f, n, m)
    assert sorted(pi.tolist()) == list(range(len(f)))
    first = pi[:m]
    assert first[0] == 0
    if blocks > 1 and n < m:  # the second row adds most to the first
        gains = [
            (f[0] | f[i]).sum().item() if n == 1 else f[i].sum().item() for i in range(1, len(f))
        ]
        chosen = (f[0] | f[pi[1]]).sum().item() if n == 1 else f[pi[1]].sum().item()
        assert chosen == max(gains)


def sorted_transposable(weight, n, m):
    """The definition: entries of a tile by decreasing magnitude, while row and column allow."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for top, left in itertools.product(range(0, weight.shape[0], m), range(0, weight.shape[1], m)):
        tile, taken = (
            weight[top : top + m, left : left + m].abs(),
            mask[top : top + m, left : left + m],
        )
        for entry in tile.flatten().argsort(descending=True).tolist():
            i, j = divmod(entry, m)
            if taken[i].sum() < n and taken[:, j].sum() < n:
                taken[i, j] = True
    return mask


@EASY
@given(**CASES)
def test_transposable_mask_is_the_sorted_definition(pattern, blocks, groups, seed):
    n, m = pattern
    weight, f, _ = case(pattern, blocks, groups, seed)
    mask = B.transposable_mask(weight, n, m)
    assert torch.equal(mask, sorted_transposable(weight, n, m))
    assert torch.equal(mask.T, B.transposable_mask(weight.T, n, m))
    rows, columns = mask.unflatten(1, (-1, m)).sum(2), mask.unflatten(0, (-1, m)).sum(1)
    assert rows.max() <= n
    assert columns.max() <= n
    free_row = (rows < n).repeat_interleave(m, 1)
    free_column = (columns < n).repeat_interleave(m, 0)
    assert not (~mask & free_row & free_column).any()  # maximal
    if n == 1:
        assert mask.sum() == blocks * groups * m
    assert (weight * mask).abs().sum() <= (weight * f).abs().sum() + 1e-4


@pytest.mark.parametrize(("n", "m", "share"), [(1, 16, 0.88), (2, 4, 0.93), (4, 8, 0.96)])
def test_transposable_mask_keeps_the_known_share_of_magnitude(n, m, share):
    weight = draw(256, 256)
    kept = [(weight * mask(weight, n, m)).abs().sum() for mask in (B.transposable_mask, B.nm_mask)]
    assert (kept[0] / kept[1]).item() == pytest.approx(share, abs=0.012)


def test_transposable_mask_holds_half_of_the_best_possible():
    weight = draw(4, 4)
    perfect = max(
        sum(abs(weight[i, p[i]].item()) for i in range(4)) for p in itertools.permutations(range(4))
    )
    assert (weight * B.transposable_mask(weight, 1, 4)).abs().sum() >= perfect / 2


def test_flops_fractions():
    for n, m in ((2, 4), (1, 4), (1, 16), (4, 4)):
        assert B.training_flops_fraction(n, m, "dense") == 1
        assert B.training_flops_fraction(n, m, "srste") == pytest.approx((n / m + 2) / 3)
        for method in ("transposable", "bimask", "identity", "random", "random_survivors"):
            assert B.training_flops_fraction(n, m, method) == pytest.approx((2 * n / m + 1) / 3)
    assert all(B.training_flops_fraction(4, 4, method) == 1 for method in B.METHODS)


@pytest.mark.parametrize(
    ("name", "pattern", "srste", "bimask"),
    [("resnet50", "2:4", 0.838, 0.676), ("resnet50", "1:4", 0.757, 0.515),
     ("resnet50", "1:16", 0.697, 0.393), ("resnet18", "2:4", 0.844, 0.688)],
)  # fmt: skip
def test_savings_of_whole_networks(name, pattern, srste, bimask):
    n, m = sparsity.parse_pattern(pattern)
    with torch.device("meta"):
        model, ends = recipes.network(recipes.Recipe(dataset="imagenet", model=name))
        counts = metrics.layer_macs(model, torch.empty(1, 3, 224, 224))
    sparse, dense = sparsity.select_layers(model, m, ends)
    assert set(dense) == {"conv1", "fc"}
    share = sum(counts[layer] for layer in sparse) / counts[""]
    for method, expected in (("srste", srste), ("bimask", bimask)):
        saved = share * (1 - B.training_flops_fraction(n, m, method))
        assert 1 - saved == pytest.approx(expected, abs=0.001)


def test_gradient_gap_by_hand():
    reference = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    assert B.gradient_gap([torch.tensor([3.0]), torch.tensor([[1.0]])], reference) == pytest.approx(
        0.6
    )
    assert B.gradient_gap(reference, reference) == 0


def layer(method="bimask", **options):
    torch.manual_seed(0)
    chosen = {"n": 2, "m": 4, "interval": 3, "candidates": 20} | options
    return B.BiMaskConv2d(8, 16, 3, padding=1, method=method, **chosen)


def step(module, seed=0, rate=0.1):
    """One training step on random data; returns output and input gradient."""
    x = draw(2, 8, 5, 5, seed=seed).requires_grad_()
    y = module(x)
    y.pow(2).sum().backward()
    with torch.no_grad():
        for p in module.parameters():
            p -= rate * p.grad.clamp(-0.1, 0.1)
            p.grad = None
    return y.detach(), x.grad


@pytest.mark.parametrize("method", B.METHODS)
def test_layers_compute_with_the_masks_they_show(method):
    module, dense = layer(method), nn.Conv2d(8, 16, 3, padding=1, bias=False)
    weight = module.weight.detach().clone()
    x = draw(2, 8, 5, 5).requires_grad_()
    module(x).sum().backward()
    f, b = module.forward_mask, module.backward_mask
    assert f.shape == b.shape == weight.shape
    for mask, result in ((f, None), (b, x.grad)):
        dense.weight.data = weight * mask
        other = x.detach().clone().requires_grad_()
        y = dense(other)
        y.sum().backward()
        torch.testing.assert_close(module.eval()(x) if result is None else result,
                                   y if result is None else other.grad)  # fmt: skip
    flat_f, flat_b = f.flatten(1), b.flatten(1)
    pi = module.permutation
    if method == "dense":
        assert f.all()
        assert b.all()
        return
    assert not (b & ~f).any()
    assert (flat_f.unflatten(1, (-1, 4)).sum(2) <= 2).all()
    if method == "srste":
        assert torch.equal(b, f)
    else:
        assert (flat_b[pi].unflatten(0, (-1, 4)).sum(1) <= 2).all()
    if method == "bimask":
        assert torch.equal(flat_b, B.backward_mask(weight.flatten(1), flat_f, pi, 2, 4))
    if method == "random_survivors":
        counts = flat_f.unflatten(0, (-1, 4)).sum(1)
        assert torch.equal(flat_b.unflatten(0, (-1, 4)).sum(1), counts.clamp(max=2))
        assert not torch.equal(flat_b, B.backward_mask(weight.flatten(1), flat_f, pi, 2, 4))


def test_random_backward_mask_keeps_about_n_of_m_survivors():
    module = layer("random", n=1)
    kept = []
    for seed in range(30):
        step(module, seed)
        kept.append(module.backward_mask.sum() / module.forward_mask.sum())
    assert torch.stack(kept).mean().item() == pytest.approx(0.25, abs=0.02)


def test_searches_happen_every_interval_and_nowhere_else():
    module, changed = layer(), []
    for seed in range(8):
        before = module.permutation.clone()
        step(module, seed, rate=1.0)
        changed.append(not torch.equal(before, module.permutation))
        assert sorted(module.permutation.tolist()) == list(range(16))
    assert changed == [True, False, False, True, False, False, True, False]
    assert module.step == 8
    assert layer("identity").permutation.tolist() == list(range(16))


def test_a_search_takes_the_best_of_its_candidates():
    module = layer()
    f = B.nm_mask(module.weight.detach().flatten(1), 2, 4)
    step(module)
    generator = torch.Generator().manual_seed(0)
    orders = B.random_permutations(20, 16, generator)
    assert torch.equal(module.permutation, B.best_permutation(f, orders, 2, 4))


@pytest.mark.parametrize("method", B.METHODS)
def test_evaluation_changes_nothing(method):
    module = layer(method)
    step(module)
    module.eval()
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        first = module(draw(2, 8, 5, 5))
        second = module(draw(2, 8, 5, 5))
    assert torch.equal(first, second)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert module.steps_done == module.step == 1
    assert torch.equal(module.backward_mask, module.forward_mask)


@pytest.mark.parametrize("method", B.METHODS)
def test_a_resumed_layer_goes_on_exactly(method):
    module = layer(method)
    for seed in range(4):
        step(module, seed)
    resumed = layer(method)
    resumed.load_state_dict(module.state_dict())
    for seed in range(4, 8):  # with a search at step 6
        for ours, theirs in zip(step(resumed, seed), step(module, seed), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(resumed.permutation, module.permutation)


def test_full_density_is_the_dense_layer():
    for method in B.METHODS:
        module, dense = layer(method, n=4), layer("dense", n=4)
        for ours, theirs in zip(step(module), step(dense), strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(module.weight, dense.weight)


def test_only_methods_with_sr_ste_decay():
    assert [layer(method, decay=0.5).decay for method in B.METHODS] == [
        0,
        0.5,
        0,
        0.5,
        0.5,
        0.5,
        0.5,
    ]


def test_a_transformer_is_converted_in_one_call():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=12)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    sparse, dense = B.apply_bimask(model, 2, 4, interval=5, keep_dense=["patch_embed", "head"])
    assert sparse == [
        f"blocks.{i}.{k}" for i in (0, 1) for k in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert set(dense) == {"patch_embed.proj", "head"}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in weights.items())
    assert len({module.seed for module in masked_layers(model)}) == 8
    model(draw(1, 3, 64, 64)).sum().backward()
    for module in masked_layers(model):
        assert isinstance(module, B.BiMaskLinear)
        assert B.fits_hardware(module.forward_mask, module.backward_mask, module.permutation, 2, 4)
        assert module.weight.grad.abs().sum() > 0


def test_convolutions_of_resnets_are_converted():
    model = timm.create_model("resnet18", num_classes=16)
    sparse, dense = B.apply_bimask(model, 1, 16, "srste", keep_dense=["fc"])
    assert len(sparse) == 19
    assert dense == {"conv1": "147 inputs are not a multiple of 16", "fc": "kept dense by choice"}
    assert model(draw(2, 3, 64, 64)).shape == (2, 16)


def test_probe_reference_and_the_empty_mask():
    session = start(device="cpu", banner=False)
    torch.manual_seed(0)
    model = B.sparse_network(recipes.Recipe(), {}, "srste", "1:16", 0)[0]
    probe = GradientProbe(model, draw(32, 1, 28, 28), torch.arange(32) % 10, session)
    assert B.measure(probe, probe.forward) == (0, 1)
    gap, kept = B.measure(probe, [torch.zeros_like(f) for f in probe.forward])
    assert kept == 0
    assert 0 < gap < 1  # the last layer still gets its gradient
    rows = [torch.arange(len(f)) for f in probe.forward]
    one, ten = B.search_curve(probe, 1, 16, [1, 10], torch.Generator().manual_seed(0))
    assert one[1] <= ten[1]
    exact = sum(B.expected_kept(f, 1, 16) for f in probe.forward) / sum(
        f.sum() for f in probe.forward
    )
    assert B.measure(probe, B.in_order(probe, rows, 1, 16))[1] == pytest.approx(
        exact.item(), abs=0.03
    )


def test_a_run_depends_on_its_seed_alone():
    recipe = {"steps": 3, "batch_size": 16}
    where = {"device": "cpu", "data_root": "", "precision": "fp32"}

    def losses(method, seed):
        return B.run(recipe, {"interval": 2}, method, "1:16", seed, **where)["losses"]

    first = losses("bimask", 0)
    assert losses("bimask", 0) == first
    assert losses("srste", 1)[0] != first[0]
    srste = losses("srste", 0)
    assert srste[0] == first[0]  # the same weights and the same first batch
    assert srste[1:] != first[1:]
    assert all(math.isfinite(value) for value in first)


W, W6, W4 = draw(8, 8), draw(6, 8), draw(4, 8)
SIX, FOUR, EIGHT = order(6), order(4), order(8)
BAD = [
    (
        lambda: B.backward_mask(W6, W6 > 0, SIX, 2, 4),
        "O=6 is not a multiple of m=4: keep the layer",
    ),
    (lambda: B.permutation_scores(W6 > 0, SIX, 2, 4), "O=6 is not a multiple of m=4"),
    (lambda: B.transposable_mask(W6, 2, 4), "O=6 is not a multiple of m=4"),
    (lambda: B.transposable_mask(W6.T, 2, 4), "size 6 of dim 1 is not a multiple of m=4"),
    (lambda: B.transposable_mask(W, 5, 4), "need 1 <= n <= m, got n=5, m=4"),
    (lambda: B.backward_mask(W[None], W[None] > 0, EIGHT, 2, 4), r"use weight.flatten\(1\)"),
    (lambda: B.permutation_scores(W[None] > 0, EIGHT, 2, 4), "expected a 2-D"),
    (lambda: B.best_permutation(W[0] > 0, EIGHT, 2, 4), "expected a 2-D"),
    (lambda: B.transposable_mask(W[0], 2, 4), "expected a 2-D"),
    (lambda: B.backward_mask(W, W4.T > 0, EIGHT, 2, 4), r"\(8, 4\), weight \(8, 8\)"),
    (lambda: B.permutation_scores(W > 0, FOUR, 2, 4), "must contain 0..O-1 exactly once"),
    (lambda: B.permutation_scores(W4 > 0, FOUR.clamp(max=2), 2, 4), "exactly once"),
    (lambda: B.backward_mask(W4, W4 > 0, FOUR + 1, 2, 4), "exactly once"),
    (lambda: B.backward_mask(W4, W4 > 0, FOUR - 1, 2, 4), "exactly once"),
    (lambda: B.best_permutation(W > 0, EIGHT[None][:0], 2, 4), "at least one candidate permut"),
    (lambda: B.permutation_scores(W > 0, EIGHT, 2, 4, "keep"), "must be one of kept, eligible"),
    (lambda: B.permutation_scores(W > 0, EIGHT, 0, 4), "need 1 <= n <= m"),
    (lambda: layer("bimusk"), "method must be one of dense, srste"),
    (lambda: B.training_flops_fraction(2, 4, "ste"), "method must be one of dense"),
    (lambda: B.training_flops_fraction(5, 4, "srste"), "need 1 <= n <= m"),
    (lambda: layer(n=5), "need 1 <= n <= m, got n=5, m=4"),
    (lambda: layer(interval=0), "need at least 1: interval=0"),
    (lambda: B.BiMaskConv2d(8, 8, 3, groups=8), "grouped convolutions are left dense"),
    (lambda: B.BiMaskConv2d(8, 8, 3, padding_mode="reflect"), "left dense"),
    (lambda: B.BiMaskConv2d(8, 8, 3, padding="same"), "left dense"),
    (lambda: B.BiMaskConv2d(3, 8, 3), "size 27 of dim 1 is not a multiple of m=4"),
    (lambda: B.BiMaskConv2d(8, 6, 3), "O=6 is not a multiple of m=4"),
    (lambda: B.gradient_gap([draw(2)], [torch.zeros(2)]), "reference not zero"),
    (lambda: B.gradient_gap([draw(2)], [draw(2), draw(2)]), "same shapes"),
    (lambda: B.gradient_gap([], []), "not zero"),
    (lambda: B.apply_bimask(nn.Linear(4, 4), 2, 4, keep_dense=["head"]), "model lacks"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_types():
    with pytest.raises(TypeError, match=r"must be bool, got torch\.float32"):
        B.backward_mask(W, W, EIGHT, 2, 4)
    with pytest.raises(TypeError, match="must be bool"):
        B.permutation_scores(W, EIGHT, 2, 4)
    with pytest.raises(TypeError, match=r"integers, got torch\.float32"):
        B.backward_mask(W, W > 0, EIGHT.float(), 2, 4)
