"""Generators, discriminators, adversarial training, Frechet distances, image pairs and changes."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from helpers import adversarial, fid, gans, image_changes, metrics
from helpers.data import image_pairs, paired_images
from helpers.perceptual import perceptual_network


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- networks


@pytest.mark.parametrize(
    ("width", "separable", "weights", "exact", "output"),
    [
        (64, False, 11_378_179, 49_551_507_456, 56_799_264_768),
        (64, True, 1_987_075, 11_066_671_104, 18_314_428_416),
        (16, True, 137_347, 954_728_448, 1_407_713_280),
        (4, True, 11_875, 125_435_904, 153_747_456),
    ],
)
def test_generators_cost_what_is_published(width, separable, weights, exact, output):
    model = gans.ResnetGenerator(width=width, separable=separable)
    assert metrics.parameters(model) == weights
    assert metrics.generator_macs(model, 256, 256) == exact
    assert metrics.generator_macs(model, 256, 256, "output") == output
    assert metrics.generator_macs(model, 128, 128) * 4 == exact


def test_macs_follow_from_the_shapes():
    c, blocks, h = 5, 4, 16
    model = gans.ResnetGenerator(width=c, blocks=blocks)
    outside = 2 * 49 * 3 * c * h * h + 9 * (2 * c * c * h * h / 4 + 8 * c * c * h * h / 16)
    ups = 9 * (8 * c * c * h * h / 16 + 2 * c * c * h * h / 4)  # at their input resolution
    inside = blocks * 2 * (9 * 4 * c + 16 * c * c) * h * h / 16
    assert metrics.generator_macs(model, h, h) == outside + ups + inside
    assert metrics.generator_macs(model, h, h, "output") == outside + 4 * ups + inside
    with pytest.raises(ValueError, match="exact or output"):
        metrics.generator_macs(model, h, h, "input")


def test_generator_taps_and_range():
    model = gans.init_normal(gans.ResnetGenerator(width=3, blocks=7), rng(), std=0.05)
    x, seen = draw(2, 3, 24, 32), []
    for i in (1, 3, 6):
        model.blocks[i].register_forward_hook(lambda m, a, out: seen.append(out))
    y, maps = model(x, return_maps=True)
    assert y.shape == x.shape
    assert y.abs().max() < 1
    assert [tuple(m.shape) for m in maps] == [(2, 12, 6, 8)] * 4
    torch.testing.assert_close(maps[0], model.stem(x))
    for tap, after in zip(maps[1:], seen, strict=True):  # blocks 7 // 3 = 2, 4 and 7
        assert torch.equal(tap, after)
    assert torch.equal(model.eval()(x), y)


def test_generator_block_by_hand():
    model = gans.init_normal(gans.ResidualBlock(4, True), rng(), std=0.5)
    x, weights = draw(2, 4, 6, 5), list(model.parameters())

    def normed(z):
        mean, variance = z.mean((2, 3), keepdim=True), z.var((2, 3), False, keepdim=True)
        return (z - mean) / (variance + 1e-5).sqrt()

    z = x
    for i in (0, 4):
        z = F.conv2d(F.pad(z, (1, 1, 1, 1), mode="reflect"), weights[i], weights[i + 1], groups=4)
        z = normed(F.conv2d(normed(z), weights[i + 2], weights[i + 3]))
        z = F.relu(z) if i == 0 else z
    torch.testing.assert_close(model(x), x + z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(30, 32), (32, 34), (4, 4), (8, 4)])
def test_generator_refuses_sizes(size):
    with pytest.raises(ValueError, match=f"multiple of 4.*{size[0]} x {size[1]}"):
        gans.ResnetGenerator(width=1, blocks=3)(torch.zeros(1, 3, *size))


def test_networks_refuse_impossible_shapes():
    for bad in ({"blocks": 2}, {"width": 0}):
        with pytest.raises(ValueError, match="at least"):
            gans.ResnetGenerator(**bad)
    for bad in ({"layers": 0}, {"width": 0}):
        with pytest.raises(ValueError, match="at least"):
            gans.PatchDiscriminator(**bad)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_discriminator_shapes_and_smallest_input(layers):
    model = gans.PatchDiscriminator(3, 2, layers)
    smallest = 3 * 2**layers
    features = model.features(torch.randn(1, 3, smallest, smallest))
    assert features.shape == (1, 2 * min(2**layers, 8), 2, 2)
    assert (
        model(torch.randn(2, 3, 64, 96) if layers < 5 else torch.randn(2, 3, 96, 96)).shape[1] == 1
    )
    with pytest.raises(ValueError, match=f"layers={layers} needs inputs of at least {smallest} px"):
        model.features(torch.zeros(1, 3, smallest - 1, smallest))


def test_discriminator_by_hand():
    model = gans.init_normal(gans.PatchDiscriminator(2, 3, 2), rng(), std=0.3)
    (w0, b0, w1, b1, w2, b2, w3, b3), x = model.parameters(), draw(2, 2, 16, 16)
    z = F.leaky_relu(F.conv2d(x, w0, b0, stride=2, padding=1), 0.2)
    z = F.leaky_relu(F.instance_norm(F.conv2d(z, w1, b1, stride=2, padding=1)), 0.2)
    z = F.leaky_relu(F.instance_norm(F.conv2d(z, w2, b2, padding=1)), 0.2)
    torch.testing.assert_close(model.features(x), z)
    torch.testing.assert_close(model(x), F.conv2d(z, w3, b3, padding=1))


def test_features_are_normalised_and_forgive_a_scale():
    model = gans.init_normal(gans.PatchDiscriminator(3, 8, 2), rng(), std=0.2)
    x = draw(2, 3, 32, 32)
    z = model.body[:-1](x)
    assert z.mean((2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(z.var((2, 3), correction=0), torch.ones(2, 32), rtol=1e-3, atol=0)
    full = model.features(x)
    for a in (0.5, 2.0):
        assert (model.features(a * x) - full).abs().mean() / full.abs().mean() < 1e-3


def test_biases_before_instance_norm_change_nothing():
    model = gans.init_normal(gans.ResnetGenerator(width=3, blocks=3), rng(), std=0.2)
    x = draw(1, 3, 16, 16)
    y, layers = model(x), [*model.stem, *model.head]
    for layer, after in pairwise(layers):
        if isinstance(after, nn.InstanceNorm2d):
            layer.bias.data += 3
    assert (model(x) - y).abs().max() < 1e-5
    assert model.head[-2].bias is not None


def test_init_normal_draws_from_its_generator():
    a, b = (gans.init_normal(gans.PatchDiscriminator(3, 32, 2), rng(4)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert a.body[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert all((p == 0).all() for n, p in a.named_parameters() if n.endswith("bias"))


def test_frozen_restores_flags_even_after_an_error():
    model = gans.PatchDiscriminator(3, 2, 1)
    model.head.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError), gans.frozen(model):  # noqa: PT012
        assert not any(p.requires_grad for p in model.parameters())
        raise RuntimeError
    assert [p.requires_grad for p in model.parameters()] == flags


# ---- adversarial losses and training


def test_gan_losses():
    logits, one = draw(3, 1, 4, 4), torch.ones(2, 1, 3, 3)
    lsgan = adversarial.gan_loss(logits, True)
    torch.testing.assert_close(lsgan, F.mse_loss(logits, torch.ones_like(logits)))
    for real in (True, False):
        target = torch.full_like(logits, float(real))
        vanilla = adversarial.gan_loss(logits, real, "vanilla")
        expected = F.binary_cross_entropy(logits.sigmoid(), target)
        torch.testing.assert_close(vanilla, expected)
        assert adversarial.gan_loss(float(real) * one, real) == 0
        sign = 1 if real else -1
        assert adversarial.gan_loss(1.5 * sign * one, real, "hinge") == 0
        expected = (1 - sign * logits).clamp(min=0).mean()
        torch.testing.assert_close(adversarial.gan_loss(logits, real, "hinge"), expected)
        for mode in ("lsgan", "vanilla"):
            pair = [adversarial.gan_loss(logits, real, mode, d) for d in (True, False)]
            assert torch.equal(*pair)
    hinge = adversarial.gan_loss(logits, True, "hinge", for_discriminator=False)
    torch.testing.assert_close(hinge, -logits.mean())
    with pytest.raises(ValueError, match="lsgan, vanilla, hinge"):
        adversarial.gan_loss(logits, True, "wgan")
    with pytest.raises(ValueError, match="lsgan, vanilla, hinge"):
        adversarial.gan_loss(logits, False, "hinge", for_discriminator=False)


def test_linear_decay():
    factors = [adversarial.linear_decay(e, 100, 100) for e in range(200)]
    assert factors[:100] == [1.0] * 100
    assert factors[100] == pytest.approx(100 / 101)
    assert factors[199] == pytest.approx(1 / 101)
    assert all(a > b for a, b in pairwise(factors[99:]))


def test_pool_returns_new_images_until_it_is_full_then_swaps_half():
    pool, images = adversarial.ImagePool(4, rng()), torch.arange(400.0).view(-1, 1, 1, 1)
    assert torch.equal(pool.query(images[:4]), images[:4])
    seen = torch.cat([pool.query(part) for part in images[4:].split(4)]).flatten()
    old = (seen < images[4:].flatten()).sum().item()
    assert 0.4 < old / 396 < 0.6
    assert len(pool.images) == 4
    assert seen.unique().numel() == 396  # a swapped image leaves the pool


@pytest.mark.parametrize("conditional", [False, True])
def test_paired_step_is_one_of_each_network(conditional):
    g = gans.init_normal(gans.ResnetGenerator(width=2, blocks=3), rng(), std=0.2)
    d = gans.init_normal(gans.PatchDiscriminator(6 if conditional else 3, 2, 1), rng(1), std=0.2)
    gan = adversarial.PairedGan(g, d, l1_weight=7.0, conditional=conditional, lr=1e-2)
    a, b = (draw(2, 3, 16, 16, seed=i).clamp(-1, 1) for i in (1, 2))
    with torch.no_grad():
        fake = g(a)
        judge = lambda y: d(torch.cat((a, y), 1) if conditional else y)  # noqa: E731
        loss_d = ((judge(b) - 1).square().mean() + judge(fake).square().mean()) / 2
    first = gan.step(a, b)
    torch.testing.assert_close(first["discriminator"], loss_d)
    torch.testing.assert_close(first["error"], (fake - b).abs().mean())
    with torch.no_grad():  # the generator's loss is judged by the discriminator after its step
        torch.testing.assert_close(first["adversarial"], (judge(fake) - 1).square().mean())
        assert not torch.equal(g(a), fake)
    gan.scale_lr(0.5)
    assert {group["lr"] for o in gan.optimizers for group in o.param_groups} == {5e-3}


def test_cycle_losses_by_hand():
    make = lambda s: gans.init_normal(gans.ResnetGenerator(width=2, blocks=3), rng(s), std=0.2)  # noqa: E731
    g, back = make(0), make(1)
    d_b, d_a = (gans.init_normal(gans.PatchDiscriminator(3, 2, 1), rng(s)) for s in (2, 3))
    pools = tuple(adversarial.ImagePool(50, rng(s)) for s in (4, 5))
    gan = adversarial.CycleGan((g, back), (d_b, d_a), pools=pools, lr=0.0)
    a, b = (draw(2, 3, 16, 16, seed=i).clamp(-1, 1) for i in (1, 2))
    found = gan.step(a, b)
    with torch.no_grad():
        fakes, cycle = (
            (g(a), back(b)),
            (back(g(a)) - a).abs().mean() + (g(back(b)) - b).abs().mean(),
        )
        adv = (d_b(fakes[0]) - 1).square().mean() + (d_a(fakes[1]) - 1).square().mean()
        loss_d = sum(
            ((d(real) - 1).square().mean() + d(fake).square().mean()) / 2
            for d, real, fake in ((d_b, b, fakes[0]), (d_a, a, fakes[1]))
        )
        same = (g(b) - b).abs().mean() + (back(a) - a).abs().mean()
    torch.testing.assert_close(found["error"], cycle)
    torch.testing.assert_close(found["adversarial"], adv)
    torch.testing.assert_close(found["discriminator"], loss_d)
    total = adv + 10 * cycle + 5 * same
    g.zero_grad(), back.zero_grad()
    y_b, y_a = g(a), back(b)
    loss = (d_b(y_b) - 1).square().mean() + (d_a(y_a) - 1).square().mean()
    loss = loss + 10 * ((back(y_b) - a).abs().mean() + (g(y_a) - b).abs().mean())
    loss = loss + 5 * ((g(b) - b).abs().mean() + (back(a) - a).abs().mean())
    torch.testing.assert_close(loss.detach(), total)
    expected = torch.autograd.grad(loss, [*g.parameters()])
    gan.step(a, b)  # leaves its gradients
    for p, e in zip(g.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, e, rtol=1e-3, atol=1e-6)


# ---- Frechet distance


def test_frechet_distance_against_the_matrix_square_root():
    a, b = (draw(60, 6, seed=i).double() @ draw(6, 6, seed=9 + i).double() for i in (1, 2))
    mean, covs = (a.mean(0) - b.mean(0)).numpy(), [np.cov(x.numpy().T) for x in (a, b)]
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    expected = mean @ mean + np.trace(covs[0] + covs[1] - 2 * root)
    assert fid.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert fid.frechet_distance(a, b) == pytest.approx(fid.frechet_distance(b, a), rel=1e-8)
    assert abs(fid.frechet_distance(a, a)) < 1e-6
    v = torch.arange(6.0)
    assert fid.frechet_distance(a, a + v) == pytest.approx(float(v @ v), rel=1e-6)


def test_frechet_distance_of_one_number_and_bad_input():
    a, b = draw(40, 1).numpy(), 3 * draw(40, 1, seed=1).numpy()
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert fid.frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    for bad in (draw(1, 4), draw(9, 5), draw(4)):
        with pytest.raises(ValueError, match="n >= 2"):
            fid.frechet_distance(draw(9, 4), bad)
    with pytest.warns(UserWarning, match="singular"):
        fid.frechet_distance(draw(4, 4), draw(9, 4))


def test_feature_networks():
    network = fid.feature_network("efficientnet_lite0")
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, network.num_features)
    assert not network.train().training
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth.*torch-fidelity"):
        fid.feature_network("inception", "nothing.pth")
    with pytest.raises(ValueError, match="efficientnet_lite0, inception"):
        fid.feature_network("vgg")


def test_perceptual_networks(tmp_path, monkeypatch):
    network, x = perceptual_network("efficientnet_lite0"), draw(1, 3, 64, 64).requires_grad_()
    levels = network(x)
    assert [level.shape[1] for level in levels] == [32, 16, 24, 40]
    levels[3].sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())
    with pytest.raises(FileNotFoundError, match="vgg16-397923af"):
        perceptual_network("vgg16", tmp_path / "vgg16-397923af.pth")
    with pytest.raises(ValueError, match="efficientnet_lite0, vgg16"):
        perceptual_network("alexnet")


def test_vgg_levels_are_those_of_torchvision(tmp_path, monkeypatch):
    from torchvision.models import vgg16

    reference, path = vgg16(weights=None, init_weights=False).eval(), tmp_path / "vgg.pth"
    path.touch()
    monkeypatch.setattr(torch, "load", lambda *a, **k: reference.state_dict())
    network, x = perceptual_network("vgg16", path), draw(1, 3, 32, 32)
    levels, z = network(x), (x + 1) / 2
    names = {3: 64, 8: 128, 15: 256, 22: 512}  # relu1_2, relu2_2, relu3_3, relu4_3
    with torch.no_grad():
        for i, layer in enumerate(reference.features[:23]):
            z = layer(z)
            if i in names:
                level = levels.pop(0)
                assert level.shape[1] == names[i]
                torch.testing.assert_close(level, z)
    assert not levels


# ---- image pairs and changes


def test_photo_crops_do_not_share_a_pixel():
    train, test = (image_pairs("photos", s, size=64, count=14) for s in ("train", "test"))
    for data in (train, test):
        a, b = data.batch(torch.arange(14))
        assert a.shape == b.shape == (14, 3, 64, 64)
        assert -1 <= a.min() <= a.max() <= 1
        assert torch.equal(a[:, 0], a[:, 2])
    again = image_pairs("photos", "train", size=64, count=14)
    assert torch.equal(again.targets, train.targets)
    assert not torch.equal(train.targets[:7], train.targets[7:])


def test_crops_come_from_their_side(monkeypatch):
    ramp = torch.arange(200).expand(3, 160, 200).byte()
    monkeypatch.setattr(paired_images, "photo", lambda name: ramp)
    train, test = (paired_images.photo_crops(s, 70, 24) for s in ("train", "test"))
    assert train.max() < 0.7 * 200 <= test.min()
    assert train.max() - train.min() > 100
    with pytest.raises(ValueError, match=r"size must be in 1\.\.30"):
        paired_images.photo_crops("test", 1, 32)


def test_colouring_input_is_grey_and_blurred():
    x = draw(2, 3, 8, 8).clamp(-1, 1)
    grey = paired_images.grey_blurred(x)
    assert grey.shape == x.shape
    luma = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]).mean()
    assert grey.var() < x.mean(1).var()
    flat = paired_images.grey_blurred(torch.full((1, 3, 8, 8), 0.3))
    torch.testing.assert_close(flat, torch.full((1, 3, 8, 8), 0.3))
    assert abs(grey.mean() - luma) < 0.1


def write(folder, sizes):
    folder.mkdir(parents=True)
    for i, (h, w) in enumerate(sizes):
        pixels = (draw(h, w, 3, seed=i) * 40 + 128).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_unpaired_folders(tmp_path):
    for name, count in (("trainA", 3), ("trainB", 2), ("valA", 1), ("testB", 1)):
        write(tmp_path / name, [(30, 34)] * count)
    data = image_pairs("cyclegan", "train", size=16, root=tmp_path)
    assert (len(data), data.paired) == (3, False)
    a, b = data.batch(torch.tensor([0, 2]))
    assert a.shape == b.shape == (2, 3, 16, 16)
    with Image.open(tmp_path / "trainA" / "2.png") as image:
        resized = np.array(image.resize((16, 16), Image.Resampling.BICUBIC))
    torch.testing.assert_close(a[1], torch.from_numpy(resized).permute(2, 0, 1) / 127.5 - 1)
    first, again, other = (data.batch(torch.tensor([0, 2]), rng(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(image_pairs("cyclegan", "test", size=16, root=tmp_path)) == 1


def test_pix2pix_pictures_are_halved_and_cropped_together(tmp_path):
    left = (draw(32, 32, 3) * 40 + 128).clamp(0, 255).byte().numpy()
    (tmp_path / "train").mkdir()
    Image.fromarray(np.concatenate([left, 255 - left], 1)).save(tmp_path / "train" / "x.png")
    data = image_pairs("pix2pix", "train", size=32, root=tmp_path)
    a, b = data.batch(torch.tensor([0]))
    torch.testing.assert_close(a, -b, atol=0.3, rtol=0)  # resampling mixes at the seam
    torch.testing.assert_close(a[..., 2:-2], -b[..., 2:-2], atol=0.02, rtol=0)
    a, b = data.batch(torch.tensor([0]), rng(3))
    torch.testing.assert_close(a[..., 4:-4], -b[..., 4:-4], atol=0.05, rtol=0)


def test_missing_data_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="trainA"):
        image_pairs("cyclegan", "train", size=16, root=tmp_path)
    write(tmp_path / "trainA", [(20, 20)])
    with pytest.raises(FileNotFoundError, match="trainB"):
        image_pairs("cyclegan", "train", size=16, root=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no pictures in .*train"):
        image_pairs("images", "train", size=16, root=tmp_path)
    with pytest.raises(FileNotFoundError, match="data_root"):
        image_pairs("pix2pix", "train", size=16)
    with pytest.raises(ValueError, match="photos, cifar10"):
        image_pairs("imagenet", "train", size=16)


def test_images_of_another_scale_are_refused():
    x = draw(1, 3, 4, 4).clamp(-1, 1)
    assert paired_images.check_images(x) is x
    with pytest.raises(TypeError, match=r"float images in \[-1, 1\], got torch.uint8"):
        paired_images.check_images(x.byte())
    for bad in (x * 128, torch.full_like(x, math.nan)):
        with pytest.raises(ValueError, match=r"expected float images in \[-1, 1\]"):
            paired_images.check_images(bad)


def test_changes():
    x = draw(3, 3, 8, 8)
    change = {k: lambda s, f=f: f(x, s, rng()) for k, f in image_changes.CHANGES.items()}
    torch.testing.assert_close(change["contrast"](0.3), 0.7 * x)
    assert torch.equal(change["shift"](2)[..., 2:], x[..., :-2])
    assert torch.equal(change["shift"](2)[..., :2], x[..., :1].expand(3, 3, 8, 2))
    blurred = change["blur"](4)
    torch.testing.assert_close(blurred[..., 0, 0], x[..., :4, :4].mean((2, 3)))
    assert torch.equal(blurred[..., 0, 0], blurred[..., 3, 3])
    assert (change["noise"](0.5) - x).std().item() == pytest.approx(0.5, rel=0.1)
    permuted = change["permuted"](1.0)
    assert torch.equal(permuted.flatten(2).sort().values, x.flatten(2).sort().values)
    assert not torch.equal(permuted, x)
    half = change["permuted"](0.5)
    assert (half != x).any(1).flatten(1).sum(1).max() <= 32
    for kind in image_changes.CHANGES:
        assert torch.equal(change[kind](1 if kind == "blur" else 0), x)


def test_relative_change_is_one_for_another_image():
    x = draw(4, 3, 8, 8)
    assert image_changes.relative_change(lambda z: z, x, x) == 0
    assert image_changes.relative_change(lambda z: 5 * z, x, x.roll(1, 0)) == pytest.approx(1)
    table = image_changes.probe(x, {"contrast": 0.5}, {"a": lambda z: z, "b": torch.abs}, rng())
    expected = 0.5 * x.abs().mean() / (x - x.roll(1, 0)).abs().mean()
    assert table["a"]["contrast"] == pytest.approx(expected.item(), rel=1e-5)
    assert set(table) == {"a", "b"}
