"""DCD's hot path against the straightforward forms, as ratios measured in one run."""

import torch
from torch import Tensor

from helpers import bench
from helpers.gan_recipe import Recipe
from helpers.notebooks import load
from helpers.session import start

M = load("dcd")


def separate_calls(
    student_maps: list[Tensor],
    teacher_maps: list[Tensor],
    student_connectors,
    teacher_connectors,
    d,
) -> Tensor:
    """L_DCD tap by tap: eight calls of all of D, which tracks gradients for its own weights too."""
    loss = 0
    taps = zip(student_maps, teacher_maps, student_connectors, teacher_connectors, strict=True)
    for s, t, q, p in taps:
        features = []
        hook = d.body[-1].register_forward_hook(lambda m, a, out, to=features: to.append(out))
        d(q(s))
        d(p(t.detach()))
        hook.remove()
        loss = loss + (features[0] - features[1].detach()).abs().mean()
    return loss


def losses(width: int, layers: int, side: int, batch: int) -> None:
    rng = torch.Generator().manual_seed(0)
    narrow, wide = (
        [torch.randn(batch, c, side, side, generator=rng) for _ in range(4)] for c in (16, 48)
    )
    q, p = M.make_connectors(16, 3, rng), M.make_connectors(48, 3, rng).eval().requires_grad_(False)
    d = M.init_normal(M.PatchDiscriminator(3, width, layers), rng, std=0.2)
    with torch.no_grad():
        target = M.discriminate(M.connect(wide, p), d)

    def run(loss):
        maps = [m.clone().requires_grad_() for m in narrow]
        d.zero_grad()
        loss(maps).backward()
        return [m.grad for m in maps]

    def separate():
        return run(lambda maps: separate_calls(maps, wide, q, p, d))

    def joint():
        return run(lambda maps: M.dcd_loss(maps, wide, q, p, d))

    def stored():  # while the teacher is frozen
        def loss(maps):
            with M.frozen(d):
                return M.tap_distances(M.discriminate(M.connect(maps, q), d), target).sum()

        return run(loss)

    expected = separate()
    for form in (joint, stored):
        torch.testing.assert_close(form(), expected, rtol=1e-3, atol=1e-6)
    contenders = {
        "8 calls": separate,
        "2 calls (dcd_loss)": joint,
        "1 call, teacher stored": stored,
    }
    title = f"L_DCD, both passes: D of width {width}, {4} x {batch} pictures of {side} px"
    bench.print_table(bench.compare(contenders, baseline="8 calls"), title)


def signals() -> None:
    recipe = Recipe(
        dataset="photos", size=64, train_images=64, student_images=64, test_images=8,
        teacher_width=12, student_width=4, blocks=9, discriminator_width=16,
        discriminator_layers=2, conditional=False, gan_mode="lsgan", l1_weight=20.0,
        teacher_steps=0, halfway_steps=0, steps=1, teacher_round=0, student_round=1,
        constant_share=0.0, batch_size=8, teacher_lr=1e-3, lr=1e-3, dcd_weight=1.0,
        adversarial_weight=0.0, style_weight=0.5, feature_weight=2.0,
    )  # fmt: skip
    session = start(seed=0, device="cpu", banner=False)
    nets = M.Networks(recipe, session.generator())
    data = M.image_pairs("photos", "train", size=64, count=64)
    levels = M.perceptual_network("efficientnet_lite0")
    lesson = M.Distillation(recipe, nets, ["dcd"], data, levels, session)
    rows, stored = torch.arange(3, 11), M.remember(lesson.signals, data, 64)

    def fresh():
        return lesson.signals(*data.batch(rows))

    for key, tensors in fresh().items():
        torch.testing.assert_close(stored(rows)[key], tensors, rtol=1e-3, atol=1e-4)
    contenders = {"computed again": fresh, "looked up": lambda: stored(rows)}
    title = "what the teacher says about 8 images of 64 px"
    bench.print_table(bench.compare(contenders, baseline="computed again"), title)
    student = lesson.students["dcd"]

    def step(signals):
        return lambda: M.learn(student, signals(), lesson.judges, lesson.perceptual, 1.0)

    contenders = {"computed again": step(fresh), "looked up": step(lambda: stored(rows))}
    title = "a whole step of a student"
    bench.print_table(bench.compare(contenders, baseline="computed again"), title)


def main() -> None:
    """Print all tables; less than a minute on two cores."""
    torch.manual_seed(0)
    losses(16, 2, 16, 8)  # the smoke scale
    losses(64, 3, 64, 1)  # the paper's
    signals()


if __name__ == "__main__":
    main()
