"""DiffRate's definitions against brute force, plain timm and the paper's released numbers."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import models, training, vit
from helpers import token_reduction as known
from helpers.notebooks import load
from helpers.session import start
from helpers.vit import check_finite

m = load("diffrate")
quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10**6)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def network(depth=4, **options):
    """A small random ViT with 17 tokens; its weights are scaled up so that attention is uneven."""
    torch.manual_seed(1)
    model = models.vit(img_size=16, embed_dim=32, depth=depth, num_heads=2, **options).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(8)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 16, 16, generator=rng())


def gate(draw_seed, length, spread=3.0):
    return (spread * torch.randn(length, generator=rng(draw_seed))).requires_grad_()


def random_schedule(seed, depth=4, tokens=17, block0=True):
    counts = torch.randint(2, tokens + 1, (depth, 2), generator=rng(seed)).tolist()
    if block0:
        counts[0] = [tokens, tokens]
    return [tuple(pair) for pair in counts]


# ---- gates


@quick
@given(seeds, st.integers(1, 60), st.integers(1, 5))
def test_kept_tokens_value_and_gradient(seed, patches, granularity):
    granularity = min(granularity, patches)
    length = math.ceil(patches / granularity)
    z, c = gate(seed, length), m.candidate_counts(patches, granularity, length)
    kept = m.kept_tokens(z, c)
    rho = z.detach().double().softmax(0)
    expected = (rho * c.double()).sum()
    assert c[0] == patches
    assert c[-1] >= 1
    assert abs(kept.item() - 1 - math.ceil(expected.item())) <= (
        0 if abs(expected - expected.round()) > 1e-4 else 1
    )
    gradient = torch.autograd.grad(kept, z)[0].double()
    assert gradient.allclose(rho * (c.double() - expected), atol=1e-4)
    assert abs(gradient.sum()) < 1e-3


def test_uniform_logits_keep_the_mean():
    for patches, granularity in ((196, 1), (196, 4), (64, 1), (64, 3)):
        length = math.ceil(patches / granularity)
        c = m.candidate_counts(patches, granularity, length)
        kept = m.kept_tokens(torch.zeros(length), c).item()
        assert kept - 1 in (math.ceil(c.mean().item()), math.ceil(c.mean().item()) + 1)
    assert m.kept_tokens(torch.zeros(196), m.candidate_counts(196, 1, 196)).item() == 100
    assert m.kept_tokens(torch.zeros(49), m.candidate_counts(196, 4, 49)).item() == 101


@quick
@given(seeds, st.floats(-20, 20))
def test_a_constant_on_all_logits_changes_nothing(seed, shift):
    z, c = gate(seed, 16).detach(), m.candidate_counts(16, 1, 16)
    expected = (z.softmax(0) * c).sum().item()
    if abs(expected - round(expected)) > 1e-3:
        assert m.kept_tokens(z + shift, c) == m.kept_tokens(z, c)
    before, after = (m.keep_probability(logits, c, 17) for logits in (z, z + shift))
    assert before.allclose(after, atol=1e-5)


@quick
@given(seeds, st.floats(0, 5))
def test_a_larger_logit_of_keeping_all_never_keeps_fewer(seed, more):
    z, c = gate(seed, 16).detach().double(), m.candidate_counts(16, 1, 16).double()
    raised = z.clone()
    raised[0] += more
    assert m.kept_tokens(raised, c) >= m.kept_tokens(z, c) - (
        0 if more > 1e-6 else 1  # rounding of equal numbers
    )


@quick
@given(seeds, st.integers(2, 30), st.integers(1, 4))
def test_keep_probability_against_the_loop(seed, patches, granularity):
    granularity = min(granularity, patches)
    length = math.ceil(patches / granularity)
    z, c = gate(seed, length), m.candidate_counts(patches, granularity, length)
    pi, rho = m.keep_probability(z, c, patches + 1), z.softmax(0)
    loop = torch.zeros(patches + 1)
    for k in range(length):  # what the official code does
        loop[: int(c[k]) + 1] += rho[k].detach()
    assert pi.allclose(loop, atol=1e-5)
    assert pi[: int(c[-1]) + 1].allclose(torch.ones(int(c[-1]) + 1), atol=1e-5)
    assert (pi.diff() <= 1e-6).all()
    assert torch.isclose(pi.sum(), (rho * c).sum() + 1, atol=1e-4)
    i = seed % (patches + 1)
    gradient = torch.autograd.grad(pi[i], z, retain_graph=True)[0]
    closed = rho * ((c + 1 > i).float() - pi[i])
    assert gradient.allclose(closed, atol=1e-5)
    assert abs(gradient.sum()) < 1e-5


def test_gates_work_in_batches():
    c, z = m.candidate_counts(9, 1, 9), torch.randn(3, 2, 9, generator=rng())
    assert m.kept_tokens(z, c).shape == (3, 2)
    assert m.keep_probability(z, c, 10).shape == (3, 2, 10)
    assert m.kept_tokens(z, c)[1, 1] == m.kept_tokens(z[1, 1], c)
    assert m.keep_probability(z, c, 10)[2, 0].allclose(m.keep_probability(z[2, 0], c, 10))


@quick
@given(seeds, st.integers(1, 17), st.integers(1, 17))
def test_token_mask(seed, kept, alive):
    z, c = gate(seed, 16), m.candidate_counts(16, 1, 16)
    pi = m.keep_probability(z, c, 17)
    mask = m.token_mask(pi, kept, alive)
    wanted = torch.tensor([float(not kept <= rank < alive) for rank in range(17)])
    assert mask.detach().allclose(wanted, atol=1e-6)
    assert mask[:alive].sum().round().item() == min(kept, alive)
    weight = torch.randn(17, generator=rng(seed))
    ours = torch.autograd.grad((weight * mask).sum(), z, retain_graph=True)[0]
    assert ours.equal(torch.autograd.grad((weight * pi).sum(), z)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.kept_tokens(torch.zeros(0), torch.zeros(0)), r"logits are \(0,\)"),
        (lambda: m.kept_tokens(torch.zeros(3), torch.tensor([3.0, 2.0])), r"candidates \(2,\)"),
        (lambda: m.kept_tokens(torch.zeros(2), torch.tensor([2.0, 2.0])), "fall strictly"),
        (lambda: m.keep_probability(torch.zeros(2), torch.tensor([1.0, 0.0]), 3), ">= 1"),
        (lambda: m.candidate_counts(8, 0, 8), "granularity is 0"),
        (lambda: m.candidate_counts(8, 9, 2), "granularity is 9"),
        (lambda: m.candidate_counts(8, 3, 4), "has 4 logits"),
        (lambda: m.candidate_counts(8, 1, 0), "has 0 logits"),
        (lambda: m.token_mask(torch.ones(5), 3, 0), r"alive is 0; allowed: 1\.\.5"),
        (lambda: m.token_mask(torch.ones(5), 3, 6), r"alive is 6; allowed: 1\.\.5"),
        (lambda: m.class_attention_order(torch.ones(2, 3, 4)), "attn must be"),
        (lambda: m.class_attention_order(torch.ones(2, 3, 4, 5)), "attn must be"),
        (
            lambda: m.merge_tokens(torch.ones(1, 5, 2), torch.ones(1, 4, 1), 3),
            r"x is \(1, 5, 2\) and size \(1, 4, 1\)",
        ),
        (lambda: m.merge_tokens(torch.ones(1, 5, 2), torch.ones(1, 5, 1), 1), "kept is 1"),
        (lambda: m.merge_tokens(torch.ones(1, 5, 2), torch.ones(1, 5, 1), 6), "kept is 6"),
        (
            lambda: m.merge_tokens(torch.ones(1, 5, 2), torch.ones(1, 5, 1), 0, class_token=False),
            r"kept is 0; allowed: 1\.\.5",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- attention and merging


@quick
@given(seeds)
def test_masked_softmax(seed):
    scores = torch.randn(2, 3, 9, 9, generator=rng(seed))
    mask = (torch.rand(2, 9, generator=rng(seed + 1)) > 0.4).float()
    mask[:, 0] = 1
    attn = m.masked_softmax(scores, mask)
    assert attn.sum(-1).allclose(torch.ones(2, 3, 9), atol=1e-5)
    wanted = torch.zeros_like(scores)
    for b in range(2):
        for i in range(9):
            seen = [j for j in range(9) if mask[b, j] or i == j]
            wanted[b, :, i, seen] = scores[b, :, i, seen].softmax(-1)
    assert attn.allclose(wanted, atol=1e-4)
    open_attention = m.masked_softmax(scores, torch.ones(2, 9))
    assert open_attention.allclose(scores.softmax(-1), atol=1e-5)
    hidden = m.masked_softmax(torch.zeros(1, 1, 9, 9), mask[:1])[0, 0]
    off_diagonal = hidden[:, mask[0] == 0][~torch.eye(9, dtype=bool)[:, mask[0] == 0]]
    assert (off_diagonal <= 1.5e-6 / 9).all()


def test_class_attention_order():
    attn = torch.zeros(1, 2, 4, 4)
    attn[0, 0, 0] = torch.tensor([0.9, 0.1, 0.5, 0.1])
    attn[0, 1, 0] = torch.tensor([0.0, 0.1, 0.1, 0.1])
    assert m.class_attention_order(attn).tolist() == [[0, 2, 1, 3]]  # 1 before 3: stable
    row, mask = attn[:, :, 0].mean(1), torch.tensor([[1.0, 1, 0, 1]])
    assert vit.order_by_class(row, mask=mask).tolist() == [[0, 1, 3, 2]]


@quick
@given(seeds, st.integers(2, 12), st.booleans())
def test_top_k_order_is_the_start_of_the_sorted_one(seed, count, negative):
    row = torch.rand(3, 12, generator=rng(seed)) - float(negative)
    assert vit.order_by_class(row, count).equal(vit.order_by_class(row)[:, :count])


def merge_by_loops(x, size, kept, class_token, size_floor):
    x_new, size_new = x[:, :kept].clone(), size[:, :kept].clone()
    for b in range(len(x)):
        groups = {i: [x[b, i]] for i in range(kept)}
        for source in range(kept, x.shape[1]):
            first = 1 if class_token else 0
            similarity = F.cosine_similarity(x[b, source][None], x[b, first:kept])
            best = int(similarity.argmax()) + first
            groups[best].append(x[b, source])
            added = size[b, source] * similarity.max()
            size_new[b, best] += added.clamp(min=size_floor if size_floor is not None else 0)
        for i, group in groups.items():
            x_new[b, i] = torch.stack(group).mean(0)
    return x_new, size_new


@quick
@given(seeds, st.integers(2, 9), st.booleans(), st.sampled_from([None, 1.0]))
def test_merge_tokens_against_loops(seed, kept, class_token, size_floor):
    x = torch.randn(2, 9, 3, generator=rng(seed))
    size = 1 + 3 * torch.rand(2, 9, 1, generator=rng(seed + 1))
    done = m.merge_tokens(x, size, kept, class_token, size_floor)
    x_new, size_new = merge_by_loops(x, size, kept, class_token, size_floor)
    assert done.x.allclose(x_new, atol=1e-5)
    assert done.size.allclose(size_new, atol=1e-5)
    assert done.destination.shape == done.similarity.shape == (2, 9 - kept)
    assert (done.size >= size[:, :kept]).all()  # the guard
    if class_token:
        assert done.x[:, 0].equal(x[:, 0])
        assert (done.destination > 0).all()
    count = torch.ones(2, kept, 1)
    count.scatter_add_(1, done.destination[..., None], torch.ones(2, 9 - kept, 1))
    assert (done.x * count).sum(1).allclose(x.sum(1), atol=1e-4)


def test_merging_nothing_or_constants():
    x, size = torch.randn(2, 6, 4, generator=rng()), torch.rand(2, 6, 1, generator=rng())
    done = m.merge_tokens(x, size, 6)
    assert done.x.equal(x)
    assert done.size.equal(size)
    constant = torch.full((1, 6, 4), 0.5)
    assert m.merge_tokens(constant, torch.ones(1, 6, 1), 3).x.allclose(constant[:, :3])


def test_the_guard_keeps_sizes_positive_where_the_official_rule_does_not():
    x = torch.tensor([[[1.0, 0], [1, 0], [-1, 0.1]]])  # the source looks away from its destination
    done = m.merge_tokens(x, torch.tensor([[[1.0], [1], [5]]]), 2)
    assert done.similarity[0, 0] < -0.9  # official size: 1 - 4.9, and its logarithm is NaN
    assert done.size[0, 1] == 1


# ---- cost


@pytest.mark.parametrize(
    ("name", "dim", "gmac"),
    [
        ("S 2.9", 384, 2.9053),
        ("S 2.3", 384, 2.327),
        ("B 11.5", 768, 11.5172),
        ("B 8.7", 768, 8.731),
    ],
)
def test_released_schedules_cost_what_the_paper_says(name, dim, gmac):
    cost = m.vit_macs(m.released_schedule(name), 197, dim, 768, 1000).item() / 1e9
    assert abs(cost - gmac) < 1e-3


@pytest.mark.parametrize(("dim", "gmac"), [(192, 1.2538), (384, 4.5992), (768, 17.5644)])
def test_full_cost_of_deit(dim, gmac):
    assert abs(m.vit_macs([(197, 197)] * 12, 197, dim, 768, 1000).item() / 1e9 - gmac) < 1e-4


def test_cost_agrees_with_the_flop_counter(images):
    from helpers.metrics import macs

    model = network()
    for block in model.blocks:
        block.attn.fused_attn = False  # the counter does not see into the CPU's fused attention
    shape = vit.read_shape(model)
    extra = shape.dim * shape.patch_dim  # the formula embeds the class token as well
    assert m.vit_macs([(17, 17)] * 4, *shape).item() == macs(model, images[:1]) + extra


@quick
@given(seeds, st.integers(0, 3), st.integers(0, 1))
def test_cost_is_monotone_and_follows_the_running_minimum(seed, block, which):
    schedule, shape = random_schedule(seed), (17, 32, 48, 10)
    cost = m.vit_macs(schedule, *shape)
    alive, running = 17, []
    for pair in schedule:
        alive = min(alive, *pair)
        running.append((alive, alive))
    assert cost == m.vit_macs(running, *shape)
    smaller = [list(pair) for pair in schedule]
    smaller[block][which] = max(2, smaller[block][which] - 3)
    assert m.vit_macs(smaller, *shape) <= cost


@quick
@given(seeds)
def test_cost_gradient(seed):
    counts = [[float(c) for c in pair] for pair in random_schedule(seed)]
    tensors = torch.tensor(counts, requires_grad=True)
    m.vit_macs(tensors, 17, 32, 48, 10).backward()
    alive = 17.0
    for block, pair in enumerate(counts):
        alive = min(alive, *pair)
        wanted = 8 * 32**2 + (4 * 32**2 + 4 * 32 * alive if block < 3 else 0)
        assert tensors.grad[block].tolist() == [wanted, wanted]


# ---- forward paths


def test_keeping_everything_is_the_plain_network(net, images):
    everything = [(17, 17)] * 4
    plain = net(images)
    assert m.compressed_forward(net, images, everything).allclose(plain, atol=1e-5)
    logits, kept, mask = m.masked_forward(net, images, m.peaked_gates(everything, 17))
    assert logits.allclose(plain, atol=1e-5)
    assert [int(k) for pair in kept for k in pair] == [17] * 8
    assert (mask == 1).all()


def plain_reference(model, images, schedule):
    """Prune and merge with explicit attention, sorting always, written independently."""
    x = vit.embed(model, images)
    size = torch.ones(len(x), x.shape[1])
    for block, (prune, merge) in zip(model.blocks, schedule, strict=True):
        batch, tokens, dim = x.shape
        qkv = block.attn.qkv(block.norm1(x)).reshape(batch, tokens, 3, 2, dim // 2)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        attn = (q @ k.transpose(-1, -2) / (dim // 2) ** 0.5 + size.log()[:, None, None]).softmax(-1)
        x = x + block.attn.proj((attn @ v).transpose(1, 2).reshape(batch, tokens, dim))
        rank = attn[:, :, 0, 1:].mean(1).sort(descending=True).indices + 1
        order = torch.cat([torch.zeros(batch, 1, dtype=torch.long), rank], 1)
        middle = min(prune, tokens)
        x = torch.stack([x[b, order[b, :middle]] for b in range(batch)])
        size = torch.stack([size[b, order[b, :middle]] for b in range(batch)])
        if merge < middle:
            x, size = merge_by_loops(x, size[..., None], merge, True, None)
            size = size[..., 0]
        x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x)[:, 0])


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_compressed_forward_against_a_straightforward_one(seed):
    model, images = network(), torch.rand(2, 3, 16, 16, generator=rng(seed))
    schedule = random_schedule(seed, block0=False)
    ours = m.compressed_forward(model, images, schedule)
    assert ours.allclose(plain_reference(model, images, schedule), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, merging=st.booleans())
def test_masked_equals_dropped(seed, merging):
    model, images = network(), torch.rand(2, 3, 16, 16, generator=rng(seed))
    schedule = random_schedule(seed)
    if not merging:
        schedule = [(prune, prune) for prune, _ in schedule]
    floor = None if merging else 1.0
    gates = m.peaked_gates(schedule, 17)
    logits, kept, mask = m.masked_forward(model, images, gates, size_floor=floor)
    assert [[int(k) for k in pair] for pair in kept] == [list(pair) for pair in schedule]
    assert logits.allclose(m.compressed_forward(model, images, schedule), atol=1e-4)
    assert mask.sum(1).round().tolist() == [min(map(min, schedule))] * 2


def test_the_official_size_rule_is_close_but_not_equal(net, images):
    schedule = [(17, 17), (15, 9), (9, 6), (6, 6)]
    gates = m.peaked_gates(schedule, 17)
    official = m.masked_forward(net, images, gates)[0]
    dropped = m.compressed_forward(net, images, schedule)
    assert not official.allclose(dropped, atol=1e-5)
    assert (official - dropped).abs().max() < 0.5 * dropped.abs().max()


@quick
@given(seeds)
def test_token_counts_are_the_running_minimum(seed):
    model, images = network(), torch.rand(1, 3, 16, 16)
    schedule, alive = random_schedule(seed, block0=False), 17
    with torch.no_grad():
        for (x, _, _), pair in zip(
            m.compressed_blocks(model, images, schedule), schedule, strict=True
        ):
            alive = min(alive, *pair)
            assert x.shape[1] == alive


def test_the_order_of_patch_tokens_does_not_matter(net, images, monkeypatch):
    schedule = [(17, 17), (13, 9), (9, 6), (5, 4)]
    before = m.compressed_forward(net, images, schedule)
    shuffle = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(16, generator=rng())])
    embed = vit.embed
    monkeypatch.setattr(vit, "embed", lambda model, x: embed(model, x)[:, shuffle])
    assert m.compressed_forward(net, images, schedule).allclose(before, atol=1e-5)


def test_where_the_cross_entropy_reaches(net, images):
    gated = m.GatedViT(net)
    schedule = [(17, 17), (15, 13), (11, 9), (7, 5)]
    peaks = m.peaked_gates(schedule[1:], 17, sharpness=1.0)
    gated.logits.data = torch.stack([torch.stack(pair) for pair in peaks]).detach()
    gates = gated.gates()
    logits, kept, _ = m.masked_forward(net, images, gates)
    target = torch.tensor([0, 1, 2])
    (gradient,) = torch.autograd.grad(
        F.cross_entropy(logits, target), gated.logits, retain_graph=True
    )
    norms = gradient.norm(dim=-1)
    assert (norms[:-1] > 0).all()
    assert (norms[-1] == 0).all()  # nothing attends after the last block
    assert gradient.sum(-1).abs().max() < 1e-6
    (cost,) = torch.autograd.grad(m.relative_cost(kept, gated.shape), gated.logits)
    assert (cost.norm(dim=-1) > 0).all()
    assert cost.sum(-1).abs().max() < 1e-6


def test_the_gate_of_block_0_gets_no_gradient(net, images):
    fixed = torch.zeros(1, requires_grad=True)
    gates = [(fixed, fixed), *m.peaked_gates([(12, 9)] * 3, 17)]
    logits, kept, _ = m.masked_forward(net, images, gates)
    loss = logits.sum() + m.vit_macs(kept, *vit.read_shape(net))
    assert torch.autograd.grad(loss, fixed, allow_unused=True)[0] in (None, torch.zeros(1))


def test_forward_paths_refuse(net, images):
    with pytest.raises(ValueError, match="schedule has 3 blocks, the model has 4"):
        m.compressed_forward(net, images, [(17, 17)] * 3)
    for count in (1, 18, 9.0, torch.tensor(9)):
        with pytest.raises(ValueError, match="block 1 keeps"):
            m.compressed_forward(net, images, [(17, 17), (9, count), (9, 9), (9, 9)])
    with pytest.raises(ValueError, match="gates has 1 blocks"):
        m.masked_forward(net, images, [(torch.zeros(1),) * 2])
    gates = [(torch.zeros(17),) * 2] * 4
    with pytest.raises(ValueError, match="has 17 logits"):
        m.masked_forward(net, images, gates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_token": False, "global_pool": "avg"}, "no class token"),
        ({"reg_tokens": 2}, "register"),
        ({"global_pool": "avg"}, "global_pool 'avg'"),
        ({"mlp_ratio": 3.0}, "MLP ratio"),
    ],
)
def test_other_vision_transformers_are_refused(images, options, message):
    other = network(**options)
    for call in (
        lambda: m.compressed_forward(other, images, [(17, 17)] * 4),
        lambda: m.masked_forward(other, images, m.peaked_gates([(17, 17)] * 4, 17)),
        lambda: m.GatedViT(other),
    ):
        with pytest.raises(ValueError, match=f"DiffRate here needs a class-token ViT.*{message}"):
            call()


def test_distilled_models_are_refused(images):
    from timm.models.deit import VisionTransformerDistilled

    other = VisionTransformerDistilled(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    with pytest.raises(ValueError, match="class-token ViT"):
        m.compressed_forward(other, images, [(17, 17)] * 2)


def test_nan_is_an_error_that_names_the_block(images):
    model = network()
    model.blocks[2].mlp.fc2.bias.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="first in block 2"):
        m.compressed_forward(model, images, [(17, 17)] * 4)
    with pytest.raises(FloatingPointError, match="the head"):
        check_finite(torch.tensor([torch.inf]), iter([torch.ones(1)]))


def test_a_timm_deit_runs_on_both_paths():
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", depth=12).eval().requires_grad_(False)
    picture = torch.rand(1, 3, 224, 224)
    schedule = m.released_schedule("T 0.8")
    dropped = m.compressed_forward(model, picture, schedule)
    assert dropped.shape == (1, 1000)
    everything = [(197, 197)] * 12
    assert m.compressed_forward(model, picture, everything).allclose(model(picture), atol=1e-4)
    masked = m.masked_forward(model, picture, m.peaked_gates(schedule, 197), size_floor=None)[0]
    assert masked.allclose(dropped, atol=1e-3)


# ---- search


def setup(**changes):
    return {
        "model": "vit",
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "dataset": "digits",
        "test_images": 20,
        "workers": 0,
        "seed": 0,
        "device": "cpu",
        "data_root": "",
        "precision": "fp32",
    } | changes


def search(**changes):
    _, model, _ = m.classify.prepare(setup())
    options = {
        "granularity": 1, "target": 0.6, "steps": 30, "batch_size": 4, "lr": 0.2,
        "weight": 1000.0, "teacher": "labels",
    }  # fmt: skip
    return m.search_gates(setup(), model.state_dict(), **(options | changes))


def test_the_search_meets_its_budget_and_is_reproducible():
    first = search()
    cost = m.relative_cost(first["schedule"], vit.Shape(17, 32, 192, 10))
    assert abs(cost - 0.6) <= 0.02
    assert first["schedule"][0] == (17, 17)
    assert len(first["history"]) in (31, 81)
    assert first["history"][0].abs().sum() == 0
    again = search()
    assert first["schedule"] == again["schedule"]
    assert first["history"].equal(again["history"])


def test_the_search_runs_on_when_the_budget_is_missed():
    # two steps of a small rate cannot leave the uniform start
    assert len(search(steps=2, lr=0.001, target=0.9)["history"]) == 53


def test_the_search_without_labels():
    found = search(steps=3, teacher="self", target=0.55)
    labelled = search(steps=3, target=0.55)
    assert found["history"].isfinite().all()
    assert not found["history"].equal(labelled["history"])
    assert torch.is_grad_enabled()


def test_self_labelling_gives_the_models_own_probabilities(net, images):
    session = start(device="cpu", banner=False)
    batches = m.classify.self_labelled(net, [(images, None)], session)
    x, y = next(batches)
    assert torch.is_grad_enabled()  # not inside the generator's no_grad
    assert x.equal(images)
    assert y.allclose(net(images).softmax(-1))


@pytest.mark.parametrize("target", [0.2, 1.1])
def test_unreachable_budgets_are_refused(target):
    with pytest.raises(ValueError, match=r"smallest reachable ratio is 0\.479"):
        search(target=target)


def test_the_frozen_network_does_not_change():
    session, model, data = m.classify.prepare(setup())
    model.eval()
    before = models.parameters_hash(model)
    gated = m.GatedViT(model)
    m.train_gates(gated, data.train(4, 3, rng()), session, 0.5, 3, 0.1, 10.0, [])
    assert models.parameters_hash(model) == before
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert gated.logits.abs().sum() > 0
    assert not model.training


def test_training_makes_a_network_that_loads():
    weights = m.train_classifier(setup(), steps=2, batch_size=4, lr=1e-3, patch_drop=0.3)
    _, model, _ = m.classify.prepare(setup())
    before = models.parameters_hash(model)
    model.load_state_dict(weights)
    assert models.parameters_hash(model) != before


def test_launch_finds_the_functions_by_name():
    for name in ("train_classifier", "search_gates"):
        assert callable(getattr(load("diffrate"), name))
    weights = training.launch(
        "diffrate",
        "train_classifier",
        {"setup": setup(), "steps": 1, "batch_size": 2, "lr": 1e-3, "patch_drop": 0.0},
    )
    assert "head.weight" in weights


# ---- baselines


@quick
@given(seeds, st.integers(2, 11), st.integers(0, 8), st.booleans())
def test_bipartite_soft_matching_against_loops(seed, tokens, r, class_token):
    metric = torch.randn(1, tokens, 3, generator=rng(seed))
    x, size = torch.randn(1, tokens, 2), 1 + torch.rand(1, tokens, 1)
    x_new, size_new = m.bipartite_soft_matching(metric, r, class_token)(x, size)
    r = min(r, (tokens - 1) // 2 if class_token else tokens // 2)
    assert x_new.shape[1] == size_new.shape[1] == tokens - r
    even, odd = list(range(0, tokens, 2)), list(range(1, tokens, 2))
    best = []
    for i in even:
        similarity = F.cosine_similarity(metric[0, i][None], metric[0, odd])
        score = -torch.inf if class_token and i == 0 else similarity.max().item()
        best.append((-score, i, odd[int(similarity.argmax())]))
    merged = {i: partner for _, i, partner in sorted(best)[:r]}
    groups = [[i] for i in even if i not in merged]
    groups += [[j] + [i for i in merged if merged[i] == j] for j in odd]
    if r == 0:
        groups = [[i] for i in range(tokens)]
    for row, group in enumerate(groups):
        total = size[0, group].sum(0)
        assert size_new[0, row].allclose(total, atol=1e-5)
        assert x_new[0, row].allclose((x[0, group] * size[0, group]).sum(0) / total, atol=1e-5)
    if class_token:
        assert x_new[0, 0].allclose(x[0, 0], atol=1e-6)


def test_baselines_without_reduction_are_the_plain_network(net, images):
    everything = [(17, 17)] * 4
    assert known.tome_forward(net, images, everything).allclose(net(images), atol=1e-5)
    assert known.fused_forward(net, images, everything).allclose(net(images), atol=1e-5)


def test_the_fused_token_is_the_weighted_sum_of_what_was_dropped(net, images):
    x, row, _ = vit.attend(net.blocks[0], vit.embed(net, images))
    order = vit.order_by_class(row)
    wanted = torch.stack(
        [sum(row[b, i] * x[b, i] for i in order[b, 5:]) for b in range(len(images))]
    )
    seen = {}
    block = SimpleNamespace(forward=net.blocks[1].norm1.register_forward_pre_hook(
        lambda module, inputs: seen.update(x=inputs[0])
    ))  # fmt: skip
    known.fused_forward(net, images, [(6, 6)] * 4)
    block.forward.remove()
    fused = wanted[:, None] + net.blocks[0].ls2(
        net.blocks[0].mlp(net.blocks[0].norm2(wanted[:, None]))
    )
    assert seen["x"].shape[1] == 6
    assert seen["x"][:, -1:].allclose(fused, atol=1e-5)


@pytest.mark.parametrize("cost", [0.4, 0.5, 0.7])
@pytest.mark.parametrize(("tokens", "depth"), [(65, 6), (197, 12)])
def test_baselines_meet_the_cost(cost, tokens, depth):
    shape = vit.Shape(tokens, 192, 768, 10)
    for name, (_, schedule) in m.baselines(shape, depth, cost).items():
        assert abs(m.relative_cost(schedule, shape) - cost) <= 0.01, name
        known.check_schedule(schedule, tokens, depth)
    make = partial(known.monotone, tokens, sorted(torch.rand(2 * depth - 2).tolist(), reverse=True))
    schedule = m.at_cost(make, shape, cost)
    counts = [count for pair in schedule for count in pair]
    assert counts == sorted(counts, reverse=True)
    known.check_schedule(schedule, tokens, depth)


def test_shapes_of_the_hand_made_schedules():
    assert known.uniform(17, 4, 4) == [(17, 17), (15, 13), (11, 9), (7, 5)]
    assert known.uniform(17, 4, 4, prune_share=1)[1:] == [(13, 13), (9, 9), (5, 5)]
    assert known.uniform(17, 4, 4, prune_share=0)[1:] == [(17, 13), (13, 9), (9, 5)]
    kept = [count for count, _ in known.evit(197, 12, 0.3 * 197)]
    assert kept[:3] == [197] * 3
    assert kept[3:6] == [math.ceil(0.7 * 196) + 1] * 3
    assert [a for a, _ in known.tome(197, 3, 13)] == [184, 171, 158]
    assert [a for a, _ in known.tome(9, 3, 8)] == [5, 3, 2]


def test_attention_pieces_equal_timms_block(net, images):
    x = vit.embed(net, images)
    y, row, key = vit.attend(net.blocks[0], x)
    assert vit.add_mlp(net.blocks[0], y).allclose(net.blocks[0](x), atol=1e-5)
    assert row.sum(1).allclose(torch.ones(3), atol=1e-5)
    assert key.shape == (3, 2, 17, 16)
    size = 1 + torch.rand(3, 17, 1, generator=rng())
    query, key, _ = vit.project(net.blocks[0], x)
    scores = query @ key.mT * net.blocks[0].attn.scale + size.log().view(3, 1, 1, 17)
    weighted = scores.softmax(-1)[:, :, 0].mean(1)
    assert vit.attend(net.blocks[0], x, size)[1].allclose(weighted, atol=1e-5)


def test_bfloat16_search_keeps_exact_counts(net, images):
    session = start(device="cpu", precision="bf16", banner=False)
    schedule = [(17, 17), (15, 11), (9, 6), (5, 5)]
    with session.autocast():
        logits, kept, _ = m.masked_forward(net, images, m.peaked_gates(schedule, 17))
        dropped = m.compressed_forward(net, images, schedule)
    assert [[int(k) for k in pair] for pair in kept] == [list(pair) for pair in schedule]
    assert logits.float().allclose(net(images), atol=0.5)
    assert dropped.isfinite().all()
