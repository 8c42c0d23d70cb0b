"""DDA: prior, levels, slimmable network, inference, training, the camera, readers, bad inputs."""

import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import metrics, patch_scores, patches, restoration
from helpers.data import MoireFolder, moire, moire_pairs, rephotographed, screen_camera
from helpers.notebooks import load
from helpers.session import start

D = load("dda")
EASY = settings(deadline=None, max_examples=25)
WIDTHS = (0.75, 0.5, 0.25)
PUBLIC = (
    "gaussian_highpass colorfulness high_frequency_energy moire_prior assign_levels "
    "slimmable_conv2d DMCNN split_patches merge_patches dda_forward advanced_sobel_loss "
    "synthetic_moire"
)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small(residual=True, seed=0):
    torch.manual_seed(seed)
    return D.DMCNN((8, 8, 8), 2, residual=residual)


@pytest.mark.parametrize("name", PUBLIC.split())
def test_public_names_are_documented(name):
    assert inspect.getdoc(getattr(D, name))


# ---- the prior


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (48, 64)])
def test_highpass_by_the_formula(size):
    h, w = size
    found = D.gaussian_highpass(h, w)
    expected = [
        [1 - math.exp(-((i - h // 2) ** 2 + (j - w // 2) ** 2) / 50) for j in range(w)]
        for i in range(h)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.dtype == torch.float32
    assert found[h // 2, w // 2] == 0
    assert ((found >= 0) & (found <= 1)).all()
    paired = found[1 - h % 2 :, 1 - w % 2 :]  # without the row and column that have no partner
    torch.testing.assert_close(paired, paired.flip(0, 1))
    assert (found[h // 2, w // 2 :].diff() >= 0).all()


def test_highpass_with_no_cutoff_keeps_all_but_the_mean():
    found = D.gaussian_highpass(6, 8, cutoff=0.0)
    assert found.sum() == 47
    assert found[3, 4] == 0


def numpy_prior(patch):
    """The prior of one patch (3, h, w), shifted complex FFT, one patch at a time."""
    r, g, b = patch.double().numpy()
    rg, yb = r - g, (r + g) / 2 - b
    c = np.sqrt(rg.var(ddof=1) + yb.var(ddof=1)) + 0.3 * np.hypot(rg.mean(), yb.mean())
    y = 0.299 * r + 0.587 * g + 0.114 * b
    kept = np.fft.fftshift(np.fft.fft2(y)) * D.gaussian_highpass(*y.shape).double().numpy()
    return c * np.abs(np.fft.ifft2(np.fft.ifftshift(kept))).mean()


@pytest.mark.parametrize("size", [(16, 16), (15, 22), (48, 64)])
def test_prior_agrees_with_the_straightforward_form(size):
    x = rand(4, 3, *size)
    expected = torch.tensor([numpy_prior(patch) for patch in x]).float()
    torch.testing.assert_close(D.moire_prior(x), expected, rtol=1e-4, atol=1e-6)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(D.moire_prior(x[order]), D.moire_prior(x)[order])
    torch.testing.assert_close(torch.cat([D.moire_prior(p) for p in x.split(1)]), D.moire_prior(x))


def test_prior_invariants():
    x = rand(3, 3, 24, 24)
    grey = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert D.colorfulness(grey).max() < 1e-6
    assert D.moire_prior(grey).max() < 1e-6
    assert D.high_frequency_energy(torch.full((1, 3, 24, 24), 0.4)).max() < 1e-6
    for turned in (x.flip(2), x.flip(3), x.transpose(2, 3)):
        torch.testing.assert_close(D.moire_prior(turned), D.moire_prior(x), rtol=1e-4, atol=1e-7)
    brighter = D.high_frequency_energy(0.5 * x + 0.4)
    torch.testing.assert_close(brighter, D.high_frequency_energy(0.5 * x), rtol=1e-4, atol=1e-6)
    for measure in (D.colorfulness, D.high_frequency_energy):
        torch.testing.assert_close(measure(x / 2), measure(x) / 2)
    torch.testing.assert_close(D.moire_prior(x / 2), D.moire_prior(x) / 4)


def test_the_wrapped_prior_is_that_of_8_bit_arrays():
    x = (rand(2, 3, 16, 16) * 255).round() / 255
    for patch, found in zip(x, D.wrapped_prior(x), strict=True):
        r, g, b = (patch * 255).round().byte().numpy()
        rg, yb = (r - g).astype(float), 0.5 * (r + g) - b
        c = np.sqrt(rg.var(ddof=1) + yb.var(ddof=1)) + 0.3 * np.hypot(rg.mean(), yb.mean())
        assert found == pytest.approx(
            c / 255 * D.high_frequency_energy(patch[None]).item(), rel=1e-4
        )


# ---- levels


@EASY
@given(n=st.integers(3, 30), levels=st.integers(1, 3), seed=st.integers(0, 999))
def test_levels_by_rank(n, levels, seed):
    scores = (rand(n, seed=seed) * 8).round()  # with ties
    found = D.assign_levels(scores, levels)
    order = sorted(range(n), key=lambda i: scores[i].item())  # stable: the earlier one is lower
    expected = torch.empty(n, dtype=torch.int64)
    for rank, i in enumerate(order):
        expected[i] = levels - 1 - rank * levels // n
    assert torch.equal(found, expected)
    assert torch.equal(found, D.assign_levels(scores.exp() * 3 - 7, levels))
    if n % levels == 0:
        assert torch.bincount(found, minlength=levels).tolist() == [n // levels] * levels
    assert (found[scores.argsort(stable=True)].diff() <= 0).all()


@EASY
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_counts_are_met(counts, seed):
    if sum(counts) == 0:
        return
    scores = rand(2, sum(counts), seed=seed)
    found = D.assign_levels(scores, len(counts), counts)
    for row in found:
        assert torch.bincount(row, minlength=len(counts)).tolist() == counts
    assert torch.equal(found[1], D.assign_levels(scores[1], len(counts), counts))


# ---- the slimmable network


@pytest.mark.parametrize("width", [1.0, 0.75, 0.6, 0.5, 0.25])
def test_slimmable_convolution_is_that_of_the_slice(width):
    weight, bias = rand(8, 20, 3, 3).requires_grad_(), rand(8).requires_grad_()
    segments = [(16, True), (4, False)]
    x = rand(2, math.floor(width * 16) + 4, 9, 9, seed=1)
    y = D.slimmable_conv2d(x, weight, bias, width, segments=segments, stride=2, padding=1)
    kept = [*range(math.floor(width * 16)), 16, 17, 18, 19]
    out = math.floor(width * 8)
    expected = F.conv2d(x, weight[:out, kept], bias[:out], stride=2, padding=1)
    assert torch.equal(y, expected)
    y.sum().backward()
    outside = torch.ones_like(weight, dtype=torch.bool)
    outside[:out, kept] = False
    assert (weight.grad[outside] == 0).all()
    assert (bias.grad[out:] == 0).all()
    full = D.slimmable_conv2d(x, weight, bias, width, segments=segments, slim_output=False)
    assert full.shape[1] == 8


def test_first_layers_keep_the_image_channels():
    x, weight = rand(1, 3, 5, 5), rand(4, 3, 3, 3)
    assert torch.equal(D.slimmable_conv2d(x, weight, None, 0.25), F.conv2d(x, weight[:1]))


def test_dmcnn_counts_are_exact():
    with torch.device("meta"):
        full, toy = D.DMCNN(), D.DMCNN((16, 24, 24, 24), 3)
        assert metrics.parameters(full) == 1_425_839
        assert metrics.parameters(toy) == 126_044
        x, y = torch.empty(1, 3, 64, 64), torch.empty(1, 3, 48, 48)
        widths = (1, 0.75, 0.6, 0.5, 0.4, 0.25)
        assert [metrics.macs(full, x, w) for w in widths] == [
            688848896, 472457216, 365292416, 311361536, 255139040, 205561856
        ]  # fmt: skip
        assert [metrics.macs(toy, y, w) for w in (1, 0.75, 0.5625, 0.5, 0.25)] == [
            55132416, 39912192, 30543408, 28310400, 20327040
        ]  # fmt: skip
    architecture = {"channels": (16, 24, 24, 24), "body_depth": 3}
    assert D.equal_cost_width(architecture, (48, 48), WIDTHS) == 0.5625
    assert D.macs(architecture, (48, 48), 0.25) == 20327040


def test_dmcnn_has_the_published_names():
    with torch.device("meta"):
        names = set(D.DMCNN().state_dict())
    expected = set()
    for i in range(1, 6):
        layers = [f"s{i}1.{j}" for j in (0, 2)] + [f"s{i}3.{j}" for j in range(0, 10, 2)]
        layers += [f"s{i}2.{2 * j}" for j in range(i)]
        expected |= {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert names == expected


def by_hand(net, x, width):
    """A three-scale DMCNN at a width, layer by layer with F."""

    def cut(layer, inputs, outputs):
        return layer.weight[:outputs, :inputs], layer.bias[:outputs]

    k, total = math.floor(8 * width), 0.0
    for i in (1, 2, 3):
        a, b = getattr(net, f"s{i}1")[0], getattr(net, f"s{i}1")[2]
        x = F.relu(F.conv2d(x, *cut(a, x.shape[1], k), stride=min(i, 2), padding=1))
        x = F.conv2d(x, *cut(b, k, k), padding=1)
        y = F.relu(F.conv2d(x, *cut(getattr(net, f"s{i}3")[0], k, k), padding=1))
        y = F.relu(F.conv2d(y, *cut(getattr(net, f"s{i}3")[2], k, 8), padding=1))
        up = getattr(net, f"s{i}2")
        for j in range(i - 1):
            y = F.relu(F.conv_transpose2d(y, up[2 * j].weight, up[2 * j].bias, 2, 1))
        total = total + F.conv2d(y, up[-1].weight, up[-1].bias, padding=1)
    return total


@pytest.mark.parametrize("width", [1.0, 0.75, 0.25])
def test_dmcnn_layer_by_layer(width):
    x = rand(2, 3, 16, 24)
    branches = by_hand(small(), x, width)
    torch.testing.assert_close(small(True)(x, width), x + branches)
    plain = small(False)(x, width)
    torch.testing.assert_close(plain, branches.sigmoid())
    assert ((plain > 0) & (plain < 1)).all()
    assert plain.shape == x.shape


def slice_only(net, width):
    """Replace what the slice of a width does not use by NaN."""
    for name, conv in net.named_modules():
        if isinstance(conv, D.SlimConv2d):
            used = torch.zeros_like(conv.weight, dtype=torch.bool)
            inputs = 3 if name == "s11.0" else math.floor(width * conv.in_channels)
            outputs = math.floor(width * conv.out_channels) if conv.slim_output else 8
            used[:outputs, :inputs] = True
            yield conv.weight, used
            yield conv.bias, used.flatten(1).any(1)


def test_a_narrow_slice_ignores_and_spares_the_rest():
    net, x = small(), rand(2, 3, 16, 16)
    expected = net(x, 0.25)
    with torch.no_grad():
        for values, used in slice_only(net, 0.25):
            values[~used] = torch.nan
    assert torch.equal(net(x, 0.25), expected)
    net = small()
    before = {id(v): v.detach().clone() for v, _ in slice_only(net, 0.25)}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(x, 0.25).square().mean().backward()
    optimizer.step()
    for values, used in slice_only(net, 0.25):
        assert torch.equal(values[~used], before[id(values)][~used])
    net = small()
    net(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_macs_grow_with_the_width_and_parameters_do_not():
    with torch.device("meta"):
        net, x = D.DMCNN(), torch.empty(1, 3, 32, 32)
        counts = [metrics.macs(net, x, w / 16) for w in range(1, 17)]
    assert counts == sorted(counts)


@pytest.mark.parametrize("width", [1.0, 0.5, 0.25])
def test_export_holds_the_slice_alone(width):
    net, x = small(), rand(1, 3, 16, 16)
    static = D.export(net, width)
    torch.testing.assert_close(static(x), net(x, width))
    used = sum(int(u.sum()) for _, u in slice_only(net, width))
    rest = sum(p.numel() for n, p in net.named_parameters() if "2." in n[2:4] and n[2] == "2")
    assert metrics.parameters(static) == used + rest
    if width < 1:
        assert metrics.parameters(static) < metrics.parameters(net)


# ---- inference


def test_split_and_merge():
    image = rand(3, 32, 48)
    parts = D.split_patches(image, (16, 24))
    assert torch.equal(parts[1], image[:, :16, 24:])
    assert torch.equal(parts[2], image[:, 16:, :24])
    assert torch.equal(D.merge_patches(parts, (32, 48)), image)
    assert torch.equal(patches.patch_at(image, 3, (16, 24)), parts[3])


def test_inference_equals_the_loop():
    net, image = small(), rand(3, 32, 48)
    restored, levels = D.dda_forward(net, image, (16, 16), WIDTHS)
    parts = D.split_patches(image, (16, 16))
    assert torch.equal(levels, D.assign_levels(D.moire_prior(parts)))
    with torch.no_grad():
        loop = [net(p, WIDTHS[k]) for p, k in zip(parts.split(1), levels.tolist(), strict=True)]
    torch.testing.assert_close(
        restored, D.merge_patches(torch.cat(loop), (32, 48)), atol=1e-5, rtol=0
    )
    official = D.patch_by_patch(net, image, (16, 16), WIDTHS)
    torch.testing.assert_close(restored, official, atol=1e-5, rtol=0)
    exported = [D.export(net, w) for w in WIDTHS]
    torch.testing.assert_close(D.dda_forward(exported, image, (16, 16), WIDTHS)[0], restored)
    full = D.merge_patches(net(parts), (32, 48))
    torch.testing.assert_close(D.dda_forward(net, image, (16, 16), (1, 1, 1))[0], full)
    one = D.dda_forward(net, image, (16, 16), WIDTHS, counts=(0, 6, 0))[0]
    torch.testing.assert_close(one, D.merge_patches(net(parts, 0.5), (32, 48)))
    mirrored = D.dda_forward(net, D.merge_patches(parts.flip(0), (32, 48)), (16, 16), WIDTHS)[0]
    again = D.split_patches(mirrored, (16, 16)).flip(0)
    torch.testing.assert_close(D.merge_patches(again, (32, 48)), restored, atol=1e-5, rtol=0)


# ---- training and scores


RECIPE = {
    "dataset": "gratings", "image_size": [32, 48], "train_patch": [16, 16], "crop": [16, 16],
    "views": 1, "steps": 4, "batch_size": 4, "lr": 0.01, "schedule": "onecycle", "flips": True,
    "sobel": 0.25, "workers": 0,
}  # fmt: skip
WHERE = {"device": "cpu", "data_root": "", "precision": "fp32"}


def test_batches_are_patches_and_do_not_depend_on_threads():
    images = rand(2, 3, 32, 48)
    pairs = list(zip(images, images + 1, strict=True))
    rows = torch.tensor([[0, 0], [1, 5], [1, 2], [0, 3]])

    def first(workers, **options):
        return next(
            restoration.patch_batches(
                pairs, rows, patch_size=(16, 16), batch_size=4, workers=workers,
                generator=torch.Generator().manual_seed(0), **options,
            )
        )  # fmt: skip

    x, y = first(0, crop=(16, 16), flips=False)
    assert torch.equal(y, x + 1)
    own = [D.split_patches(images[i], (16, 16))[k] for i, k in rows.tolist()]
    assert all(any(torch.equal(a, b) for b in own) for a in x)
    for options in ({"crop": (8, 12)}, {"crop": (8, 8)}):
        one, many = first(0, **options), first(3, **options)
        assert one[0].shape[2:] == options["crop"]
        assert torch.equal(one[0], many[0])
        assert torch.equal(one[1], one[0] + 1)


def test_levels_take_turns_at_their_widths():
    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.seen = torch.nn.Parameter(torch.ones(1)), []

        def forward(self, x, width):
            self.seen.append((width, round(x.mean().item(), 3)))
            return x * self.gain

    recipe = restoration.Recipe(**RECIPE | {"steps": 6, "batch_size": 2})
    session = start(seed=0, device="cpu", banner=False)
    restoration._pairs.cache_clear()
    pairs, spy = restoration.training_pairs(recipe, session), Spy()
    rows = D.level_rows(pairs, (16, 16), 3)
    assert sum(map(len, rows)) == len(pairs) * 6
    scores = torch.stack([D.moire_prior(D.split_patches(m, (16, 16))) for m, _ in pairs])
    assert scores[rows[0].T[0], rows[0].T[1]].min() >= 0
    assert torch.equal((D.assign_levels(scores) == 2).nonzero(), rows[2])
    losses = restoration.train_in_turns(spy, WIDTHS, rows, recipe, session)
    assert [w for w, _ in spy.seen] == [0.75, 0.5, 0.25] * 2
    assert len(losses) == 6


def test_training_starts_at_the_identity_with_a_lasting_signal():
    x, net = rand(2, 3, 48, 48), D.DMCNN((16, 24, 24, 24), 3, residual=True)
    net.start_training()
    assert torch.equal(net(x), x)
    features = net._run(net.s43, net._run(net.s41, rand(1, 24, 12, 12), 1.0), 1.0)
    assert 0.1 < features.std() < 10


def test_training_is_repeatable_and_learns():
    run = [D.train_network({"channels": (8, 8, 8), "body_depth": 2, "residual": True},
                           RECIPE | {"steps": 30, "sobel": 0.0}, list(WIDTHS), 3, **WHERE)
           for _ in range(2)]  # fmt: skip
    assert run[0]["losses"] == run[1]["losses"]
    assert sum(run[0]["losses"][-9:]) < sum(run[0]["losses"][:9])
    net = D.DMCNN((8, 8, 8), 2, True)
    restoration.load_weights(net, {f"module.{k}": v for k, v in run[0]["weights"].items()})


def test_shared_counts():
    assert patches.shared_counts(8, 24, 3) == [8, 8, 8]
    assert patches.shared_counts(1, 24, 3) == [1, 12, 11]
    assert patches.shared_counts(24, 24, 3) == [24, 0, 0]


def test_sobel_loss_by_hand():
    a, b = rand(2, 3, 7, 9), rand(2, 3, 7, 9, seed=1)
    kx = torch.tensor([[2.0, 1, 0], [1, 0, -1], [0, -1, -2]])
    ky = torch.tensor([[0.0, 1, 2], [-1, 0, 1], [-2, -1, 0]])

    def edges(image):
        s, out = image.sum(0), torch.zeros(5, 7)
        for i in range(5):
            for j in range(7):
                part = s[i : i + 3, j : j + 3]
                out[i, j] = (part * kx).sum().abs() + (part * ky).sum().abs()
        return out

    expected = sum((edges(x) - edges(y)).abs().sum() for x, y in zip(a, b, strict=True)) / 2
    torch.testing.assert_close(D.advanced_sobel_loss(a, b), expected)


def test_scores_of_patches():
    net, pairs = small(), rephotographed("test", views=1, size=(32, 48), source="gratings")
    errors = patch_scores.patch_errors(net, pairs, (16, 16), WIDTHS, "cpu")
    assert errors.shape == (3, 6, 3)
    image, clear = pairs[1]
    restored, levels = D.dda_forward(net, image, (16, 16), WIDTHS)
    expected = -10 * math.log10((restored.clamp(0, 1) - clear).square().mean())
    assert patch_scores.image_psnr(errors[1:2], levels[None]).item() == pytest.approx(
        expected, abs=1e-3
    )
    table = patch_scores.patch_table(pairs, (16, 16), {"prior": lambda x, y: D.moire_prior(x)})
    found = D.assignments(
        table | {"colour only": table["prior"], "frequency only": table["prior"]}, 3,
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(found["reversed"][0], 2 - found["DDA"][0])
    assert len(found["random"]) == 5
    quality = patch_scores.image_quality(clear, clear)
    assert quality["SSIM"] == pytest.approx(1)
    assert quality["CIEDE2000"] == 0


# ---- the camera and the readers


def test_camera_is_deterministic_and_keeps_the_picture():
    clear = moire.region(moire.photo("china"), (96, 144))
    taken = [screen_camera(clear, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(taken[0], taken[1])
    assert not torch.equal(taken[0], taken[2])
    for image in taken:
        assert image.shape == clear.shape
        assert ((image >= 0) & (image <= 1)).all()


def plain_screen(light):
    """A screen without stripes: each pixel glows evenly."""
    return light.repeat_interleave(moire.TEXELS, 1).repeat_interleave(moire.TEXELS, 2)


def test_fringes_come_from_the_screens_stripes(monkeypatch):
    grey = torch.full((3, 96, 144), 0.7)
    striped = screen_camera(grey, torch.Generator().manual_seed(3))
    monkeypatch.setattr(moire, "_screen", plain_screen)
    plain = screen_camera(grey, torch.Generator().manual_seed(3))
    assert D.moire_prior(striped[None]) > 20 * D.moire_prior(plain[None])
    assert (plain - 0.7).abs().mean() < 0.02


def test_photographs_are_registered(monkeypatch):
    monkeypatch.setattr(moire, "_screen", plain_screen)
    clear = moire.region(moire.photo("china"), (96, 144))
    generator = torch.Generator().manual_seed(0)
    image = torch.stack([screen_camera(clear, generator) for _ in range(4)]).mean(0)
    inner = image[:, 8:-8, 8:-8]
    errors = {
        (i, j): (inner - clear.roll((i, j), (1, 2))[:, 8:-8, 8:-8]).square().mean().item()
        for i in (-1, 0, 1) for j in (-1, 0, 1)
    }  # fmt: skip
    assert min(errors, key=errors.get) == (0, 0)
    assert errors[0, 0] < 0.5 * sorted(errors.values())[1]


def test_screen_keeps_the_light_and_demosaicing_keeps_the_flat():
    light = rand(3, 6, 8)
    assert moire._screen(light).mean((1, 2)).allclose(light.mean((1, 2)))
    flat = torch.tensor([0.2, 0.5, 0.8])[:, None, None].expand(3, 8, 8)
    torch.testing.assert_close(
        moire.demosaic(moire.bayer(flat))[:, 2:-2, 2:-2], flat[:, 2:-2, 2:-2]
    )


def test_gratings():
    clear = rand(3, 24, 36)
    made, mask = D.synthetic_moire(clear, torch.Generator().manual_seed(0))
    again, _ = D.synthetic_moire(clear, torch.Generator().manual_seed(0))
    assert torch.equal(made, again)
    assert mask.shape == (24, 36)
    untouched, mask = D.synthetic_moire(clear, torch.Generator().manual_seed(0), amplitude=0.0)
    torch.testing.assert_close(untouched, (clear * (1 - 0.3 * mask)).clamp(0, 1))
    assert not set(moire.TRAIN) & set(moire.TEST)


def write(folder, names, size=(20, 24)):
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", size[::-1], (200, 10, 10)).save(folder / name)


@pytest.mark.parametrize("layout", ["fhdmi", "lcdmoire"])
def test_readers_of_both_layouts(tmp_path, layout):
    first, second = ("source", "target") if layout == "fhdmi" else ("moire", "clear")
    names = [f"{i:05d}" for i in range(3)]
    for split in ("train", "test" if layout == "fhdmi" else "valid"):
        before = ("src_", "tar_") if layout == "fhdmi" else ("", "")
        suffix = ".png" if layout == "fhdmi" else ".jpg"
        for folder, prefix in zip((first, second), before, strict=True):
            write(tmp_path / layout / split / folder, [prefix + n + suffix for n in names])
    pairs = moire_pairs(layout, "test", root=tmp_path, size=(16, 16))
    assert len(pairs) == 3
    assert pairs.names == names
    assert pairs[2][0].shape == pairs[2][1].shape == (3, 16, 16)
    assert pairs[0][0].is_floating_point()
    assert MoireFolder(tmp_path / layout, "train")[0][0].shape == (3, 20, 24)


def test_readers_name_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"source/src_"):
        MoireFolder(tmp_path, "train")
    write(tmp_path / "train/moire", ["a.png", "b.png"])
    write(tmp_path / "train/clear", ["a.png"])
    with pytest.raises(ValueError, match=r"b\.png has no partner.*2 moire and 1 clear"):
        MoireFolder(tmp_path, "train")
    write(tmp_path / "test/moire", ["a.png", "b.png"])
    write(tmp_path / "test/clear", ["a.png", "c.png"])
    with pytest.raises(ValueError, match=r"b\.png has no partner"):
        MoireFolder(tmp_path, "test")
    (tmp_path / "empty/train/moire").mkdir(parents=True)
    (tmp_path / "empty/train/clear").mkdir()
    with pytest.raises(FileNotFoundError, match="has no pictures"):
        MoireFolder(tmp_path / "empty", "train")
    with pytest.raises(FileNotFoundError, match="data_root"):
        moire_pairs("fhdmi", "test")
    with pytest.raises(ValueError, match="allowed: screen, gratings"):
        moire_pairs("screens", "test")


def test_own_pictures_go_through_the_camera(tmp_path):
    write(tmp_path / "train", ["a.png"], (40, 60))
    pairs = moire_pairs("images", "train", root=tmp_path, size=(16, 24), views=2)
    assert len(pairs) == 2
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        moire_pairs("images", "test", root=tmp_path)


# ---- bad input


X = rand(2, 3, 16, 16)
BAD = [
    (lambda: D.moire_prior((X * 255).byte()), TypeError, "divide by 255"),
    (lambda: D.colorfulness(X.int()), TypeError, "floating point"),
    (lambda: small()(X.int()), TypeError, "floating point"),
    (lambda: D.moire_prior(X * 255), ValueError, r"got .* to 25"),
    (lambda: D.moire_prior(X[0]), ValueError, r"\(B, 3, H, W\).*\(3, 16, 16\)"),
    (lambda: D.high_frequency_energy(X[:, :2]), ValueError, r"\(2, 2, 16, 16\)"),
    (lambda: D.split_patches(X[0], (5, 16)), ValueError, r"\(16, 16\).*\(5, 16\).*\(15, 16\)"),
    (lambda: D.merge_patches(X, (16, 16)), ValueError, "2 patches"),
    (lambda: D.dda_forward(small(), X[0], (9, 9), WIDTHS), ValueError, "nearest"),
    (lambda: small()(X[:, :, :14]), ValueError, r"14.*nearest: \(16, 16\)"),
    (lambda: small()(X, 0.0), ValueError, "width is 0"),
    (lambda: small()(X, 1.5), ValueError, "width is 1.5"),
    (lambda: small()(X, 0.1), ValueError, "width 0.1 keeps none of 8"),
    (lambda: D.slimmable_conv2d(X, rand(4, 8, 3, 3), None, 0.5), ValueError, "3 channels.*4"),
    (lambda: D.slimmable_conv2d(X, rand(4, 8, 3, 3), None, 0.5, segments=[(4, True)]),
     ValueError, "sum to the weight's 8"),
    (lambda: D.dda_forward(small(), X[0], (8, 8), (0.5, 0.75, 0.25)), ValueError, "decreasing"),
    (lambda: D.dda_forward(small(), X[0], (8, 8), (0.75, 0.5), (1, 2, 1)), ValueError,
     "3 strictly"),
    (lambda: D.assign_levels(torch.rand(4), 3, (5, -1, 0)), ValueError, "counts"),
    (lambda: D.assign_levels(torch.rand(4), 3, (1, 1, 1)), ValueError, "sum to 4"),
    (lambda: D.assign_levels(torch.rand(2), 3), ValueError, "allowed with 2 patches"),
    (lambda: D.assign_levels(torch.tensor([1.0, torch.nan, 2.0])), ValueError, "NaN"),
    (lambda: D.assign_levels(torch.tensor([1.0, torch.inf, 2.0])), ValueError, "NaN or infinity"),
    (lambda: D.synthetic_moire(X[0], torch.Generator(), -1.0), ValueError, "amplitude"),
    (lambda: screen_camera(X[0] * 255, torch.Generator()), ValueError, r"\[0, 1\]"),
    (lambda: screen_camera(X, torch.Generator()), ValueError, r"\(3, h, w\)"),
    (lambda: screen_camera(X[0].int(), torch.Generator()), TypeError, "floating point"),
    (lambda: screen_camera(X[0], torch.Generator(), pitch=0.0), ValueError, "pitch"),
    (lambda: rephotographed("test", views=0), ValueError, "views"),
    (lambda: D.gaussian_highpass(4, 4, -1.0), ValueError, "cutoff"),
    (lambda: restoration.load_weights(small(), {"s11.9.weight": X}), ValueError,
     r"lacks \[.*'s11.0.bias'.*unknown \['s11.9.weight'\]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
