"""ScanNet scenes, ScanRefer sentences and ReferIt3D tables, on tiny files in those formats."""

import json

import numpy as np
import pytest
import torch

from helpers.data import rooms, scannet
from helpers.data.expressions import refer, scanrefer_records
from helpers.data.furniture import words

SCENE = "scene0000_00"
HEADER = """ply
format binary_little_endian 1.0
comment made by a test
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property uchar alpha
element face 1
property list uchar int vertex_indices
end_header
"""
VERTEX = np.dtype([(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in "rgba"])


def vertices(count):
    rng = np.random.default_rng(0)
    table = np.zeros(count, VERTEX)
    for axis in "xyz":
        table[axis] = rng.uniform(-1, 1, count)
    for channel in "rgb":
        table[channel] = rng.integers(0, 256, count)
    return table


@pytest.fixture
def scene(tmp_path):
    """100 vertices in five segments with huge, gappy ids; turned by 90 degrees and lifted."""
    folder = tmp_path / "scans" / SCENE
    folder.mkdir(parents=True)
    table = vertices(100)
    content = HEADER.format(count=100).encode() + table.tobytes() + b"\x03" + bytes(12)
    (folder / f"{SCENE}_vh_clean_2.ply").write_bytes(content)
    segments = np.repeat([7, 150_000, 31, 900, 12], 20).tolist()
    (folder / f"{SCENE}_vh_clean_2.0.010000.segs.json").write_text(
        json.dumps({"sceneId": SCENE, "segIndices": segments})
    )
    groups = [
        {"id": 0, "objectId": 4, "label": "chair", "segments": [7, 31]},
        {"id": 1, "objectId": 9, "label": "office chair", "segments": [900]},
        {"id": 2, "objectId": 11, "label": "ghost", "segments": [5555]},
    ]
    (folder / f"{SCENE}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    (folder / f"{SCENE}.txt").write_text(
        "appVersion = 1\naxisAlignment = 0 -1 0 1 1 0 0 2 0 0 1 0.5 0 0 0 1 \nnumColorFrames = 3\n"
    )
    return tmp_path


def test_a_scene_is_read_aligned_and_relabelled(scene):
    got = scannet.read_scene(scene, SCENE)
    table = vertices(100)
    expected = np.stack([1 - table["y"], 2 + table["x"], 0.5 + table["z"]], 1)
    assert np.allclose(got.xyz, expected, atol=1e-6)
    assert np.allclose(got.rgb[:, 0], table["r"] / 255)
    assert got.superpoint.tolist() == np.repeat([0, 4, 2, 3, 1], 20).tolist()
    assert got.instance.tolist() == np.repeat([0, -1, 0, 1, -1], 20).tolist()
    assert got.labels == ["chair", "office chair"]  # the ghost owns no vertex
    assert got.object_ids == [4, 9]
    mine = got.xyz[got.instance == 1]
    assert torch.allclose(got.boxes[1, :3] - got.boxes[1, 3:] / 2, mine.amin(0), atol=1e-6)
    assert torch.allclose(got.boxes[1, :3] + got.boxes[1, 3:] / 2, mine.amax(0), atol=1e-6)


def test_fewer_vertices_than_asked_gives_all_of_them_once(scene):
    assert scannet.read_scene(scene, SCENE, num_points=50_000).vertex.tolist() == list(range(100))


def test_a_draw_is_without_replacement_and_has_no_phantom_segments(scene):
    got = scannet.read_scene(scene, SCENE, num_points=6)
    assert len(set(got.vertex.tolist())) == 6
    assert torch.equal(got.superpoint.unique(), torch.arange(len(got.superpoint.unique())))
    assert set(got.instance.tolist()) - {-1} == set(range(len(got.labels)))
    assert torch.isfinite(got.boxes).all()
    again = scannet.read_scene(scene, SCENE, num_points=6)
    assert torch.equal(got.vertex, again.vertex)
    other = scannet.read_scene(scene, SCENE, num_points=6, seed=5)
    assert not torch.equal(got.vertex, other.vertex)


@pytest.mark.parametrize(
    "name",
    [
        "_vh_clean_2.ply",
        "_vh_clean_2.0.010000.segs.json",
        ".aggregation.json",
        ".txt",
    ],
)
def test_a_missing_file_is_named_with_its_parameter(scene, name):
    path = scene / "scans" / SCENE / f"{SCENE}{name}"
    path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        scannet.read_scene(scene, SCENE)
    assert str(path) in str(caught.value)
    assert "data_root" in str(caught.value)


def test_the_released_name_of_the_aggregation_is_found_too(scene):
    folder = scene / "scans" / SCENE
    (folder / f"{SCENE}.aggregation.json").rename(folder / f"{SCENE}_vh_clean.aggregation.json")
    assert scannet.read_scene(scene, SCENE).labels == ["chair", "office chair"]


def test_files_that_do_not_fit_are_refused(scene):
    folder = scene / "scans" / SCENE
    (folder / f"{SCENE}_vh_clean_2.0.010000.segs.json").write_text('{"segIndices": [1, 2]}')
    with pytest.raises(ValueError, match="2 segments for 100 vertices"):
        scannet.read_scene(scene, SCENE)


def test_other_ply_files_are_refused(tmp_path):
    path = tmp_path / "a.ply"
    path.write_bytes(b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n")
    with pytest.raises(ValueError, match="binary_little_endian"):
        scannet.read_ply(path)
    path.write_bytes(HEADER.format(count=10).encode() + b"\x00" * 40)
    with pytest.raises(ValueError, match="cut off"):
        scannet.read_ply(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a PLY"):
        scannet.read_ply(path)


def test_our_ply_reader_agrees_with_open3d(tmp_path):
    from helpers.clouds import open3d

    o3d, path = open3d(), tmp_path / "cloud.ply"
    rng = np.random.default_rng(0)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(rng.random((50, 3))))
    cloud.colors = o3d.utility.Vector3dVector(rng.random((50, 3)))
    o3d.io.write_point_cloud(str(path), cloud)
    theirs = o3d.io.read_point_cloud(str(path))
    ours = scannet.read_ply(path)
    assert np.array_equal(np.stack([ours[a] for a in "xyz"], 1), np.asarray(theirs.points))
    rgb = np.stack([ours[name] for name in ("red", "green", "blue")], 1) / 255
    assert np.allclose(rgb, np.asarray(theirs.colors))


def test_alignment(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("sceneType = Office\n")
    assert np.array_equal(scannet.read_alignment(path), np.eye(4))
    path.write_text("axisAlignment = 1 2 3\n")
    with pytest.raises(ValueError, match="3 numbers"):
        scannet.read_alignment(path)


def test_scanrefer_files_round_trip(tmp_path):
    room = rooms.primitive_room(0)
    records = scanrefer_records("room0000", refer(room))
    path = tmp_path / "ScanRefer_filtered_val.json"
    scannet.write_scanrefer(path, records)
    back = scannet.read_scanrefer(path)
    assert [r | {"object_id": str(r["object_id"])} for r in back] == records
    assert list(back[0]) == [
        "scene_id", "object_id", "object_name", "ann_id", "token", "description",
    ]  # fmt: skip
    assert "<eos>" not in back[0]["token"]
    path.write_text('[{"scene_id": "a"}]')
    with pytest.raises(ValueError, match="record 0 lacks"):
        scannet.read_scanrefer(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.json.*data_root"):
        scannet.read_scanrefer(tmp_path / "nothing.json")


def test_our_sentences_are_parsed_as_they_were_made():
    for seed in range(4):
        room = rooms.primitive_room(seed)
        for one in refer(room):
            tokens, spans = scannet.parse_sentence(
                list(one.tokens[:-2]), one.name, set(room.labels)
            )
            assert tokens == one.tokens
            for role in ("main", "auxiliary", "pronoun"):
                assert spans[role] == one.spans[role]


def test_a_sentence_of_the_real_kind():
    tokens = words("this is a large brown office chair . it is next to the desks")
    heard, spans = scannet.parse_sentence(tokens, "office_chair", {"chair", "desk"})
    told = {role: [" ".join(heard[a:b]) for a, b in found] for role, found in spans.items()}
    assert told == {
        "main": ["office chair"],
        "attribute": ["large", "brown"],
        "pronoun": ["this", "it"],
        "relation": ["next"],
        "auxiliary": ["desks"],
    }
    assert heard[-2:] == ("<none>", "<eos>")
    assert scannet.parse_sentence(tokens, "sofa") is None


def test_referit3d_tables(tmp_path):
    path = tmp_path / "sr3d.csv"
    path.write_text(
        "scan_id,target_id,instance_type,utterance,tokens\n"
        "scene0000_00,4,chair,\"The chair, near the desk\",\"['the', 'chair', 'near']\"\n"
        "scene0000_00,9,desk,The desk,\n"
    )
    first, second = scannet.read_referit3d(path)
    assert first["token"] == ["the", "chair", "near"]
    assert first["description"] == "The chair, near the desk"
    assert (second["token"], second["object_id"]) == (["the", "desk"], 9)
    path.write_text("scan_id,target_id\na,1\n")
    with pytest.raises(ValueError, match="instance_type"):
        scannet.read_referit3d(path)
