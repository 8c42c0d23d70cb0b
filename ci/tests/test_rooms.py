"""Furnished rooms, referring expressions, and what point clouds need."""

import dataclasses
import html
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from helpers import ROOT, clouds
from helpers.data import expressions, furniture, layouts, rooms, scans
from helpers.data.colours import COLOURS, PALETTE, colour_word, repaint
from helpers.data.expressions import Query, holds, meaning, refer, sentence

MAKERS = {"furnished": rooms.furnished_room, "primitive": rooms.primitive_room}


@pytest.fixture(scope="module", params=MAKERS)
def maker(request):
    return MAKERS[request.param]


@pytest.fixture(scope="module")
def some(maker):
    return [maker(seed) for seed in range(6)]


def tensors(room):
    values = (getattr(room, field.name) for field in dataclasses.fields(room))
    return [value for value in values if isinstance(value, torch.Tensor)]


def test_the_embedded_models_are_furniture_with_authors_and_free_licences():
    models = furniture.models()
    assert 60 <= len(models) <= 200
    entry = json.loads((ROOT / "data" / "manifest.json").read_text())["furniture"]
    assert entry["bytes"] == furniture.PATH.stat().st_size < 2_500_000
    assert {model.licence for model in models} == {"CC0", "CC BY 3.0", "CC BY 3.0 US"}
    readme = (ROOT / "data" / "README.md").read_text()
    for model in models:
        assert f"{model.name} ({model.author})" in readme
        assert model.xyz.shape == model.normals.shape == model.rgb.shape
        assert abs(model.xyz[:, 2].min()) < 0.05
        assert 0.1 < model.size.max() < 3
        assert np.allclose(np.linalg.norm(model.normals, axis=1), 1, atol=1e-5)
    assert set(furniture.by_class()) <= set(expressions.CLASSES)
    assert min(len(members) for members in furniture.by_class().values()) >= 2


def test_a_missing_or_changed_model_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(furniture, "PATH", tmp_path / "furniture.npz")
    with pytest.raises(FileNotFoundError, match="git checkout"):
        furniture.models.__wrapped__()
    (tmp_path / "furniture.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="corrupted"):
        furniture.models.__wrapped__()


def test_the_model_file_has_fixed_time_stamps():
    arrays = {"xyz": np.arange(6).reshape(1, 2, 3)}
    assert furniture.encode(arrays) == furniture.encode(dict(arrays))


def test_a_seed_gives_one_room(maker):
    one, two, other = maker(3), maker(3), maker(4)
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))
    assert one.labels == two.labels
    assert one.colours == two.colours
    assert not torch.equal(one.xyz, other.xyz)


def test_shapes_types_and_ranges(some):
    for room in some:
        count = len(room.labels)
        assert room.xyz.shape == room.rgb.shape == room.normals.shape == (2048, 3)
        assert all(t.dtype in (torch.float32, torch.int64) for t in tensors(room))
        assert torch.isfinite(torch.cat([room.xyz, room.rgb, room.normals], 1)).all()
        assert room.rgb.min() >= 0
        assert room.rgb.max() <= 1
        assert torch.allclose(room.normals.norm(dim=1), torch.ones(2048), atol=1e-5)
        assert set(room.instance.tolist()) == set(range(-1, count))
        assert torch.bincount(room.instance + 1)[1:].min() >= 8
        assert len(room.colours) == len(room.models) == len(room.on) == len(room.yaws) == count
        assert set(room.colours) <= {None, *COLOURS}
        assert room.xyz[:, 2].min() > -0.05
        assert (room.xyz[:, :2].abs().amax(0) <= torch.tensor(room.extent[:2]) / 2 + 0.2).all()


def test_boxes_are_tight(some):
    for room in some:
        for target in range(len(room.labels)):
            points = room.xyz[room.mask(target)]
            low, high = points.amin(0), points.amax(0)
            assert torch.allclose(room.boxes[target, :3], (low + high) / 2)
            assert torch.allclose(room.boxes[target, 3:], high - low)


def test_what_lies_on_or_under_a_piece_is_above_or_below_it(some):
    found = 0
    for room in some:
        for relation in ("on", "under"):
            for item, host in enumerate(getattr(room, relation).tolist()):
                if host < 0:
                    continue
                found += 1
                gap = (room.boxes[item, :2] - room.boxes[host, :2]).abs()
                assert (gap <= room.boxes[host, 3:5] / 2 + room.boxes[item, 3:5] / 2).all()
                floor = room.boxes[item, 2] - room.boxes[item, 5] / 2
                assert (floor > 0.05) == (relation == "on")
    assert found >= 5


def test_rooms_differ_in_what_they_hold():
    many = [rooms.furnished_room(seed) for seed in range(12)]
    labels = [label for room in many for label in room.labels]
    assert len(set(labels)) >= 15
    repeated = [len(room.labels) > len(set(room.labels)) for room in many]
    assert sum(repeated) >= 8
    assert 6 <= np.mean([len(room.labels) for room in many]) <= 14


def test_number_of_points_and_theme():
    small = rooms.furnished_room(0, num_points=512, theme="office")
    assert len(small.xyz) == 512
    assert "desk" in small.labels
    assert len(rooms.furnished_room(0, num_points=6000, theme="office").xyz) == 6000
    with pytest.raises(ValueError, match="dining"):
        rooms.furnished_room(0, theme="garage")
    with pytest.raises(ValueError, match="num_points"):
        rooms.primitive_room(0, num_points=10)


def test_structure_share_is_what_was_asked():
    for share in (0.3, 0.6):
        room = rooms.furnished_room(1, structure=share, scan=False)
        assert abs((room.instance < 0).float().mean() - share) < 0.05


def test_a_scan_shows_surfaces_that_look_at_a_camera():
    room = rooms.furnished_room(2, normal_noise=0.0, noise=0.0)
    rays = room.cameras[:, None] - room.xyz
    assert ((rays * room.normals).sum(-1) > 0).any(0).all()
    whole = rooms.furnished_room(2, normal_noise=0.0, noise=0.0, scan=False)
    below = (whole.normals[:, 2] < -0.9) & (whole.xyz[:, 2] < 0.6)
    assert below.sum() > 5  # undersides, which no camera above them sees
    assert ((room.normals[:, 2] < -0.9) & (room.xyz[:, 2] < 0.6)).sum() < below.sum() / 5


def test_a_wall_hides_what_is_behind_it():
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 60), np.linspace(0, 2, 60)), -1).reshape(-1, 2)
    front = np.column_stack([grid[:, 0], np.full(3600, 1.0), grid[:, 1]])
    behind = np.column_stack([grid[:, 0] * 0.5, np.full(3600, 2.0), 0.5 + grid[:, 1] * 0.5])
    xyz = np.concatenate([front, behind]).astype(np.float32)
    normals = np.tile(np.float32([0, -1, 0]), (7200, 1))
    seen = scans.visible(xyz, normals, [[0, -1, 1]])
    assert seen[:3600].mean() > 0.99
    assert seen[3600:].mean() < 0.01
    assert scans.visible(xyz, -normals, [[0, -1, 1]]).sum() == 0
    assert scans.visible(xyz, normals, [[0, 1.5, 1]])[3600:].mean() > 0.99


def test_weighted_choice_follows_the_weights():
    rng = np.random.default_rng(0)
    weights = np.repeat([0.0, 1.0, 3.0], 2000)
    chosen = scans.weighted_choice(rng, weights, 800)
    assert len(set(chosen.tolist())) == 800
    counts = np.bincount(chosen // 2000, minlength=3)
    assert counts[0] == 0
    assert 2.3 < counts[2] / counts[1] < 3.7
    assert len(scans.weighted_choice(rng, weights, 9000)) == 4000


def test_rectangles_overlap_as_shapely_would_say():
    square = (0, 0, 1, 1, 0.0)
    others = [(1.9, 0, 1, 1, 0.0), (2.1, 0, 1, 1, 0.0), (2.3, 0, 1, 1, np.pi / 4),
              (1.9, 1.9, 1, 1, np.pi / 4), (0, 0, 0.1, 0.1, 1.0)]  # fmt: skip
    assert layouts.overlaps(square, others).tolist() == [True, False, True, False, True]
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 300, 5)) * [1.5, 1.5, 0, 0, 3] + [0, 0, 0.6, 0.3, 0]
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 2), -1).reshape(-1, 2)

    def corners(r, at):
        c, s = np.cos(r[:, 4, None]), np.sin(r[:, 4, None])
        u, v = at[:, 0] * r[:, 2, None], at[:, 1] * r[:, 3, None]
        return np.stack([r[:, :1] + u * c - v * s, r[:, 1:2] + u * s + v * c], -1)

    points = corners(a, grid) - b[:, None, :2]
    c, s = np.cos(b[:, 4, None]), np.sin(b[:, 4, None])
    inside = np.abs(points[..., 0] * c + points[..., 1] * s) < b[:, 2, None]
    inside &= np.abs(points[..., 1] * c - points[..., 0] * s) < b[:, 3, None]
    brute, ours = inside.any(1), layouts.overlaps(a, b)
    assert (ours | ~brute).all()
    assert (ours == brute).mean() > 0.97  # the grid misses slivers


def test_colour_words_name_their_own_palette():
    for word, colour in PALETTE.items():
        assert colour_word(np.tile(np.float32(colour), (10, 1))) == word
        for model in furniture.models()[::20]:
            assert colour_word(repaint(model.rgb, word)) in (word, None)
    assert colour_word(np.float32([[0.75, 0.13, 0.12], [0.16, 0.3, 0.72]])) is None


def test_every_expression_is_unambiguous(some):
    kinds, unique = set(), []
    for room in some:
        found = refer(room)
        assert len(found) >= 4
        for one in found:
            assert holds(room, one)
            assert room.labels[one.target] == one.name
            assert one.unique == (room.labels.count(one.name) == 1)
            kinds.add(one.query.relation or one.query.size or bool(one.query.colour))
            unique.append(one.unique)
        assert [one.tokens for one in refer(room)] == [one.tokens for one in found]
    assert len(kinds) >= 7
    assert 0.1 < np.mean(unique) < 0.9


def test_a_second_object_makes_an_expression_ambiguous(some):
    broken = 0
    for room in some:
        for one in refer(room):
            other = (one.target + 1) % len(room.labels)
            labels, colours = list(room.labels), list(room.colours)
            labels[other], colours[other] = one.name, room.colours[one.target]
            twin = dataclasses.replace(room, labels=labels, colours=colours)
            if one.query == Query(one.name, one.query.colour):
                assert not holds(twin, one)
                broken += 1
    assert broken


def hand_made():
    """A chair near a table, one far from it, a box on the table, one below it; 4 m apart."""
    boxes = torch.tensor(
        [[0, 0, 0.4, 1.2, 1.2, 0.8], [0.9, 0, 0.4, 0.5, 0.5, 0.8], [4, 0, 0.5, 0.7, 0.7, 1.0],
         [0, 0, 0.9, 0.2, 0.2, 0.2], [0, 0.2, 0.1, 0.2, 0.2, 0.2]]
    )  # fmt: skip
    room = rooms.primitive_room(0)
    return dataclasses.replace(
        room,
        boxes=boxes,
        sizes=boxes[:, 3:].clone(),
        labels=["table", "chair", "chair", "box", "box"],
        colours=["brown", "red", None, "red", "blue"],
        on=torch.tensor([-1, -1, -1, 0, -1]),
        under=torch.tensor([-1, -1, -1, -1, 0]),
    )


def test_meaning_on_a_room_made_by_hand():
    room, table = hand_made(), (("table", None),)
    assert meaning(room, Query("chair", relation="near", anchors=table)) == ({1}, {1})
    assert meaning(room, Query("chair", relation="farthest", anchors=table)) == ({2}, {2})
    assert meaning(room, Query("chair", size="largest")) == ({2}, {2})
    assert meaning(room, Query("chair", size="smallest")) == ({1}, {1})
    assert meaning(room, Query("box", relation="on", anchors=table)) == ({3}, {3})
    assert meaning(room, Query("box", relation="under", anchors=table)) == ({4}, {4})
    assert meaning(room, Query("box", "red")) == ({3}, {3})
    assert meaning(room, Query("chair", "red")) == ({1}, {1, 2})  # the other's colour has no word
    assert meaning(room, Query("chair")) == ({1, 2}, {1, 2})
    assert meaning(room, Query("lamp")) == (set(), set())
    # an anchor that is not unique says nothing
    assert meaning(room, Query("table", relation="near", anchors=(("box", None),)))[0] == set()


def test_tokens_and_spans():
    query = Query("chair", "red", relation="between", anchors=(("table", None), ("bed", "blue")))
    tokens, spans = sentence(query)
    assert tokens == tuple(
        furniture.words("the red chair between the table and the blue bed <none> <eos>")
    )
    told = {role: [" ".join(tokens[a:b]) for a, b in found] for role, found in spans.items()}
    assert told == {
        "main": ["chair"],
        "attribute": ["red"],
        "pronoun": [],
        "relation": ["between"],
        "auxiliary": ["table", "bed"],
    }
    tokens, spans = sentence(Query("box", "red"), pronoun=True)
    assert " ".join(tokens) == "the box it is red <none> <eos>"
    assert (spans["pronoun"], spans["attribute"]) == ([(2, 3)], [(4, 5)])
    tokens, spans = sentence(Query("box", relation="farthest", anchors=(("bed", None),)))
    assert [tokens[a:b] for a, b in spans["relation"]] == [("farthest", "from")]


def test_the_vocabulary_encodes_every_sentence(some):
    assert len(set(expressions.VOCABULARY)) == len(expressions.VOCABULARY)
    for room in some:
        for one in refer(room):
            ids = expressions.encode(one.tokens).tolist()
            back = [expressions.VOCABULARY[i] for i in ids if i >= 0]
            assert tuple(back) == one.tokens
            assert one.tokens[-2:] == ("<none>", "<eos>")
    with pytest.raises(KeyError, match="armchair"):
        expressions.encode(["the", "zebra"])
    with pytest.raises(ValueError, match="at most 3"):
        expressions.encode(["the", "red", "chair", "<eos>"], length=3)


def test_neighbours_and_edges_agree_with_all_pairs():
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = torch.cdist(points, points).fill_diagonal_(torch.inf)
    nearest = distance.topk(6, largest=False).indices
    assert torch.equal(clouds.neighbours(points, 6), nearest)
    pairs = {tuple(sorted((i, int(j)))) for i in range(200) for j in nearest[i]}
    edges = clouds.knn_edges(points, 6)
    assert edges.dtype == torch.int64
    assert len(edges) == len(pairs)
    assert set(map(tuple, edges.tolist())) == pairs
    assert clouds.neighbours(torch.zeros(9, 3), 4).shape == (9, 4)
    assert not (clouds.neighbours(torch.zeros(9, 3), 4) == torch.arange(9)[:, None]).any()
    assert clouds.knn_edges(points[:1]).shape == (0, 2)


def test_normals_of_a_ball():
    rng = np.random.default_rng(0)
    ball = rng.standard_normal((800, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    outwards = clouds.estimate_normals(ball, 12).numpy()
    assert (outwards * ball).sum(1).min() > 0.9
    inwards = clouds.estimate_normals(ball, 12, viewpoint=(0, 0, 0)).numpy()
    assert (inwards * ball).sum(1).max() < -0.9


def test_a_turnable_figure_needs_no_network():
    shown = clouds.turnable(torch.rand(5, 3), torch.rand(5, 3), [0, 0, 0, 1, 1, 1], "five points")
    page = html.unescape(shown.data)
    assert "five points" in page
    assert "plotly.js v" in page  # the script itself, not its address
    assert not re.search(r"<script[^>]*\ssrc=", page)


def test_the_outline_of_a_box_passes_all_edges_once_or_twice():
    path = clouds._outline(np.array([1.0, 2, 3, 2, 4, 6]))
    assert (path.min(0) == [0, 0, 0]).all()
    assert (path.max(0) == [2, 4, 6]).all()
    steps = path[1:] != path[:-1]
    assert (steps.sum(1) == 1).all()  # every piece is an edge
    ends = {frozenset(map(tuple, pair)) for pair in pairwise(path)}
    assert len(ends) == 12


def test_bad_clouds_are_refused():
    points = torch.rand(10, 3)
    points[2, 1] = torch.nan
    with pytest.raises(ValueError, match="1 rows with NaN"):
        clouds.knn_edges(points)
    with pytest.raises(ValueError, match=r"must be \(N, 3\)"):
        clouds.estimate_normals(torch.rand(10, 2))
    with pytest.raises(ValueError, match="k is 0"):
        clouds.neighbours(torch.rand(4, 3), 0)
    with pytest.raises(ValueError, match="needs 3 points"):
        clouds.estimate_normals(torch.rand(2, 3))
