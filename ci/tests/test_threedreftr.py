"""3DRefTR's superpoints, mask branch, matching, losses, scores; its invariants and bad inputs."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import (
    alignment,
    clouds,
    grounding,
    metrics,
    point_sets,
    referring,
    referring_rooms,
    referring_study,
    seed_labels,
)
from helpers import referring_training as training
from helpers.data import expressions, rooms, scannet
from helpers.notebooks import load
from helpers.point_networks import Level, neighbourhood
from helpers.session import start

N = load("threedreftr")
EASY = settings(deadline=None, max_examples=20)
SEEDS = st.integers(0, 999)
ROLES = expressions.ROLES


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def boxes_of(count, seed=0):
    return torch.cat([draw(count, 3, seed=seed), uniform(count, 3, seed=seed + 1) + 0.1], 1)


def contiguous(count, groups, seed=0):
    """Random ids of which each of 0..groups-1 occurs."""
    ids = torch.randint(0, groups, (count,), generator=torch.Generator().manual_seed(seed))
    ids[:groups] = torch.arange(groups)
    return ids


def random_maps(targets, slots, seed=0, density=0.3):
    return {
        role: uniform(targets, slots, seed=seed + i)
        * (uniform(targets, slots, seed=9 + i) < density)
        for i, role in enumerate(ROLES)
    }


# superpoints


def slow_superpoints(points, normals, edges, k, min_size):
    """Felzenszwalb's rule on sets of points, without union-find."""
    points, normals = points.double().numpy(), normals.double().numpy()
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    weights = []
    for a, b in edges.tolist():
        w = max(0.0, 1 - float((normals[a] * normals[b]).sum()))
        step = points[b] - points[a]
        weights.append(w * w if float((normals[b] * step).sum()) > 0 else w)
    part = {i: frozenset([i]) for i in range(len(points))}
    threshold = dict.fromkeys(part.values(), k)
    order = sorted(range(len(weights)), key=lambda e: weights[e])
    for growing, e in itertools.chain(((True, e) for e in order), ((False, e) for e in order)):
        one, two = (part[i] for i in edges[e].tolist())
        if one is two:
            continue
        fits = weights[e] <= min(threshold[one], threshold[two])
        if fits if growing else min(len(one), len(two)) < min_size:
            both = one | two
            threshold[both] = weights[e] + k / len(both)
            part.update(dict.fromkeys(both, both))
    ids = {}
    return [ids.setdefault(part[i], len(ids)) for i in range(len(points))]


def same_partition(a, b):
    pairs = set(zip(a.tolist(), list(b), strict=True))
    return len(pairs) == len({p[0] for p in pairs}) == len({p[1] for p in pairs})


@EASY
@given(seed=SEEDS, k=st.sampled_from([0.0, 0.01, 0.1, 1.0]), least=st.integers(1, 9))
def test_superpoints_agree_with_the_rule_on_sets(seed, k, least):
    points, normals = draw(60, 3, seed=seed), draw(60, 3, seed=seed + 1)
    edges = clouds.knn_edges(points, 4)
    found = N.felzenszwalb_superpoints(points, normals, edges, k, least)
    assert found.dtype == torch.int64
    assert found.unique().tolist() == list(range(int(found.max()) + 1))
    assert same_partition(found, slow_superpoints(points, normals, edges, k, least))
    twice = N.felzenszwalb_superpoints(points, normals, torch.cat([edges, edges]), k, least)
    assert torch.equal(found, twice)
    as_numpy = (x.numpy() for x in (points, normals, edges))
    assert torch.equal(found, N.felzenszwalb_superpoints(*as_numpy, k, least))


@EASY
@given(seed=SEEDS, least=st.integers(1, 20))
def test_no_superpoint_is_smaller_than_min_size_where_its_component_is_not(seed, least):
    points, normals = draw(50, 3, seed=seed), draw(50, 3, seed=seed + 1)
    edges = clouds.knn_edges(points, 1)  # many components
    found = N.felzenszwalb_superpoints(points, normals, edges, 0.05, least)
    whole = N.felzenszwalb_superpoints(points, normals, edges, 1e9, 1)
    for size, ids in ((torch.bincount(found), found),):
        component = torch.bincount(whole)[whole]
        large = component >= least
        assert (size[ids][large] >= least).all()


def test_with_k_0_every_point_stays_alone():
    points, normals = draw(40, 3), draw(40, 3, seed=1)
    edges = clouds.knn_edges(points)
    found = N.felzenszwalb_superpoints(points, normals, edges, k=0, min_size=1)
    assert found.tolist() == list(range(40))


def test_a_convex_edge_is_cheaper_than_a_concave_one():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    apart = torch.tensor([[-0.6, 0.0, 0.8], [0.6, 0, 0.8]])
    edge = torch.tensor([[0, 1]])
    assert N.edge_weights(points, apart, edge)[0] == pytest.approx(0.72**2)
    assert N.edge_weights(points, apart.flip(0), edge)[0] == pytest.approx(0.72)


def test_superpoints_refuse_bad_input():
    points, normals, edges = draw(5, 3), draw(5, 3, seed=1), torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match="1 rows with NaN"):
        N.felzenszwalb_superpoints(points.index_fill(0, torch.tensor(2), torch.nan), normals, edges)
    with pytest.raises(ValueError, match="5 rows of length zero"):
        N.felzenszwalb_superpoints(points, torch.zeros(5, 3), edges)
    with pytest.raises(ValueError, match="5 points, but 4 normals"):
        N.felzenszwalb_superpoints(points, normals[:4], edges)


# balls, means, farthest points


@EASY
@given(seed=SEEDS, nsample=st.integers(1, 9), fallback=st.sampled_from(["nearest", "first"]))
def test_ball_query_agrees_with_a_loop(seed, nsample, fallback):
    xyz, new = draw(2, 7, 3, seed=seed), draw(2, 5, 3, seed=seed + 1)
    index, empty = N.ball_query(0.9, nsample, xyz, new, fallback)
    assert index.shape == (2, 5, nsample)
    assert index.dtype == torch.int64
    for b, p in itertools.product(range(2), range(5)):
        away = [math.dist(new[b, p], point) for point in xyz[b]]
        hits = [j for j, d in enumerate(away) if d < 0.9][:nsample]
        assert bool(empty[b, p]) == (not hits)
        spare = int(np.argmin(away)) if fallback == "nearest" else 0
        first = hits[0] if hits else spare
        assert index[b, p].tolist() == hits + [first] * (nsample - len(hits))


def test_ball_query_is_strict_and_refuses_bad_input():
    xyz = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    assert N.ball_query(1.0, 2, xyz, xyz[:, :1])[0].tolist() == [[[0, 0]]]
    for radius, nsample, fallback in ((0, 1, "nearest"), (1, 0, "nearest"), (1, 1, "last")):
        with pytest.raises(ValueError, match=r"radius|fallback"):
            N.ball_query(radius, nsample, xyz, xyz, fallback)
        with pytest.raises(ValueError, match=r"radius|fallback"):
            N.SuperpointMaskBranch(4, radius, nsample, fallback)
    with pytest.raises(ValueError, match="2 points with NaN"):
        N.ball_query(1, 1, xyz * torch.inf, xyz)


def test_scatter_mean_fills_missing_ids_with_zero():
    src = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    found = N.scatter_mean(src, torch.tensor([2, 0, 2]), dim_size=4)
    assert found.tolist() == [[3, 4], [0, 0], [3, 4], [0, 0]]
    assert N.scatter_mean(src, torch.tensor([1, 1]), dim=1).tolist() == [
        [0, 1.5],
        [0, 3.5],
        [0, 5.5],
    ]


def test_farthest_points_agree_with_a_loop():
    xyz = draw(2, 30, 3)
    found = N.farthest_point_sample(xyz, 10)
    for cloud, chosen in zip(xyz, found.tolist(), strict=True):
        mine = [0]
        while len(mine) < 10:
            gap = [min(math.dist(p, cloud[j]) for j in mine) for p in cloud]
            mine.append(int(np.argmax(gap)))
        assert chosen == mine
    with pytest.raises(ValueError, match="npoint is 31"):
        N.farthest_point_sample(xyz, 31)


def test_interpolation_weighs_by_inverse_distance():
    known = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 4, 0], [9, 9, 9]]])
    feats, unknown = draw(1, 5, 4), torch.tensor([[[0.5, 0, 0], [0, 0, 0]]])
    found = N.three_nn_interpolate(unknown, known, feats)
    w = torch.tensor([2.0, 2, 1 / math.hypot(0.5, 4)])
    expected = (feats[0, :, :3] * w).sum(1) / w.sum()
    torch.testing.assert_close(found[0, :, 0], expected)
    torch.testing.assert_close(found[0, :, 1], feats[0, :, 0], atol=1e-6, rtol=1e-6)
    assert N.three_nn_interpolate(unknown, known[:, :2], feats[..., :2]).shape == (1, 5, 2)


# the mask branch


class Case:
    def __init__(self, seed=0, seeds=12, points=60, groups=9, scenes=2, queries=4, dim=8):
        self.seed_xyz, self.feats = draw(scenes, seeds, 3, seed=seed), draw(scenes, dim, seeds)
        self.points = draw(scenes, points, 3, seed=seed + 1)
        self.ids = torch.stack([contiguous(points, groups - i, seed) for i in range(scenes)])
        self.query = draw(scenes, queries, dim, seed=seed + 2)

    def args(self):
        return self.seed_xyz, self.feats, self.points, self.ids, self.query


def branch(**options):
    torch.manual_seed(0)
    return N.SuperpointMaskBranch(8, **{"radius": 0.8, **options})


def test_the_branch_agrees_with_a_loop_over_superpoints():
    case, model = Case(), branch()
    found = model(*case.args())
    assert [logits.shape for logits in found] == [(4, 9), (4, 8)]
    for b, logits in enumerate(found):
        feats = model.x_mask(case.feats[b : b + 1])[0]
        kernel = model.x_query(case.query[b].T[None])[0].T
        for m in range(logits.shape[1]):
            centre = case.points[b, case.ids[b] == m].mean(0)
            away = (case.seed_xyz[b] - centre).norm(dim=1)
            ball = (away < 0.8).nonzero().flatten()[:2]
            ball = ball if len(ball) else away.argmin()[None]
            torch.testing.assert_close(logits[:, m], kernel @ feats[:, ball].amax(1))


def test_state_dict_has_the_names_of_the_official_checkpoints():
    shapes = {k: tuple(v.shape) for k, v in branch().state_dict().items()}
    for name in ("x_mask", "x_query"):
        for layer, (o, i) in {0: (16, 8), 2: (16, 16), 4: (8, 16)}.items():
            assert shapes[f"{name}.{layer}.weight"] == (o, i, 1)
            assert shapes[f"{name}.{layer}.bias"] == (o,)


def test_order_and_names_of_points_do_not_matter():
    case, model = Case(), branch()
    before = model(*case.args())
    order, names = torch.randperm(60), torch.randperm(9)
    case.points, case.ids = case.points[:, order], case.ids[:, order]
    for a, b in zip(before, model(*case.args()), strict=True):
        torch.testing.assert_close(a, b)
    ids = case.ids[:1]
    renamed = model(case.seed_xyz[:1], case.feats[:1], case.points[:1], names[ids], case.query[:1])
    torch.testing.assert_close(renamed[0][:, names], before[0])


def test_a_shift_changes_nothing_and_the_order_of_seeds_only_through_first():
    case, order = Case(seed=3), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for options, same in (
        ({}, False),
        ({"nsample": 12}, True),
        ({"nsample": 1, "radius": 1e-6}, True),
    ):
        model = branch(**options)
        before = torch.cat(model(*case.args()), 1)
        shift = torch.tensor([0.5, -0.25, 1.0])
        seed_xyz, feats, points, ids, query = case.args()
        moved = model(seed_xyz + shift, feats, points + shift, ids, query)
        torch.testing.assert_close(torch.cat(moved, 1), before)
        shuffled = model(seed_xyz[:, order], feats[..., order], points, ids, query)
        assert torch.allclose(torch.cat(shuffled, 1), before, atol=1e-5) == same


def test_fallback_matters_only_in_empty_balls():
    case = Case(seed=5)
    near, first = branch(radius=0.7), branch(radius=0.7, fallback="first")
    empty = near.group(case.seed_xyz, case.points, case.ids)[1]
    assert empty[0].any()
    assert not empty[0].all()
    changed = (near(*case.args())[0] != first(*case.args())[0]).any(0)
    assert not changed[~empty[0, :9]].any()
    assert changed[empty[0, :9]].any()
    for logits in branch(radius=1e6, nsample=50)(*case.args()):  # the whole room for each
        torch.testing.assert_close(logits, logits[:, :1].expand_as(logits))


def test_logits_are_linear_in_the_kernel():
    case, model = Case(), branch()
    before = model(*case.args())
    with torch.no_grad():
        model.x_query[4].weight *= 2
        model.x_query[4].bias *= 2
    for a, b in zip(before, model(*case.args()), strict=True):
        torch.testing.assert_close(2 * a, b)
        assert torch.equal(a > 0, b > 0)


def test_gradients_reach_the_seeds_in_balls_and_no_others():
    case, model = Case(seeds=30), branch()
    case.feats.requires_grad_()
    case.query.requires_grad_()
    sum(logits.square().sum() for logits in model(*case.args())).backward()
    index, _ = model.group(case.seed_xyz, case.points, case.ids)
    used = torch.zeros(2, 30, dtype=torch.bool)
    for b, m in ((0, 9), (1, 8)):
        used[b, index[b, :m].flatten()] = True
    assert (case.feats.grad.abs().sum(1)[~used] == 0).all()
    assert (~used).any()
    assert (case.query.grad != 0).any()
    assert all((p.grad != 0).any() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids.float(), "integers"),
        (lambda ids: ids[:, :-1], "length 59, points have 60"),
        (lambda ids: ids - 1, "negative"),
        (lambda ids: ids * 2, "contiguous"),
    ],
)
def test_the_branch_refuses_bad_ids(change, message):
    case = Case()
    case.ids = change(case.ids)
    with pytest.raises(ValueError, match=message):
        branch()(*case.args())


def test_the_branch_refuses_nan_and_counts_it():
    case = Case()
    case.points[0, 3] = torch.nan
    with pytest.raises(ValueError, match="points has 1 points with NaN"):
        branch()(*case.args())


def test_masks_at_points_are_constant_inside_a_superpoint():
    case = Case()
    logits = branch()(*case.args())[0]
    at_points = (logits > 0)[:, case.ids[0]]
    for m in range(9):
        assert (at_points[:, case.ids[0] == m] == at_points[:, case.ids[0] == m][:, :1]).all()


# boxes


@EASY
@given(seed=SEEDS)
def test_giou_agrees_with_scalars_and_has_its_range(seed):
    a, b = boxes_of(4, seed), boxes_of(3, seed + 7)
    giou, iou = N.generalized_box_iou_3d(a, b)
    assert ((giou > -1) & (giou <= iou + 1e-6) & (iou <= 1)).all()
    for i, j in itertools.product(range(4), range(3)):
        ends = [(x[:3] - s * x[3:] / 2).tolist() for s in (1, -1) for x in (a[i], b[j])]
        sides = list(zip(*ends, strict=True))  # a low, b low, a high, b high, along each axis
        both = math.prod(max(0, min(c, d) - max(a_, b_)) for a_, b_, c, d in sides)
        hull = math.prod(max(c, d) - min(a_, b_) for a_, b_, c, d in sides)
        union = float(a[i, 3:].prod() + b[j, 3:].prod()) - both
        assert iou[i, j] == pytest.approx(both / union, abs=1e-5)
        assert giou[i, j] == pytest.approx(both / union - (hull - union) / hull, abs=1e-5)
    torch.testing.assert_close(N.generalized_box_iou_3d(a, a)[0].diagonal(), torch.ones(4))


def test_boxes_refuse_corners_and_clamp_sizes():
    with pytest.raises(ValueError, match="size"):
        N.generalized_box_iou_3d(draw(2, 8), draw(2, 6))
    negative = torch.tensor([[0.0, 0, 0, -1, 1, 1]])
    assert torch.isfinite(N.generalized_box_iou_3d(negative, negative)[0]).all()


def test_the_tight_box_of_a_set_contains_it():
    points = draw(50, 3)
    low, high = points.amin(0), points.amax(0)
    assert N.box_to_mask(points, torch.cat([(low + high) / 2, (high - low) + 1e-6])).all()
    unit = torch.tensor([[0.5, 0, 0], [0.51, 0, 0]])
    assert N.box_to_mask(unit, torch.tensor([0.0, 0, 0, 1, 1, 1])).tolist() == [True, False]


def test_mask_iou():
    a, b = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    assert N.mask_iou(a, b) == pytest.approx(1 / 3)
    assert N.mask_iou(a & ~a, a & ~a) == 1.0


# matching and mask losses


@EASY
@given(seed=SEEDS)
def test_difference_of_masks_is_exact_in_points(seed):
    ids, masks = contiguous(80, 9, seed), uniform(3, 80, seed=seed) < 0.3
    hard = draw(5, 9, seed=seed) > 0
    hits, count = N.superpoint_hits(ids, masks)
    found = N.mask_difference(hard, count, hits)
    expected = (hard[:, ids][:, None] != masks).sum(-1)
    assert torch.equal(found.long(), expected)
    for kind in (masks, masks.to(torch.uint8), masks.float()):
        assert torch.equal(N.superpoint_hits(ids, kind)[0], hits)


def match_case(seed, queries=6, targets=3):
    return {
        "pred_logits": draw(queries, 10, seed=seed),
        "pred_boxes": boxes_of(queries, seed),
        "main_map": uniform(targets, 10, seed=seed),
        "gt_boxes": boxes_of(targets, seed + 5),
    }


@EASY
@given(seed=SEEDS, masked=st.booleans())
def test_the_match_is_the_cheapest_of_all(seed, masked):
    case, extra = match_case(seed), {}
    ids, masks, logits = contiguous(40, 7, seed), uniform(3, 40, seed=seed) < 0.4, draw(6, 7)
    if masked:
        extra = {"mask_logits": logits, "superpoint": ids, "gt_masks": masks, "w_mask": 0.05}
    queries, targets = N.hungarian_match(**case, **extra)
    assert queries.tolist() == sorted(set(queries.tolist()))
    assert sorted(targets.tolist()) == [0, 1, 2]
    named = case["pred_logits"].softmax(-1) @ case["main_map"].T
    cost = -named - 2 * N.generalized_box_iou_3d(case["pred_boxes"], case["gt_boxes"])[0]
    if masked:
        cost = cost + 0.05 * ((logits > 0)[:, ids][:, None] != masks).sum(-1)
    best = min(
        sum(cost[q, t] for t, q in enumerate(p)) for p in itertools.permutations(range(6), 3)
    )
    assert cost[queries, targets].sum() == pytest.approx(float(best), abs=1e-4)


def test_matching_edge_cases():
    case = match_case(0)
    masks = {
        "mask_logits": draw(6, 7), "superpoint": contiguous(40, 7),
        "gt_masks": uniform(3, 40) < 0.4,
    }  # fmt: skip
    plain, unweighted = N.hungarian_match(**case), N.hungarian_match(**case, **masks, w_mask=0)
    assert all(torch.equal(a, b) for a, b in zip(plain, unweighted, strict=True))
    case["pred_boxes"][4] = case["gt_boxes"][1]
    case["pred_logits"][4] = 50 * case["main_map"][1]
    pairs = dict(zip(*(p.tolist() for p in N.hungarian_match(**case)), strict=True))
    assert pairs[4] == 1
    none = case | {"main_map": torch.zeros(0, 10), "gt_boxes": torch.zeros(0, 6)}
    assert [len(p) for p in N.hungarian_match(**none)] == [0, 0]
    many = match_case(0, queries=2)
    with pytest.raises(ValueError, match="more targets than queries"):
        N.hungarian_match(**many)
    with pytest.raises(ValueError, match="superpoint and gt_masks"):
        N.hungarian_match(**case, mask_logits=draw(6, 7))
    with pytest.raises(ValueError, match="gt_masks has shape"):
        N.hungarian_match(**case, **masks | {"gt_masks": torch.ones(3, 39)})


def test_mask_losses_agree_with_the_formula():
    ids, masks, logits = contiguous(60, 8), uniform(3, 60) < 0.5, 2 * draw(3, 8)
    focal, dice = N.mask_losses(logits, ids, masks)
    expected = [0.0, 0.0]
    for t in range(3):
        share = torch.stack([masks[t, ids == m].float().mean() for m in range(8)])
        y, p = (share > 0.5).double(), logits[t].double().sigmoid()
        ce = -(y * p.log() + (1 - y) * (1 - p).log())
        weight = torch.where(y > 0, 0.25 * (1 - p) ** 2, 0.75 * p**2)
        expected[0] += (weight * ce).mean() / 3
        expected[1] += (1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)) / 3
    assert focal == pytest.approx(float(expected[0]), rel=1e-5)
    assert dice == pytest.approx(float(expected[1]), rel=1e-5)


def test_mask_losses_split_vanish_and_take_no_target():
    ids, masks, logits = contiguous(60, 8), uniform(4, 60) < 0.5, draw(4, 8)
    whole = N.mask_losses(logits, ids, masks, num_targets=5)
    halves = [N.mask_losses(logits[s], ids, masks[s], 5) for s in (slice(0, 1), slice(1, 4))]
    for i in range(2):
        torch.testing.assert_close(whole[i], halves[0][i] + halves[1][i])
        assert whole[i] >= 0
    y = torch.stack([2 * N.superpoint_hits(ids, masks)[0] > torch.bincount(ids)])[0].float()
    sure = N.mask_losses(60 * (2 * y - 1), ids, masks)
    assert max(sure) < 1e-5
    empty = torch.zeros(0, 8, requires_grad=True)
    nothing = N.mask_losses(empty, ids, torch.zeros(0, 60))
    assert [float(x.detach()) for x in nothing] == [0, 0]
    sum(nothing).backward()
    points = torch.arange(60)
    assert torch.equal(N.superpoint_hits(points, masks)[0] > 0.5, masks)
    with pytest.raises(ValueError, match="gt_masks has shape"):
        N.mask_losses(logits, ids, masks[:, :-1])


# alignment


def test_token_map_sums_spans():
    # "the red ball near the ball": characters
    offsets = [(0, 3), (4, 7), (8, 12), (13, 17), (18, 21), (22, 26)]
    assert N.token_positive_map([(8, 12), (22, 26)], offsets, 8).tolist() == [
        0,
        0,
        1,
        0,
        0,
        1,
        0,
        0,
    ]
    assert N.token_positive_map([(4, 12)], offsets, 8).tolist() == [0, 0.5, 0.5, 0, 0, 0, 0, 0]
    twice = N.token_positive_map([(8, 12), (8, 12)], offsets)
    assert twice[2] == 2
    assert len(twice) == 256
    with pytest.raises(ValueError, match="6 tokens"):
        N.token_positive_map([], offsets, 5)


@EASY
@given(seed=SEEDS)
def test_position_loss_agrees_with_a_loop(seed):
    logits, maps = draw(6, 10, seed=seed), random_maps(2, 10, seed)
    match = torch.tensor([1, 4]), torch.tensor([1, 0])
    total = 0.0
    for i in range(6):
        y, w = torch.zeros(10), 0.1
        y[-1] = 1
        for q, t in zip(*match, strict=True):
            if int(q) == i:
                shares = (0.6, 0.2, 0.2, 0.1)
                y, w = sum(c * maps[r][t] for c, r in zip(shares, ROLES, strict=False)), 1
        total += w * float((y * (y + 1e-6).log() - y * logits[i].log_softmax(0)).sum())
    found = N.position_alignment_loss(logits, maps, match)
    assert float(found) == pytest.approx(total / 2, rel=1e-4, abs=1e-5)


def test_position_loss_is_least_at_the_target_and_never_negative():
    maps = {role: torch.zeros(1, 10) for role in ROLES}
    maps["main"][0, 2], maps["attribute"][0, 1], maps["pronoun"][0, 4] = 1, 1, 1
    match = torch.tensor([0]), torch.tensor([0])
    y = torch.tensor([[1e-9, 0.2, 0.6, 1e-9, 0.2, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9]])
    best = N.position_alignment_loss(y.log(), maps, match)
    assert -1e-5 <= float(best) < 1e-5
    for seed in range(5):
        other = N.position_alignment_loss(draw(1, 10, seed=seed), maps, match)
        assert other > best
    logits = draw(3, 10).requires_grad_()
    none = torch.zeros(0, dtype=torch.long)
    empty = N.position_alignment_loss(logits, {r: m[:0] for r, m in maps.items()}, (none, none))
    empty.backward()
    assert float(empty.detach()) == 0


def slow_semantic(q, t, maps, match, tokens, eos=0.1):
    s = (q @ t.T / 0.07).double()
    s = s[:, :tokens]
    main, attribute, pronoun, relation, auxiliary = (
        torch.nn.functional.pad(maps[r], (0, 99))[:, :tokens].double() for r in ROLES
    )
    pairs = dict(zip(match[0].tolist(), match[1].tolist(), strict=True))
    total = 0.0
    for i in range(len(s)):
        if i in pairs:
            sets = [m[pairs[i]] > 0 for m in (main, attribute, pronoun, relation, auxiliary)]
        else:
            sets = [torch.arange(tokens) >= tokens - 2] + [torch.zeros(tokens).bool()] * 4
        pull = sum(
            c * (s[i] * m).sum() / (m.sum() + 1e-6)
            for c, m in zip((1, 0.2, 0.2, 0.1), sets, strict=False)
        )
        push = (s[i] * (1 + sets[4].double())).logsumexp(0)
        total += (1 if i in pairs else eos) * (push - pull)
    for j in range(tokens):
        u, pulled, scale = 1e-6, 0.0, 0.0
        for i in range(len(s)):
            if i in pairs:
                if main[pairs[i], j] > 0:
                    u, pulled, scale = u + 1, pulled + s[i, j], scale or 1
            elif j >= tokens - 2:
                u, pulled, scale = u + 1, pulled + s[i, j], scale or 1
        for m, c in ((attribute, 0.2), (pronoun, 0.2), (relation, 0.1)):
            for i, target in pairs.items():
                u = u + m[target, j]
                if m[target, j] > 0:
                    pulled, scale = pulled + s[i, j], c
        if scale and j == tokens - 2:
            scale = 0.1
        if scale:
            total += scale * (-math.log(u + 1e-6) / u - pulled / u + s[:, j].logsumexp(0))
    return float(total) / 2 / len(pairs)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(draw(*shape, seed=seed), dim=-1)


@EASY
@given(seed=SEEDS)
def test_semantic_loss_agrees_with_a_loop_and_ignores_padding(seed):
    q, t, maps = unit(5, 8, seed=seed), unit(9, 8, seed=seed + 1), random_maps(2, 12, seed)
    maps["main"][:, 2] = 1
    match = torch.tensor([0, 3]), torch.tensor([1, 0])
    found = N.semantic_alignment_loss(q, t, maps, match)
    assert float(found) == pytest.approx(slow_semantic(q, t, maps, match, 9), rel=1e-4)
    cut = {r: m.clone() for r, m in maps.items()}
    for m in cut.values():
        m[:, 7:] = 0
    short = N.semantic_alignment_loss(q, t[:7], cut, match)
    longer = N.semantic_alignment_loss(q, t, cut, match, num_tokens=7)
    torch.testing.assert_close(short, longer)
    assert float(short) == pytest.approx(slow_semantic(q, t[:7], cut, match, 7), rel=1e-4)


def test_batched_semantic_loss_is_the_sum_of_the_scenes():
    q, t, maps = unit(3, 5, 8), unit(3, 9, 8, seed=1), random_maps(3, 12)
    tokens, best = torch.tensor([9, 7, 8]), torch.tensor([4, 0, 2])
    for m in maps.values():
        m[1, 7:], m[2, 8:] = 0, 0
    rows = torch.arange(3)
    together = N.semantic_alignment_loss(q, t, maps, (5 * rows + best, rows), 3, tokens)
    alone = sum(
        N.semantic_alignment_loss(
            q[b], t[b], {r: m[b : b + 1] for r, m in maps.items()},
            (best[b : b + 1], torch.tensor([0])), 3, int(tokens[b]),
        )
        for b in range(3)
    )  # fmt: skip
    torch.testing.assert_close(together, alone)


def test_semantic_loss_falls_when_the_query_moves_to_its_word():
    q, t = unit(4, 8), unit(6, 8, seed=1)
    maps = {role: torch.zeros(1, 6) for role in ROLES}
    maps["main"][0, 1] = 1
    match, values = (torch.tensor([2]), torch.tensor([0])), []
    for share in (0.0, 0.5, 1.0):
        moved = q.clone()
        moved[2] = torch.nn.functional.normalize((1 - share) * q[2] + share * t[1], dim=0)
        values.append(float(N.semantic_alignment_loss(moved, t, maps, match)))
    assert values[0] > values[1] > values[2]
    emb, none = q.clone().requires_grad_(), torch.zeros(0, dtype=torch.long)
    loss = N.semantic_alignment_loss(emb, t, {r: m[:0] for r, m in maps.items()}, (none, none))
    loss.backward()
    assert float(loss.detach()) == 0


def test_keypoint_loss_marks_the_targets_own_nearest_seeds():
    xyz = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0, 0.3, 0], [2, 2, 2], [0.01, 0, 0]])
    owner, box = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([[0.0, 0, 0, 0.1, 1, 1]])
    y = alignment.keypoint_targets(xyz, owner, box, topk=2)
    assert y.tolist() == [[True, False, True, False, False]]  # distances in units of the size
    logits = draw(5)
    p = logits.sigmoid()
    hit = 0.25 * (1 - p) ** 2 * -p.log()
    miss = 0.75 * p**2 * -(1 - p).log()
    expected = torch.where(y[0], hit, miss).mean()
    torch.testing.assert_close(N.keypoint_objectness_loss(logits, xyz, owner, box, 2), expected)


def test_scores_binarise_the_main_words_and_ignore_padding():
    maps = {role: torch.zeros(4) for role in ROLES}
    maps["main"][0], maps["attribute"][1], maps["auxiliary"][2] = 0.5, 0.5, 1
    probs = torch.tensor([[0.2, 0.4, 0.1, 0.3], [0.5, 0.0, 0.5, 0.0]])
    torch.testing.assert_close(N.grounding_scores(probs, maps), torch.tensor([0.3, 0.0]))
    padded = {role: torch.nn.functional.pad(m, (0, 3)) for role, m in maps.items()}
    wide = torch.nn.functional.pad(probs, (0, 3))
    torch.testing.assert_close(N.grounding_scores(wide, padded), N.grounding_scores(probs, maps))


def test_macs_of_the_branches():
    sizes = (50_000, 1024, 1354, 256, 288)
    sp, hr = (N.mask_branch_macs(v, *sizes) for v in ("sp", "hr"))
    assert (sp, hr) == (949_174_272, 17_372_081_664)
    with pytest.raises(ValueError, match="variant"):
        N.mask_branch_macs("xy", *sizes)
    model, q = N.SuperpointMaskBranch(16), 5
    index = torch.zeros(1, 9, 2, dtype=torch.long)

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = model

        def forward(self, feats, query):
            return self.branch.masks(feats, index, query)

    counted = metrics.macs(Whole(), draw(1, 16, 7), draw(1, q, 16))
    assert counted == N.mask_branch_macs("sp", 99, 7, 9, q, 16)


# the network and its training


LEVELS = [Level(48, 0.4, 6, (8, 16)), Level(24, 0.8, 6, (16, 16))]


@pytest.fixture(scope="module")
def small():
    things = [rooms.primitive_room(seed, 256) for seed in range(1000, 1004)]
    said = [expressions.refer(room) for room in things]

    def superpoints(room):
        edges = clouds.knn_edges(room.xyz)
        return N.felzenszwalb_superpoints(room.xyz, room.normals, edges, 0.05, 5)

    group = N.SuperpointMaskBranch(16).group
    scenes = referring.collect_scenes(things, superpoints, group, LEVELS)
    make = (things, said, scenes, N.token_positive_map, alignment.keypoint_targets)
    return scenes, referring.collect_sentences(*make, expressions.MAX_TOKENS, 16)


def network(ups=0, levels=LEVELS):
    torch.manual_seed(0)
    text = grounding.WordEmbedding(len(expressions.VOCABULARY), expressions.MAX_TOKENS, 16)
    return grounding.Grounder(levels, 16, 2, 32, (1, 2), 8, 16, text, 8, ups=ups)


def batch_of(small, **options):
    scenes, sentences = small
    return referring.make_batch(
        scenes, sentences, torch.arange(4), torch.arange(len(sentences)), **options
    )


def test_prepared_counts_add_up(small):
    scenes, sentences = small
    assert (scenes.counts.sum(1) == 256).all()
    truth = scenes.instance[sentences.room] == sentences.target[:, None]
    assert torch.equal(sentences.hits.sum(1), truth.sum(1).float())
    roomy = sentences.boxes + torch.tensor([0.0, 0, 0, 1e-5, 1e-5, 1e-5])
    boxed = N.box_to_mask(scenes.xyz[sentences.room], roomy)
    assert (boxed | ~truth).all()
    assert (sentences.keypoints.sum(1) <= 4).all()


def test_turned_rooms_keep_boxes_around_their_points(small):
    matrices = referring.turns(4, torch.Generator().manual_seed(3))
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), torch.eye(3).expand(4, 3, 3))
    batch = batch_of(small, matrices=matrices)
    xyz = batch.xyz[batch.room_of]
    inf = torch.inf * torch.ones(())
    low = torch.where(batch.truth[..., None], xyz, inf).amin(1)
    high = torch.where(batch.truth[..., None], xyz, -inf).amax(1)
    torch.testing.assert_close(torch.cat([(low + high) / 2, high - low], 1), batch.boxes)


def test_a_sentence_gets_the_same_answer_alone_and_in_a_batch(small):
    scenes, sentences = small
    model = network().eval()
    whole = model(*batch_of(small).inputs())
    number = int((sentences.room == 2).nonzero()[0])
    alone = referring.make_batch(scenes, sentences, torch.tensor([2]), torch.tensor([number]))
    one = model(*alone.inputs())
    torch.testing.assert_close(one.boxes[-1][0], whole.boxes[-1][number], atol=1e-4, rtol=1e-4)
    shift = torch.tensor([0.0, 0, 0])
    assert torch.equal(one.seed_xyz[0] + shift, scenes.xyz[2][scenes.seeds[2]])


def test_padding_words_change_nothing(small):
    model, batch = network().eval(), batch_of(small)
    short = int(batch.num_tokens.max())
    a = model(*batch.inputs())
    batch.tokens = batch.tokens[:, :short]
    b = model(*batch.inputs())
    torch.testing.assert_close(a.boxes[-1], b.boxes[-1], atol=1e-5, rtol=1e-5)


def test_the_batched_loss_is_the_sum_of_the_public_ones(small):
    batch, model = batch_of(small), training.Referrer(network(), N.SuperpointMaskBranch(16))
    out, masks = model(batch)
    terms = N.grounding_loss(out, batch, masks, w_mask=0.01)
    n, expected = len(batch.boxes), dict.fromkeys(terms, 0.0)
    owner = small[0].instance.gather(1, small[0].seeds)
    for b in range(n):
        maps = {role: m[b : b + 1] for role, m in batch.maps.items()}
        room, gt, count = int(batch.room_of[b]), batch.boxes[b : b + 1], int(batch.num_tokens[b])
        ids, truth = small[0].superpoint[room], batch.truth[b : b + 1]
        own = torch.where(owner[room] == small[1].target[b], 0, -1)
        point = N.keypoint_objectness_loss(out.objectness[b], out.seed_xyz[b], own, gt)
        expected["keypoints"] += 8 * point / n
        for head in range(3):
            box, logits = out.boxes[head][b], out.logits[head][b]
            logit = masks[b, :, : int(ids.max()) + 1]
            extra = (logit, ids, truth) if head == 2 else ()
            match = N.hungarian_match(logits, box, maps["main"], gt, *extra, w_mask=0.01)
            q = int(match[0])
            expected["position"] += N.position_alignment_loss(logits, maps, match, n) / 6
            emb = out.query_emb[head][b], out.token_emb[b]
            semantic = N.semantic_alignment_loss(*emb, maps, match, n, count)
            expected["semantic"] += semantic / 6
            error = (box[q] - gt[0]).abs()
            expected["box"] += 5 * (error[:3].sum() + 0.2 * error[3:].sum()) / n / 3
            giou = N.generalized_box_iou_3d(box[q : q + 1], gt)[0]
            expected["giou"] += (1 - giou[0, 0]) / n / 3
        focal, dice = N.mask_losses(logit[q : q + 1], ids, truth, n)
        expected["focal"] += 10 * focal
        expected["dice"] += 2 * dice
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_answers_agree_with_point_masks(small):
    batch, model = batch_of(small), training.Referrer(network(), N.SuperpointMaskBranch(16))
    out, masks = model(batch)
    found = N.answer(out, batch, masks)
    for b in range(len(batch.boxes)):
        room = int(batch.room_of[b])
        at_points = found.mask[b][small[0].superpoint[room]]
        assert float(found.mask_iou[b]) == pytest.approx(N.mask_iou(at_points, batch.truth[b]))
        boxed = N.box_to_mask(batch.xyz[room], found.box[b])
        assert float(found.boxed_iou[b]) == pytest.approx(N.mask_iou(boxed, batch.truth[b]))


def test_a_frozen_network_stays_bit_identical_and_answers_alike(small):
    from helpers.models import parameters_hash

    session = start(banner=False)
    rec, branch_ = network(), N.SuperpointMaskBranch(16)
    model, before = training.Referrer(rec, branch_), parameters_hash(rec)
    start_hash = parameters_hash(branch_)
    plain = training.evaluate(training.Referrer(rec), *small, N.answer, session=session)
    batches = referring.random_batches(*small, 2, 3, session.generator())
    options = {"steps": 3, "lr": 1e-3, "session": session, "rest": 0}
    training.train(model, batches, N.grounding_loss, **options)
    assert parameters_hash(rec) == before
    assert parameters_hash(branch_) != start_hash
    found = training.evaluate(model, *small, N.answer, session=session)
    assert torch.equal(found.box, plain.box)


def test_training_lowers_the_loss_and_both_parts_move(small):
    session = start(banner=False)
    model = training.Referrer(network(), N.SuperpointMaskBranch(16))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = referring.random_batches(*small, 4, 6, session.generator())
    options = {"steps": 40, "lr": 3e-3, "session": session}
    history = training.train(model, batches, N.grounding_loss, **options)
    totals = [sum(row.values()) for row in history]
    assert np.mean(totals[-5:]) < 0.85 * np.mean(totals[:5])
    moved = {
        k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])
    }
    assert moved == {"rec", "mask"}


def test_an_interrupted_training_goes_on_from_its_state(small, tmp_path):
    session, path = start(banner=False), tmp_path / "state.pt"

    def stop(step, terms):
        if step == 149:
            raise KeyboardInterrupt

    def run(on_step=None):
        model = training.Referrer(network(), N.SuperpointMaskBranch(16))
        batches = itertools.repeat(batch_of(small))
        options = {"steps": 200, "lr": 1e-3, "session": session, "rest": 0, "resume": path}
        return training.train(model, batches, N.grounding_loss, on_step=on_step, **options)

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    again = run()
    assert len(again) == 100
    path.unlink()
    whole = run()
    assert again[-1]["focal"] == pytest.approx(whole[-1]["focal"], rel=1e-3)


def test_labels_of_seeds_are_those_of_their_objects(small):
    scenes, _ = small
    things = [rooms.primitive_room(seed, 256) for seed in range(1000, 1004)]
    found = seed_labels.seed_labels(things, scenes)
    for r, s in itertools.product(range(4), range(24)):
        owner = int(things[r].instance[scenes.seeds[r, s]])
        assert bool(found.inside[r, s]) == (owner >= 0)
        word = things[r].labels[owner] if owner >= 0 else None
        label = int(found.label[r, s])
        assert (expressions.VOCABULARY[label] if label >= 0 else None) == word
        if owner >= 0:
            assert torch.equal(found.boxes[r, s], things[r].boxes[owner])
    options = {"steps": 60, "rooms_each": 4, "session": start(banner=False)}
    losses = seed_labels.warm_up(network(), things, scenes, **options)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_dense_branch_gives_logits_for_every_point(small):
    batch = batch_of(small)
    model = training.Referrer(network(), N.HighResolutionBranch(16, 16))
    out, masks = model(batch)
    assert masks.shape == (len(batch.boxes), 8, 256)
    terms = N.grounding_loss(out, model.view(batch), masks)
    sum(terms.values()).backward()
    assert all((p.grad != 0).any() for p in model.mask.parameters() if p.dim() > 1)


def test_propagation_gives_the_seeds_of_the_second_level():
    levels = [*LEVELS, Level(12, 1.2, 4, (16, 24)), Level(6, 2.0, 4, (24, 24))]
    xyz = draw(2, 100, 3)
    near = neighbourhood(xyz, levels, ups=2)
    model = grounding.PointNet(3, levels, 20, ups=2, norm="batch")
    (first, feats), (seeds, out) = model(xyz, draw(2, 100, 3), near)
    assert feats.shape == (2, 48, 16)
    assert out.shape == (2, 24, 20)
    assert torch.equal(seeds, first[:, :24])


def test_intervals_come_from_rooms():
    room = torch.arange(20).repeat_interleave(5)
    same = torch.full((100,), 0.25)
    assert training.over_rooms(same, room) == pytest.approx((0.25, 0.25, 0.25))
    one = (room == 0).float()
    mean, low, high = training.over_rooms(one, room)
    assert mean == pytest.approx(0.05)
    assert low == 0
    assert high > 0.1


def test_unknown_words_are_refused():
    with pytest.raises(KeyError, match="vocabulary"):
        expressions.encode(("the", "spaceship"))
    with pytest.raises(ValueError, match="15 tokens"):
        expressions.encode(("the",) * 15)


@pytest.fixture
def scanned(tmp_path, monkeypatch):
    """Two scenes of different size in place of ScanNet's, with a ScanRefer file."""
    made = {f"scene000{i}_00": rooms.primitive_room(1000 + i, 256 - 40 * i) for i in range(2)}
    records = []
    for name, room in made.items():
        records += expressions.scanrefer_records(name, expressions.refer(room))
    records.append(records[0] | {"object_name": "spaceship"})
    scannet.write_scanrefer(tmp_path / "ScanRefer_filtered_val.json", records)

    def read(root, name, num_points):
        room = made[name]
        ids = torch.arange(len(room.xyz)) // 8
        return scannet.Scene(
            name, room.xyz, room.rgb, ids, room.instance, room.boxes, room.labels,
            list(range(len(room.labels))), torch.arange(len(room.xyz)),
        )  # fmt: skip

    monkeypatch.setattr(referring_rooms, "read_scene", read)
    return tmp_path


def test_scanned_rooms_go_through_the_same_path(scanned):
    with pytest.warns(UserWarning, match="1 of 1[0-9] sentences left out"):
        things, said = referring_rooms.referring_rooms("scanrefer", range(2), 256, 8, scanned)
    group = N.SuperpointMaskBranch(16).group
    scenes = referring.collect_scenes(things, lambda room: room.superpoint, group, LEVELS)
    assert scenes.real.sum(1).tolist() == [256, 216]
    assert scenes.counts.sum(1).tolist() == [256, 216]
    length = max(len(e.tokens) for room in said for e in room)
    sentences = referring.collect_sentences(
        things, said, scenes, N.token_positive_map, alignment.keypoint_targets, length, 256,
        lambda words: torch.randn(len(words), 768).half(),
    )  # fmt: skip
    torch.manual_seed(0)
    text = grounding.ReadyFeatures(768, 16)
    rec = grounding.Grounder(LEVELS, 16, 2, 32, (1, 1), 8, 256, text, 8)
    model, session = training.Referrer(rec, N.SuperpointMaskBranch(16)), start(banner=False)
    found = training.evaluate(model, scenes, sentences, N.answer, session=session)
    assert len(found.box) == len(sentences) == sum(len(room) for room in said)
    batches = referring.random_batches(scenes, sentences, 2, 3, session.generator())
    options = {"steps": 2, "lr": 1e-3, "session": session}
    training.train(model, batches, N.grounding_loss, **options)
    boxed = referring_study.box_ceiling(scenes, sentences)
    row = int((sentences.room == 1).nonzero()[0])
    room, target = things[1], int(sentences.target[row])
    inside = N.box_to_mask(room.xyz, room.boxes[target])
    assert float(boxed[row]) == pytest.approx(N.mask_iou(inside, room.instance == target))


def test_missing_data_and_models_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="needs data_root"):
        referring_rooms.referring_rooms("scanrefer", range(2), 256, 8)
    with pytest.raises(FileNotFoundError, match=r"ScanRefer_filtered_val\.json"):
        referring_rooms.referring_rooms("scanrefer", range(2), 256, 8, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"roberta-base.config.json"):
        referring_rooms.language_features(tmp_path / "roberta-base")
    with pytest.raises(ValueError, match="network is 'huge'"):
        N.build("rec", "huge", 0.2, 2, 0)


def test_networks_of_each_kind_have_the_branch_they_should():
    kinds = {"rec": type(None), "control": type(None), "joint": N.SuperpointMaskBranch,
             "frozen": N.SuperpointMaskBranch, "hr": N.HighResolutionBranch}  # fmt: skip
    for kind, branch_ in kinds.items():
        assert type(N.build(kind, "small", 0.2, 2, 0).mask) is branch_


def test_ceilings_agree_with_point_masks(small):
    scenes, sentences = small
    majority = referring_study.majority_ceiling(scenes, sentences)
    pooled = referring_study.seed_ceiling(scenes, sentences)
    for i in range(len(sentences)):
        r = int(sentences.room[i])
        ids, truth = scenes.superpoint[r], scenes.instance[r] == sentences.target[i]
        hits, count = N.superpoint_hits(ids, truth[None])
        mask = (2 * hits[0] > count)[ids]
        assert float(majority[i]) == pytest.approx(N.mask_iou(mask, truth))
        owns = truth[scenes.seeds[r]]
        taken = owns[scenes.pooled[r]].any(1)[ids]
        assert float(pooled[i]) == pytest.approx(N.mask_iou(taken, truth))


def test_helpers_are_the_ones_the_notebook_shows():
    assert N.focal is alignment.focal
    assert N.take is point_sets.take
