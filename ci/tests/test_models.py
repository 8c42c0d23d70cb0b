"""Backbones and the committed checkpoints."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.models import DATA, checkpoint, parameters_hash, resnet, vit


def build():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def train(model):
    with torch.no_grad():
        model.weight.fill_(2.0)
    return {"recipe": "all weights are 2", "accuracy": 50.0}


@pytest.fixture
def folder(tmp_path):
    checkpoint("toy_net", build, train, retrain=True, folder=tmp_path)
    return tmp_path


@pytest.mark.parametrize(("depth", "width", "count"), [(20, 16, 269722), (8, 16, 75290)])
def test_resnet_has_the_known_number_of_parameters(depth, width, count):
    # He et al. 2016, table 6: 0.27 M for depth 20
    assert sum(p.numel() for p in resnet(depth, width).parameters()) == count


def test_resnet_shapes_and_parts():
    model = resnet(8, 4, num_classes=7).eval()
    x = torch.rand(2, 3, 32, 32)
    features = model.layers(model.stem(x))
    assert features.shape == (2, 16, 8, 8)
    assert model(x).shape == (2, 7)
    assert model(x).equal(model.head(features.mean((2, 3))))


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_resnet_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}"):
        resnet(depth)


def test_vit_is_timms():
    model = vit(img_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=5, patch_drop_rate=0.5)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 5)
    assert model.patch_embed.num_patches == 16
    assert model.patch_drop.prob == 0.5


def test_a_stored_checkpoint_comes_back_in_eval_mode(folder):
    model = checkpoint("toy_net", build, folder=folder)
    assert not model.training
    assert (model.weight == 2).all()
    assert model.bias.equal(build().bias)


def test_the_manifest_vouches_for_the_file(folder):
    entry = json.loads((folder / "manifest.json").read_text())["toy_net"]
    content = (folder / entry["file"]).read_bytes()
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["bytes"] == len(content)
    assert entry["recipe"] == "all weights are 2"
    assert {p.name for p in folder.rglob("*")} == {
        "manifest.json",
        "checkpoints",
        "toy_net.safetensors",
    }


def test_a_missing_checkpoint_names_the_command(folder):
    with pytest.raises(FileNotFoundError, match="reproduce other -p retrain=true"):
        checkpoint("other_net", build, folder=folder)
    (folder / "checkpoints" / "toy_net.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"toy_net.safetensors is missing.*reproduce toy"):
        checkpoint("toy_net", build, folder=folder)


def test_a_corrupted_checkpoint_is_refused(folder):
    path = folder / "checkpoints" / "toy_net.safetensors"
    content = bytearray(path.read_bytes())
    known = hashlib.sha256(content).hexdigest()
    content[-1] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(ValueError, match="corrupted") as error:
        checkpoint("toy_net", build, folder=folder)
    for part in (str(path), known, found, "git checkout"):
        assert part in str(error.value)


def test_a_training_that_fails_leaves_everything_as_it_was(folder):
    before = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def fail(model):
        train(model)
        raise FloatingPointError("the loss is nan at step 3")

    with pytest.raises(FloatingPointError):
        checkpoint("toy_net", build, fail, retrain=True, folder=folder)
    assert {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with pytest.raises(ValueError, match="has no train function"):
        checkpoint("toy_net", build, retrain=True, folder=folder)


def test_a_second_checkpoint_keeps_the_first(folder):
    checkpoint("toy_other", build, lambda model: {}, retrain=True, folder=folder)
    assert (checkpoint("toy_net", build, folder=folder).weight == 2).all()
    assert checkpoint("toy_other", build, folder=folder).weight.equal(build().weight)


def test_parameters_hash_sees_one_bit():
    model = vit(img_size=16, embed_dim=16, depth=1, num_heads=1)
    before = parameters_hash(model)
    assert before == parameters_hash(model)
    with torch.no_grad():
        weight = model.head.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert parameters_hash(model) != before


def test_committed_files_match_the_manifest():
    manifest = json.loads((DATA / "manifest.json").read_text())
    files = [*(DATA / "checkpoints").iterdir(), *DATA.glob("*.npz")]
    assert {path.relative_to(DATA).as_posix() for path in files} == {
        entry["file"] for entry in manifest.values()
    }
    for name, entry in manifest.items():
        content = (DATA / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
        assert len(content) == entry["bytes"] < 5_000_000
        assert entry["recipe"]


def test_committed_checkpoints_are_finite_and_say_what_they_saw():
    entries = json.loads((DATA / "manifest.json").read_text()).values()
    for entry in (e for e in entries if e["file"].endswith(".safetensors")):
        assert all(tensor.isfinite().all() for tensor in load_file(DATA / entry["file"]).values())
        assert entry["training_data"]
