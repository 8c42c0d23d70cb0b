"""DCD's invariants, its loss against plain loops, its networks, its training, and bad inputs."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from helpers import metrics, notebooks, plan
from helpers.gan_recipe import Recipe
from helpers.models import parameters_hash
from helpers.perceptual import FeatureLevels
from helpers.session import start

M = notebooks.load("dcd")
TINY = Recipe(
    dataset="photos", size=48, train_images=16, student_images=8, test_images=4,
    teacher_width=3, student_width=2, blocks=3, discriminator_width=4, discriminator_layers=2,
    conditional=False, gan_mode="lsgan", l1_weight=20.0, teacher_steps=2, halfway_steps=2,
    steps=3, teacher_round=0, student_round=1, constant_share=0.0, batch_size=2, teacher_lr=1e-3,
    lr=1e-3, dcd_weight=1.0, adversarial_weight=0.0, style_weight=0.5, feature_weight=2.0,
)  # fmt: skip


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def session():
    return start(seed=0, device="cpu", banner=False)


@pytest.fixture
def levels():
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv2d(c, 4, 3, stride=2), nn.ReLU()) for c in (3, 4)]
    return FeatureLevels(parts, zero_to_one=False)


@pytest.fixture
def parts():
    """Student and teacher maps, student connectors in train mode, teacher's in eval mode, D."""
    narrow, wide = ([draw(4, c, 16, 16, seed=c + i) for i in range(4)] for c in (8, 24))
    q, p = M.make_connectors(8, 3, rng(1)), M.make_connectors(24, 3, rng(2)).eval()
    d = M.init_normal(M.PatchDiscriminator(3, 4, 2), rng(3), std=0.2)
    return narrow, wide, q, p, d


def distillation(recipe, levels, session, arms=("perceptual", "dcd"), data=None):
    if data is None:
        data = M.image_pairs("photos", "train", size=recipe.size, count=recipe.train_images)
    return M.Distillation(recipe, M.Networks(recipe, rng()), arms, data, levels, session)


# ---- the loss


def test_loss_is_the_sum_of_separate_calls_for_every_tap(parts):
    s, t, q, p, d = parts
    expected = []
    for i in range(4):
        teacher = d.features(F.relu(p[i].norm(p[i].conv(t[i]))))
        norm, z = q[i].norm, F.conv2d(s[i], q[i].conv.weight)
        mean, variance = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), False, keepdim=True)
        z = (z - mean) / (variance + 1e-5).sqrt() * norm.weight.view(1, 3, 1, 1)
        expected.append((teacher - d.features(z.clamp(min=0))).abs().mean())
    taps = M.dcd_loss(s, t, q, p, d, "none")
    torch.testing.assert_close(taps, torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(M.dcd_loss(s, t, q, p, d), torch.stack(expected).sum())
    assert (taps > 0).all()


def test_loss_is_zero_for_equal_sides_and_symmetric(parts):
    s, t, q, p, d = parts
    assert M.dcd_loss(t, t, p, p, d).item() == 0
    q = q.eval()
    assert torch.equal(M.dcd_loss(s, t, q, p, d, "none"), M.dcd_loss(t, s, p, q, d, "none"))


def test_unrelated_pictures_are_two_thirds_apart():
    d = M.init_normal(M.PatchDiscriminator(3, 64, 2), rng(), std=0.2)
    a, b = draw(8, 3, 32, 32), draw(8, 3, 32, 32, seed=1)
    x, y = (F.leaky_relu(draw(10**6, seed=i), 0.2) for i in (5, 6))
    assert (x - y).abs().mean().item() == pytest.approx(0.677, abs=0.002)
    assert 0.55 < (d.features(a) - d.features(b)).abs().mean() < 0.7


def test_gradients_reach_the_student_only_and_flags_stay(parts):
    s, t, q, p, d = parts
    s, t = ([x.clone().requires_grad_() for x in maps] for maps in (s, t))
    d.head.bias.requires_grad_(False)
    flags = [x.requires_grad for x in d.parameters()]
    before, modes = parameters_hash(d), [m.training for m in (*q, *p, d)]
    M.dcd_loss(s, t, q, p, d).backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (*s, *q.parameters()))
    assert all(x.grad is None for x in (*t, *p.parameters(), *d.parameters()))
    assert [x.requires_grad for x in d.parameters()] == flags
    assert parameters_hash(d) == before
    assert [m.training for m in (*q, *p, d)] == modes


def test_pictures_of_different_sizes_get_calls_of_their_own(parts):
    d = parts[-1]
    pictures = [draw(2, 3, 16, 16), draw(2, 3, 20, 20)]
    for found, picture in zip(M.discriminate(pictures, d), pictures, strict=True):
        torch.testing.assert_close(found, d.features(picture))


def test_connectors_start_as_stated_and_normalise_in_train_mode():
    made = M.make_connectors(256, 3, rng())
    weights = torch.cat([c.conv.weight.flatten() for c in made])
    assert made[0].conv.bias is None
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    scales = torch.cat([c.norm.weight for c in made])
    assert 0 < (scales - 1).abs().max() < 0.08
    assert all((c.norm.bias == 0).all() for c in made)
    x = draw(4, 256, 8, 8)
    z = made[0].norm(made[0].conv(x))
    torch.testing.assert_close(z.mean((0, 2, 3)), made[0].norm.bias, atol=1e-6, rtol=0)
    variance = z.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, made[0].norm.weight ** 2, rtol=1e-3, atol=0)
    frozen = made.eval()[1]
    torch.testing.assert_close(frozen(x)[:1], frozen(x[:1]))


@pytest.mark.parametrize("fault", ["count", "empty", "channels", "batch", "size", "pictures"])
def test_loss_refuses_what_does_not_fit(parts, fault):
    s, t, q, p, d = parts
    message = "tap 1"
    if fault == "count":
        s, message = s[:3], "as many maps"
    if fault == "empty":
        s, t, q, p, message = [], [], [], [], "at least 1"
    if fault == "channels":
        s[1] = draw(4, 9, 16, 16)
    if fault == "batch":
        t[1] = draw(3, 24, 16, 16)
    if fault == "size":
        t[1] = draw(4, 24, 20, 16)
    if fault == "pictures":
        d, message = M.PatchDiscriminator(6, 4, 2), "tap 0.*6 channels"
    with pytest.raises(ValueError, match=message):
        M.dcd_loss(s, t, q, p, d)
    with pytest.raises(ValueError, match="reduction"):
        M.dcd_loss(*parts, reduction="mean")


def test_pictures_too_small_for_the_discriminator_are_refused(parts):
    s, t, q, p, _ = parts
    with pytest.raises(ValueError, match="layers=3 needs inputs of at least 24 px, got 16"):
        M.dcd_loss(s, t, q, p, M.PatchDiscriminator(3, 4, 3))


# ---- perceptual loss


def test_gram_matrix(parts):
    x = draw(2, 5, 6, 7)
    gram = M.gram_matrix(x)
    expected = torch.einsum("nahw,nbhw->nab", x, x) / (5 * 6 * 7)
    torch.testing.assert_close(gram, expected)
    torch.testing.assert_close(gram.diagonal(dim1=1, dim2=2).sum(1), x.square().mean((1, 2, 3)))
    assert torch.linalg.eigvalsh(gram).min() > -1e-6
    torch.testing.assert_close(M.gram_matrix(3 * x), 9 * gram)
    order = torch.randperm(42, generator=rng())
    torch.testing.assert_close(M.gram_matrix(x.flatten(2)[..., order].view(x.shape)), gram)


def test_perceptual_loss_is_linear_in_its_weights_and_detaches_the_teacher():
    a = [draw(2, c, 8, 8, seed=c).requires_grad_() for c in (3, 4, 5)]
    b = [draw(2, c, 8, 8, seed=9 + c).requires_grad_() for c in (3, 4, 5)]
    assert M.perceptual_loss(a, a).item() == 0
    style, content = (M.perceptual_loss(a, b, *w) for w in ((1, 0), (0, 1)))
    grams = [(M.gram_matrix(x) - M.gram_matrix(y)).abs().mean() for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(style, sum(grams))
    torch.testing.assert_close(content, (a[1] - b[1]).abs().mean())
    torch.testing.assert_close(M.perceptual_loss(a, b, 2, 3), 2 * style + 3 * content)
    last = M.perceptual_loss(a, b, 0, 1, feature_level=2)
    torch.testing.assert_close(last, (a[2] - b[2]).abs().mean())
    last.backward()
    assert all(x.grad is None for x in b)
    with pytest.raises(ValueError, match="zip"):
        M.perceptual_loss(a, b[:2])


# ---- training


def test_term_of_the_objective_is_the_loss(levels, session):
    lesson = distillation(TINY, levels, session)
    student = lesson.students["dcd"]
    signals = lesson.signals(*lesson.data.batch(torch.arange(4)))
    x = signals["input"][0]
    term = M.objective(student, signals, lesson.judges, levels)["dcd"]
    teacher, taught = (
        net(x, return_maps=True)[1] for net in (lesson.gan.generator, student.generator)
    )
    q, p, d = student.connectors, lesson.connectors, lesson.judges["dcd"]
    torch.testing.assert_close(term, M.dcd_loss(taught, teacher, q, p, d))


def test_weight_zero_makes_dcd_the_perceptual_student(levels, session):
    lesson = distillation(replace(TINY, dcd_weight=0.0), levels, session)
    lesson.teach()
    a, b = (parameters_hash(lesson.students[arm].generator) for arm in ("perceptual", "dcd"))
    assert a == b
    lesson = distillation(TINY, levels, session)
    lesson.teach()
    c, d = (parameters_hash(lesson.students[arm].generator) for arm in ("perceptual", "dcd"))
    assert c == a
    assert d != c


def test_measuring_connectors_do_not_touch_the_perceptual_student(levels, session):
    lesson = distillation(TINY, levels, session)
    signals = lesson.signals(*lesson.data.batch(torch.arange(4)))
    for arm, reached in (("perceptual", False), ("dcd", True)):
        student = lesson.students[arm]
        M.objective(student, signals, lesson.judges, levels)["dcd"].backward()
        last = student.generator.blocks[-1].body[1].weight.grad
        assert (last is not None) == reached
        assert all(p.grad is not None for p in student.connectors.parameters())


@pytest.mark.parametrize("arm", M.ARMS)
def test_every_arm_trains_its_student_and_no_judge(arm, levels, session):
    lesson = distillation(TINY, levels, session, [arm])
    before = parameters_hash(lesson.students[arm].generator)
    judges = {k: parameters_hash(d) for k, d in lesson.judges.items()}
    lesson.teach()
    assert parameters_hash(lesson.students[arm].generator) != before
    assert {k: parameters_hash(d) for k, d in lesson.judges.items()} == judges
    assert all(p.requires_grad for p in lesson.judges["dcd"].parameters())


@pytest.mark.parametrize("arm", ["gan_compression", "omgd_channel"])
def test_map_terms_start_at_the_value_of_dcd(arm, levels, session):
    lesson = distillation(TINY, levels, session, [arm])
    signals = lesson.signals(*lesson.data.batch(torch.arange(2)))
    student = lesson.students[arm]
    terms = M.objective(student, signals, lesson.judges, levels)
    torch.testing.assert_close(terms["map"], terms["dcd"])
    with torch.no_grad():
        maps = student.generator(signals["input"][0], return_maps=True)[1]
    raw = 0
    for i, (x, y) in enumerate(zip(maps, signals["maps"], strict=True)):
        x = student.own.convs[i](x)
        if arm == "omgd_channel":
            x, y = x.mean((2, 3)), y.mean((2, 3))
        raw += (x - y).square().mean()
    torch.testing.assert_close(terms["map"], student.scale * raw)


def test_adversarial_term_reaches_the_student_when_asked(levels, session):
    lesson = distillation(replace(TINY, adversarial_weight=0.5), levels, session, ["perceptual"])
    signals = lesson.signals(*lesson.data.batch(torch.arange(2)))
    student = lesson.students["perceptual"]
    term = M.objective(student, signals, lesson.judges, levels)["adversarial"]
    y = student.generator(signals["input"][0])
    torch.testing.assert_close(term, 0.5 * (lesson.judges["dcd"](y) - 1).square().mean())
    term.backward()
    assert student.generator.stem[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("teacher_round", "student_round"), [(2, 1), (1, 2)])
def test_rounds_alternate(teacher_round, student_round, levels, session):
    turns = {"teacher_round": teacher_round, "student_round": student_round}
    recipe = replace(TINY, student_images=0, **turns)
    lesson = distillation(recipe, levels, session)
    steps = []
    real, lesson.gan.step = lesson.gan.step, lambda a, b: steps.append("T") or real(a, b)
    signals, lesson.signals = lesson.signals, lambda a, b: steps.append("S") or signals(a, b)
    judge = parameters_hash(lesson.judges["dcd"])
    lesson.teach()
    expected = {(2, 1): "TTSTTSTTS", (1, 2): "TSSTS"}[teacher_round, student_round]
    assert "".join(steps) == expected
    assert parameters_hash(lesson.judges["dcd"]) != judge


def test_stored_signals_are_those_of_the_rows(levels, session):
    lesson = distillation(TINY, levels, session)
    rows = torch.tensor([5, 1, 7])
    stored = M.remember(lesson.signals, lesson.data, 8)(rows)
    fresh = lesson.signals(*lesson.data.batch(rows))
    assert stored.keys() == fresh.keys()
    for key in stored:
        torch.testing.assert_close(stored[key], fresh[key])


def test_teacher_improves_and_prepare_says_what_it_did(session, levels):
    recipe = replace(TINY, teacher_steps=40)
    nets = M.Networks(recipe, rng())
    data = M.image_pairs("photos", "train", size=48, count=16)
    exam = M.Exam(recipe, tiny_features(), session)
    before = exam.psnr(nets.teacher), parameters_hash(nets.student)
    made = M.prepare(nets, data, recipe, session, levels, exam)
    assert made["teacher_psnr"] > before[0] + 1
    assert parameters_hash(nets.student) != before[1]
    assert "'teacher_steps': 40" in made["recipe"]


def test_pretrained_discriminator_is_trained_beside_a_copy_of_the_teacher(levels, session):
    recipe, nets = replace(TINY, teacher_round=1), M.Networks(TINY, rng())
    before, judge = parameters_hash(nets), parameters_hash(nets.discriminator)
    data = M.image_pairs("photos", "train", size=48, count=16)
    found = M.pretrained(nets, data, recipe, session)
    assert parameters_hash(nets) == before
    assert parameters_hash(found) != judge


def tiny_features():
    return M.feature_network("efficientnet_lite0")


def test_run_measures_every_arm(session, levels):
    exam = M.Exam(TINY, tiny_features(), session)
    data = M.image_pairs("photos", "train", size=48, count=16)
    with pytest.warns(UserWarning, match="singular"):
        lesson, found = M.run(
            replace(TINY, steps=4), M.Networks(TINY, rng()), ["perceptual", "dcd"], data, exam,
            levels, session, evaluations=2,
        )  # fmt: skip
    assert list(found) == ["teacher", "perceptual", "dcd"]
    assert found["teacher"]["difference"] == found["teacher"]["deep"] == 0
    assert found["teacher"]["diversity"] == 1
    y = exam.images(lesson.students["dcd"].generator)
    error = (y - exam.targets).square().mean().item()
    assert found["dcd"]["psnr"] == pytest.approx(10 * math.log10(4 / error), rel=1e-4)
    assert found["dcd"]["best fid"] <= found["dcd"]["fid"]
    assert 0 < found["dcd"]["dcd"] < 2.8


def test_measuring_leaves_running_statistics(session, levels):
    lesson = distillation(TINY, levels, session)
    before = parameters_hash(lesson.students["dcd"])
    lesson.pictures("dcd", lesson.signals(*lesson.data.batch(torch.arange(4))))
    assert parameters_hash(lesson.students["dcd"]) == before


def test_a_diverging_student_is_named_with_its_step(session, levels):
    lesson = distillation(TINY, levels, session)
    with torch.no_grad():
        lesson.students["dcd"].generator.stem[1].weight.fill_(math.nan)
    with pytest.raises(ValueError, match="dcd student diverged at step 0"):
        lesson.teach()


def test_unknown_arm_is_refused(session, levels):
    with pytest.raises(ValueError, match="arms must be among perceptual, dcd"):
        distillation(TINY, levels, session, ["perceptual", "dcdc"])


def picture_folder(root, names, wide=False):
    for folder in names:
        (root / folder).mkdir(parents=True)
        for i in range(3):
            pixels = (draw(40, 80 if wide else 40, 3, seed=i) * 40 + 128).clamp(0, 255)
            Image.fromarray(pixels.byte().numpy()).save(root / folder / f"{i}.png")
    return root


@pytest.mark.filterwarnings("ignore:.*singular")  # three images
@pytest.mark.parametrize("layout", ["cyclegan", "pix2pix", "images"])
def test_real_layouts_train(layout, tmp_path, levels, session):
    names = ["trainA", "trainB", "testA", "testB"] if layout == "cyclegan" else ["train", "val"]
    root = picture_folder(tmp_path, names, wide=layout == "pix2pix")
    hinge = {"gan_mode": "hinge", "conditional": True} if layout == "pix2pix" else {}
    recipe = replace(TINY, dataset=layout, student_images=0, teacher_round=1, steps=2, **hinge)
    data = M.image_pairs(layout, "train", size=48, root=root)
    arms = ["perceptual", "dcd", "pretrained_d", "scratch"]
    lesson = distillation(recipe, levels, session, arms, data)
    before = parameters_hash(lesson.gan.generator)
    lesson.teach()
    assert parameters_hash(lesson.gan.generator) != before
    assert lesson.connectors[0].conv.out_channels == (6 if layout == "pix2pix" else 3)
    held_out = M.Exam(
        replace(recipe, test_images=0), tiny_features(), replace(session, data_root=root)
    )
    assert held_out.paired == (layout != "cyclegan")
    assert len(held_out.inputs) == 3
    values = lesson.measure(held_out) if layout == "images" else {}
    assert all(math.isfinite(v) for row in values.values() for v in row.values())


# ---- what a run starts from


def test_profiles_make_recipes_that_fit():
    from dataclasses import fields

    declared = notebooks.parameters("dcd")
    for profile in ("gpu", "paper"):
        values = {k: p.default for k, p in declared.items()} | plan.profile_parameters(
            "dcd", profile
        )
        recipe = Recipe(**{f.name: values[f.name] for f in fields(Recipe)})
        assert set(values["arms"].split()) <= set(M.ARMS)
        assert recipe.teacher_round > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 50}, "multiple of 4"),
        ({"size": 64, "discriminator_layers": 3}, "at least 24 px, got 16"),
        ({"gan_mode": "wgan"}, "lsgan, vanilla, hinge"),
        ({"dataset": "cyclegan", "conditional": True}, "paired"),
    ],
)
def test_recipes_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_checkpoint_of_another_width_is_refused():
    stored = M.Networks(TINY, rng()).state_dict()
    for name, other in product(("teacher", "student", "discriminator"), (1, 5)):
        nets = M.Networks(replace(TINY, **{f"{name}_width": other}), rng())
        width = getattr(TINY, f"{name}_width")
        with pytest.raises(ValueError, match=f"{name} has width {width}, {name}_width is {other}"):
            nets.load_state_dict(stored)


def test_committed_networks_learnt_their_task(session):
    declared = {k: p.default for k, p in notebooks.parameters("dcd").items()}
    from dataclasses import fields

    recipe = Recipe(**{f.name: declared[f.name] for f in fields(Recipe)})
    nets = M.checkpoint("dcd_networks", lambda: M.Networks(recipe, rng()))
    exam = M.Exam(replace(recipe, test_images=128), tiny_features(), session)
    teacher, student = exam.psnr(nets.teacher), exam.psnr(nets.student)
    grey = metrics.psnr(exam.inputs, exam.targets, peak=2.0)
    assert teacher > max(student, 13.5)
    assert student > 11
    assert grey > 0
