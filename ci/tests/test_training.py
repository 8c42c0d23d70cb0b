"""Training loop, batches and processes on problems with known answers."""

import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from helpers import training
from helpers.session import start


@pytest.fixture(name="session")
def _session():
    return start(seed=0, device="cpu", banner=False)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def data(count=12):
    return draw(count, 4), torch.arange(count) % 3


def test_fit_is_the_plain_loop(session):
    x, y = data()
    ours, plain = linear(), linear()
    batches = list(zip(x.split(3), y.split(3), strict=True))
    steps = []
    optimizer = torch.optim.SGD(ours.parameters(), 0.1, momentum=0.9)
    losses = training.fit(
        ours, batches, cross_entropy, optimizer, steps=7, session=session, on_step=steps.append
    )
    optimizer, expected = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9), []
    for step in range(7):  # the four batches come round again
        loss = cross_entropy(plain(batches[step % 4][0]), batches[step % 4][1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected)
    assert torch.equal(ours.weight, plain.weight)
    assert steps == list(range(7))


def test_fit_clips_the_gradient(session):
    model, (x, y) = linear(), data()
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    batches = [(100 * x, y)]
    training.fit(model, batches, cross_entropy, optimizer, steps=1, session=session, clip=0.01)
    moved = torch.cat([(model.weight - before).flatten(), (model.bias - linear().bias)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_schedulers_of_torch_and_timm_advance_every_step(session):
    x, y = data()
    for build in (
        lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
        lambda opt: CosineLRScheduler(opt, t_initial=4, t_in_epochs=False),
    ):
        model, rates = linear(), []
        optimizer = torch.optim.SGD(model.parameters(), 0.4)

        def note(step, rates=rates, optimizer=optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

        options = {"steps": 4, "session": session, "scheduler": build(optimizer), "on_step": note}
        training.fit(model, [(x, y)], cross_entropy, optimizer, **options)
        if len(set(rates)) != 4 or rates != sorted(rates, reverse=True):
            pytest.fail(f"the rate did not fall at each step: {rates}")
    assert rates[:2] == pytest.approx([0.2 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2)])


def test_the_moving_average_follows(session):
    model, (x, y) = linear(), data()
    ema = ModelEmaV3(model, decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    weights = [model.weight.detach().clone()]
    options = {"steps": 3, "session": session, "ema": ema}
    options["on_step"] = lambda step: weights.append(model.weight.detach().clone())
    training.fit(model, [(x, y)], cross_entropy, optimizer, **options)
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(ema.module.weight.data, expected)


@pytest.mark.parametrize("bad", [0, 3, 60])
def test_a_loss_that_is_not_finite_stops_and_names_the_step(session, bad):
    model, (x, y) = linear(), data()
    batches = [(x * (math.nan if step == bad else 1), y) for step in range(70)]
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with pytest.raises(FloatingPointError, match=f"the loss is nan at step {bad}$"):
        training.fit(model, batches, cross_entropy, optimizer, steps=70, session=session)


def test_a_used_up_iterator_is_an_error(session):
    model, batch = linear(), data()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="batches ran out"):
        training.fit(model, iter([batch]), cross_entropy, optimizer, steps=2, session=session)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights():
    session = start(device="cpu", precision="bf16", banner=False)
    model, (x, y), seen = linear(), data(), []
    model.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    training.fit(model, [(x, y)], cross_entropy, optimizer, steps=2, session=session)
    assert set(seen) == {torch.bfloat16}
    assert model.weight.dtype == torch.float32
    assert training.predict(model, x, session=session).dtype == torch.float32


def test_predict_and_evaluate_agree_with_a_hand_count(session):
    model, (x, y) = nn.Sequential(nn.BatchNorm1d(4), linear()), data(17)
    model.train()
    logits = training.predict(model, x, session=session, batch_size=5)
    assert model.training
    assert model[0].num_batches_tracked == 0
    model.eval()
    torch.testing.assert_close(logits, model(x).detach())
    expected = 100 * sum(int(row.argmax()) == int(label) for row, label in zip(logits, y)) / 17  # noqa: B905
    assert training.accuracy(logits, y) == pytest.approx(expected)
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    assert training.evaluate(model, loader, session=session) == pytest.approx(expected)
    pairs = zip(x.split(4), y.split(4), strict=True)
    assert training.evaluate(model, pairs, session=session) == pytest.approx(expected)


def test_nothing_to_score_is_an_error(session):
    with pytest.raises(ValueError, match="got 2 and 3"):
        training.accuracy(draw(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="no batch"):
        training.evaluate(linear(), [], session=session)


def test_minibatches_pass_over_everything_once_in_a_new_order():
    x = torch.arange(10)
    options = {"batch_size": 3, "steps": 7}

    def batches(seed):
        generator = torch.Generator().manual_seed(seed)
        pairs = training.minibatches(x, x * 2, generator=generator, **options)
        return [images for images, labels in pairs if torch.equal(labels, images * 2)]

    first = batches(0)
    assert len(first) == 7
    passes = [torch.cat(first[i : i + 3]) for i in (0, 3)]
    assert all(len(set(rows.tolist())) == 9 for rows in passes)
    assert not torch.equal(*passes)
    assert all(torch.equal(a, b) for a, b in zip(first, batches(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, batches(1), strict=True))


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_must_fit_the_data(size):
    x = torch.arange(10)
    with pytest.raises(ValueError, match=r"batch_size must be in 1\.\.10"):
        next(training.minibatches(x, x, batch_size=size, steps=1, generator=torch.Generator()))


def test_crop_flip_shows_windows_of_the_padded_image():
    x = torch.arange(1, 1 + 200 * 2 * 5 * 6).view(200, 2, 5, 6).float()
    out = training.crop_flip(x, torch.Generator().manual_seed(0), padding=2)
    padded = nn.functional.pad(x, (2, 2, 2, 2))
    kinds = set()
    for image, whole in zip(out, padded, strict=True):
        found = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(
                image, torch.flip(whole, [2])[:, top : top + 5, left : left + 6]
                if flip else whole[:, top : top + 5, left : left + 6]
            )
        ]  # fmt: skip
        assert len(found) == 1
        kinds.add(found[0])
    assert len({top for top, _, _ in kinds}) == 5
    assert {flip for _, _, flip in kinds} == {False, True}
    assert training.crop_flip((x % 256).byte(), torch.Generator(), 2).dtype == torch.uint8


RECIPE = {"batch_size": 32, "steps": 3, "weight_decay": 0.0}
CALL = {"recipe": RECIPE, "masks": {}, "method": "bimask", "pattern": "1:16", "seed": 0}
CALL |= {"device": "cpu", "data_root": "", "precision": "fp32"}


def test_two_processes_share_each_batch():
    alone = training.launch("bimask", "run", CALL)
    shared = training.launch("bimask", "run", CALL, processes=2)
    assert shared["sparse"] == alone["sparse"]
    # the first weights and batch are the same; batch norm sees half a batch in each process
    assert shared["losses"] == pytest.approx(alone["losses"], abs=0.15)
    assert shared["losses"] != alone["losses"]
    assert 0 <= shared["accuracy"] <= 100


def test_a_failing_process_is_reported():
    with pytest.raises(RuntimeError, match="method must be one of"):
        training.launch("bimask", "run", CALL | {"method": "bimusk"}, processes=2)
    with pytest.raises(ValueError, match="processes must be at least 1"):
        training.launch("bimask", "run", CALL, processes=0)
