"""Recipes: what each parameter changes, checked on tiny data."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from helpers import experiments, recipes
from helpers.recipes import Recipe
from helpers.session import start


@pytest.fixture(name="session")
def _session():
    return start(seed=0, device="cpu", banner=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dataset": "mnist"}, "dataset must be one of"), ({"augment": "deit"}, "augment must be"),
     ({"optimizer": "adam"}, "optimizer must be"), ({"schedule": "step"}, "schedule must be"),
     ({"warmup": 80}, r"warmup must be in 0\.\.79"), ({"warmup": -1}, "warmup must be")],
)  # fmt: skip
def test_unknown_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_batches_are_normalised_and_follow_the_seed(session):
    recipe = Recipe(steps=3)
    first, again = (list(recipes.batches(recipe, session, "train")) for _ in range(2))
    assert [x.shape for x, _ in first] == [(64, 1, 28, 28)] * 3
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    x, y = recipes.first_images(recipe, session, 100)
    assert len(x) == len(y) == 100
    assert not torch.equal(x[:64], first[0][0])  # an order of its own
    images = torch.cat([x for x, _ in recipes.batches(recipe, session, "test")])
    assert images.shape == (1000, 1, 28, 28)
    assert abs(images.mean()) < 0.05
    assert images.std().item() == pytest.approx(1, abs=0.05)


def test_bytes_and_fractions_normalise_alike():
    pixels = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    left = recipes.normalize(pixels.byte(), "cifar10")
    torch.testing.assert_close(left, recipes.normalize(pixels / 255, "cifar10"))
    red = (pixels[0, 0] / 255 - 0.4914) / 0.247
    torch.testing.assert_close(left[0, 0], red)


@pytest.mark.parametrize(
    ("name", "ends"),
    [("small", ["stem", "head"]), ("resnet", ["stem", "head"]), ("resnet18", ["conv1", "fc"])],
)
def test_networks_name_their_ends(name, ends):
    model, names = recipes.network(Recipe(model=name, depth=8))
    assert names == ends
    assert all(model.get_submodule(end) is not model for end in ends)


def test_schedules_rise_and_fall():
    weight = torch.nn.Linear(2, 2)
    rates = {}
    for schedule, warmup in (("onecycle", 0), ("cosine", 4)):
        recipe = Recipe(steps=20, schedule=schedule, warmup=warmup, lr=0.5)
        optimizer, scheduler = recipes.optimization(recipe, weight)
        rates[schedule] = []
        for step in range(20):
            rates[schedule].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step_update(step + 1) if schedule == "cosine" else scheduler.step()
    for rate in rates.values():
        top = rate.index(max(rate))
        assert 3 <= top <= 4
        assert max(rate) == pytest.approx(0.5)
        assert rate[: top + 1] == sorted(rate[: top + 1])
        assert rate[top:] == sorted(rate[top:], reverse=True)


def test_weight_decay_spares_biases_and_norms():
    optimizer, _ = recipes.optimization(Recipe(weight_decay=0.1), recipes.digit_net("small"))
    decays = {
        tuple(p.shape): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]
    }
    assert all(decay == (0.1 if len(shape) > 1 else 0) for shape, decay in decays.items())


@pytest.mark.parametrize("augment", ["imagenet", "deit"])
def test_image_folders_give_a_loader(session, tmp_path, augment):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                picture = Image.new("RGB", (260, 240), (40 * i, 90, 200))
                picture.save(tmp_path / split / name / f"{i}.jpg")
    session = SimpleNamespace(**vars(session) | {"data_root": tmp_path})
    session.generator = lambda offset=0: torch.Generator().manual_seed(offset)
    recipe = Recipe(dataset="imagenet", model="resnet18", augment=augment, batch_size=4)
    loader = recipes.batches(recipe, session, "train")
    assert isinstance(loader, DataLoader)
    batches = list(loader)
    assert [x.shape for x, _ in batches] == [(4, 3, 224, 224)]  # the incomplete batch is dropped
    y = batches[0][1]
    assert y.shape == ((4, 1000) if augment == "deit" else (4,))  # mixed labels are soft
    if augment == "deit":
        torch.testing.assert_close(y.sum(1), torch.ones(4))
    assert sum(len(y) for _, y in recipes.batches(recipe, session, "test")) == 6


def test_outcomes_and_their_table(capsys):
    results = {"one": [{"loss": 1.0}, {"loss": 3.0}], "two": [{"loss": 5.0}, {"loss": 5.0}]}
    assert experiments.outcome(results, "one", "loss") == [1.0, 3.0]
    missing = experiments.outcome(results, "three", "loss")
    assert len(missing) == 2
    assert all(value != value for value in missing)
    experiments.print_results(results, ["loss"])
    assert capsys.readouterr().out.split() == [
        "loss",
        "one",
        "2.000",
        "±",
        "1.000",
        "two",
        "5.000",
        "±",
        "0.000",
    ]


def test_equal_costs_are_drawn_apart():
    results = {
        name: [{"top1": 1.0, "cost": cost}] for name, cost in (("a", 0.5), ("b", 0.5), ("c", 1))
    }
    figure = experiments.draw_tradeoff(results, "top1", "cost", "cost", "accuracy")
    places = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert places[0] == 0.5
    assert 0.5 < places[1] < 0.52
    assert places[2] == 1


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet"])
def test_a_folder_that_was_not_given_is_asked_for(dataset, monkeypatch):
    monkeypatch.delenv("REPRO_DATA", raising=False)
    session = start(seed=0, device="cpu", banner=False)
    with pytest.raises(FileNotFoundError, match="give its folder as data_root"):
        recipes.batches(Recipe(dataset=dataset, model="resnet"), session, "train")
