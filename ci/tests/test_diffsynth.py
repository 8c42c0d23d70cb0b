"""DiffSynth: the step, the scheduler, patch matching and blending, against independent forms."""

import inspect
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import diffusion_loops as loops
from helpers import latent_video, patch_fields, patch_kernels
from helpers.cross_frames import CrossFrameAttention, set_cross_frames
from helpers.data import panning_photo
from helpers.metrics import psnr, warping_error
from helpers.notebooks import load

D = load("diffsynth")
EASY = settings(deadline=None, max_examples=15)
SIDES = st.integers(7, 14)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def field(batch, height, width, seed=0):
    return patch_fields.first_field(
        "random", batch, (height, width), torch.Generator().manual_seed(seed)
    )


def identity(batch, height, width):
    return patch_fields.first_field("identity", batch, (height, width))


def mean_of_clip(x):
    return x.mean(0, keepdim=True).expand_as(x)


# -- the denoising step ----------------------------------------------------------------------------

ALPHAS = st.floats(0.01, 0.98)


@EASY
@given(alpha=ALPHAS, share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_step_formulas(alpha, share, seed):
    previous = alpha + share * (1 - alpha)
    x, eps = normal(2, 4, 3, 5, 5, seed=seed).double()
    plain, x0 = D.ddim_step(x, eps, alpha, previous)
    same, _ = D.ddim_step(x, eps, alpha, previous, lambda z: z)
    torch.testing.assert_close(plain, same, atol=1e-5, rtol=0)
    torch.testing.assert_close(D.noise_from_x0(x, x0, alpha), eps, atol=1e-5, rtol=0)
    moved, clean = D.ddim_step(x, eps, alpha, previous, mean_of_clip)
    c = math.sqrt((1 - previous) / (1 - alpha))
    line = c * x + (math.sqrt(previous) - c * math.sqrt(alpha)) * clean
    torch.testing.assert_close(moved, line, atol=1e-6, rtol=0)


def test_last_step_and_agreement():
    x, eps = normal(2, 4, 3, 5, 5)
    out, clean = D.ddim_step(x, eps, 0.3, 1.0, mean_of_clip)
    assert torch.equal(out, clean)
    first = x[:1].expand_as(x)
    out, _ = D.ddim_step(first, eps, 0.3, 0.6, mean_of_clip)
    assert torch.equal(out, out[:1].expand_as(out))
    x.requires_grad_(True)
    D.ddim_step(x, eps, 0.3, 0.6, mean_of_clip)[0].sum().backward()
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("steps", "strength", "first", "last", "count"),
    [(20, 1.0, 999, 49, 20), (30, 1.0, 999, 42, 30), (7, 1.0, 999, 147, 7), (10, 0.3, 299, 99, 3),
     (10, 0.7, 699, 99, 7), (1000, 1.0, 999, 0, 1000), (1, 1.0, 999, 999, 1)],
)  # fmt: skip
def test_timesteps(steps, strength, first, last, count):
    found = D.ddim_timesteps(steps, strength=strength)
    assert (found[0], found[-1], len(found)) == (first, last, count)
    assert (found.diff() == -(1000 // steps)).all()


# -- schedulers of diffusers -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_scheduler_does_what_the_step_does(kind):
    scheduler = loops.ddim(kind, 20)
    inside = D.in_loop(scheduler, mean_of_clip)
    a = scheduler.alphas_cumprod
    x, eps = normal(2, 4, 3, 5, 5)
    for t, before in ((999, a[949].item()), (499, a[449].item()), (49, 1.0)):
        alpha = a[t].item()
        x0 = loops.clean_frames("epsilon", eps, x, alpha)
        output = loops.model_output(kind, x0, eps, alpha)
        found = inside.step(output, t, x).prev_sample
        expected, _ = D.ddim_step(x, eps, alpha, before, mean_of_clip)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert "step" not in vars(scheduler)  # the original is as it was


@pytest.mark.parametrize(
    ("interval", "ignore", "expected"),
    [(1, 0, list(range(20))), (5, 0, [0, 5, 10, 15]), (1, 1, list(range(19))), (7, 6, [0, 7])],
)
def test_deflickers_in_the_steps_that_it_should(interval, ignore, expected):
    seen, at = [], [0]

    def spy(z):
        seen.append(at[0])
        return z

    inside = D.in_loop(loops.ddim("sample", 20), spy, interval, ignore)
    for timesteps in (inside.timesteps, inside.timesteps):  # a second run starts from 0 again
        seen.clear()
        x = normal(2, 3, 4, 4)
        for at[0], t in enumerate(timesteps.tolist()):
            x = inside.step(x, t, x).prev_sample
        assert seen == expected
    seen.clear()
    for at[0], t in enumerate(D.ddim_timesteps(20, strength=0.3).tolist()):
        x = inside.step(x, t, x).prev_sample
    assert seen == [s for s in range(6) if s % interval == 0 and s < 6 - ignore]
    inside.set_timesteps(10)
    assert len(inside.timesteps) == 10


def test_other_schedulers():
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    for kind in (DDPMScheduler, DPMSolverMultistepScheduler):
        scheduler = kind()
        scheduler.set_timesteps(5)
        inside = D.in_loop(scheduler, mean_of_clip)
        assert inspect.signature(inside.step) == inspect.signature(scheduler.step)
        x = normal(3, 3, 4, 4)
        for t in inside.timesteps:
            out = inside.step(normal(3, 3, 4, 4), t, x, generator=torch.Generator())
            x = out.prev_sample
        assert torch.isfinite(x).all()
    with pytest.raises(TypeError, match="EulerDiscreteScheduler does not keep x_t"):
        D.in_loop(EulerDiscreteScheduler(), mean_of_clip)


# -- patches ---------------------------------------------------------------------------------------


def slow_error(source, target, nnf, size):
    """The definition, pixel by pixel."""
    r, (b, _, h, w) = size // 2, source.shape
    s, t = (F.pad(x, (r,) * 4) for x in (source, target))
    out = torch.zeros(b, h, w)
    for k, y, x in itertools.product(range(b), range(h), range(w)):
        v, u = nnf[k, y, x].tolist()
        found, here = s[k, :, v : v + size, u : u + size], t[k, :, y : y + size, x : x + size]
        out[k, y, x] = (found - here).square().sum()
    return out


def slow_vote(image, nnf, size):
    """The definition, vote by vote."""
    r, (b, c, h, w) = size // 2, image.shape
    out = torch.zeros(b, c, h, w)
    for k, y, x in itertools.product(range(b), range(h), range(w)):
        votes = []
        for dy, dx in itertools.product(range(-r, r + 1), repeat=2):
            if 0 <= y + dy < h and 0 <= x + dx < w:
                v, u = (nnf[k, y + dy, x + dx] - torch.tensor([dy, dx])).tolist()
                if 0 <= v < h and 0 <= u < w:
                    votes.append(image[k, :, v, u])
        out[k, :, y, x] = torch.stack(votes).mean(0)
    return out


@pytest.mark.parametrize("size", [1, 3, 5])
def test_error_and_vote_are_their_definitions(size):
    a, b, nnf = draw(2, 3, 7, 9), draw(2, 3, 7, 9, seed=1), field(2, 7, 9)
    expected = slow_error(a, b, nnf, size)
    torch.testing.assert_close(D.patch_error(a, b, nnf, size), expected)
    torch.testing.assert_close(D.remap(a, nnf, size), slow_vote(a, nnf, size))


@EASY
@given(height=SIDES, width=SIDES, size=st.sampled_from([1, 3, 5, 7]), seed=st.integers(0, 99))
def test_remap_is_a_convex_combination(height, width, size, seed):
    x, y = draw(2, 2, 3, height, width, seed=seed)
    nnf, same = field(2, height, width, seed), identity(2, height, width)
    torch.testing.assert_close(D.remap(x, same, size), x, atol=1e-6, rtol=0)
    both = D.remap(2 * x + y, nnf, size)
    torch.testing.assert_close(both, 2 * D.remap(x, nnf, size) + D.remap(y, nnf, size))
    constant = torch.full_like(x, 0.3)
    torch.testing.assert_close(D.remap(constant, nnf, size), constant)
    out = D.remap(x, nnf, size)
    assert x.min() - 1e-6 <= out.min() <= out.max() <= x.max() + 1e-6
    error = D.patch_error(x, y, nnf, size)
    assert (error >= 0).all()
    assert (D.patch_error(x, x, same, size) == 0).all()
    torch.testing.assert_close(D.patch_error(3 * x, 3 * y, nnf, size), 9 * error)
    twice = [torch.cat([z, z], 1) for z in (x, y)]
    torch.testing.assert_close(D.patch_error(*twice, nnf, size), 2 * error)


def test_translation_moves_the_inside_exactly_and_has_a_gradient():
    x = draw(1, 3, 16, 16)
    nnf = patch_fields.moved(identity(1, 16, 16), torch.tensor([2, -1]))
    out = D.remap(x, nnf, 5)
    torch.testing.assert_close(out[:, :, 4:10, 6:10], x[:, :, 6:12, 5:9])
    x.requires_grad_(True)
    weight = normal(1, 3, 16, 16)
    (weight * D.remap(x, nnf, 5)).sum().backward()
    assert x.grad.abs().sum() > 0


@EASY
@given(height=st.integers(5, 41), width=st.integers(5, 41))
def test_enlarging_keeps_the_identity(height, width):
    small = identity(1, height >> 1, width >> 1)
    assert torch.equal(patch_fields.enlarged(small, (height, width)), identity(1, height, width))


def test_neighbours_move_along():
    nnf = field(1, 4, 5)
    for direction, (dy, dx) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        found = patch_fields.from_neighbour(nnf, direction)
        for y, x in itertools.product(range(4), range(5)):
            from_y, from_x = y - dy, x - dx
            inside = 0 <= from_y < 4 and 0 <= from_x < 5
            match = nnf[0, from_y, from_x] if inside else nnf[0, y, x]
            v, u = (match + torch.tensor([dy, dx])).tolist()
            assert found[0, y, x].tolist() == [min(max(v, 0), 3), min(max(u, 0), 4)]


@pytest.mark.parametrize("size", [(24, 24), (33, 41), (5, 5)])
def test_fields(size):
    a, b = draw(2, 1, 3, *size)
    same, none = D.estimate_nnf(a, a, patch_size=5)
    assert none is None
    assert torch.equal(same, identity(1, *size))
    found = [
        D.estimate_nnf(a, b, b, init="random", generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], D.remap(b, found[0][0], 5))
    patch_kernels.check_field(found[0][0], a)
    start = field(1, *size, seed=5)
    end, _ = D.estimate_nnf(
        a, b, levels=1, init="random", generator=torch.Generator().manual_seed(5)
    )
    assert (D.patch_error(a, b, end, 5) <= D.patch_error(a, b, start, 5) + 1e-5).all()


def exhaustive(source, target, size, reach):
    """The best field with displacements of at most `reach`, by trying all."""
    h, w = source.shape[2:]
    best, nnf = torch.full((1, h, w), torch.inf), identity(1, h, w)
    for step in itertools.product(range(-reach, reach + 1), repeat=2):
        candidate = patch_fields.moved(identity(1, h, w), torch.tensor(step))
        error = D.patch_error(source, target, candidate, size)
        nnf = torch.where((error < best)[..., None], candidate, nnf)
        best = torch.minimum(error, best)
    return nnf, best


def test_a_pan_is_recovered_nearly_as_well_as_by_trying_everything():
    step, ours, best = torch.tensor([1, 2]), [], []
    for seed in range(4):
        clip, generator = panning_photo(seed, 2), torch.Generator().manual_seed(seed)
        found, _ = D.estimate_nnf(clip[:1], clip[1:], generator=generator)
        oracle, _ = exhaustive(clip[:1], clip[1:], 5, 3)
        for shares, nnf in ((ours, found), (best, oracle)):
            near = patch_fields.displacement_errors(nnf, step) <= 1
            shares.append(near.float().mean().item())
    assert sum(ours) / 4 > 0.8
    assert all(a > b - 0.1 for a, b in zip(ours, best, strict=True)), (ours, best)


# -- blending --------------------------------------------------------------------------------------


@EASY
@given(left=st.integers(0, 200), extra=st.integers(0, 200))
def test_nodes_cover_the_window_once(left, extra):
    right = left + extra
    nodes = D.window_nodes(left, right)
    covered = [j for i, v in nodes for j in range(i, i - 2**v, -1)]
    assert covered == list(range(right, left - 1, -1))
    assert nodes[0][0] == right
    assert len(nodes) <= 2 * math.log2(extra + 1) + 2
    assert all((i + 1) % 2**v == 0 for i, v in nodes)
    assert D.window_nodes(left, left) == [(left, 0)]


def test_nodes_of_an_example_and_of_large_indices():
    assert D.window_nodes(2, 13) == [(13, 1), (11, 2), (7, 2), (3, 1)]
    assert sum(2**v for _, v in D.window_nodes(0, 2046)) == 2047


def cyclic(x, source, target):
    return x.roll(target - source, 2)


@EASY
@given(n=st.integers(1, 13), k=st.integers(0, 15), seed=st.integers(0, 99))
def test_blending(n, k, seed):
    x = draw(n, 2, 3, 16, seed=seed)
    still = {m: D.blend_window(x, k, lambda f, s, t: f, m) for m in ("fast", "slow")}
    spans = [x[max(0, i - k) : i + k + 1].mean(0) for i in range(n)]
    for out in still.values():
        torch.testing.assert_close(out, torch.stack(spans), atol=1e-6, rtol=0)
    fast, slow = (D.blend_window(x, k, cyclic, m) for m in ("fast", "slow"))
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=0)
    constant = x[:1].expand_as(x)
    still = D.blend_window(constant, k, lambda f, s, t: f)
    torch.testing.assert_close(still, constant, atol=1e-6, rtol=0)
    back = D.blend_window(x.flip(0), k, lambda f, s, t: cyclic(f, n - 1 - s, n - 1 - t)).flip(0)
    torch.testing.assert_close(back, fast, atol=1e-6, rtol=0)
    if n == 1 or k == 0:
        assert torch.equal(fast, x)


@pytest.mark.parametrize(
    ("k", "fast", "slow"),
    [(1, 292, 198), (3, 436, 588), (7, 596, 1344), (15, 744, 2760), (30, 844, 5070),
     (99, 632, 9900), (500, 632, 9900)],
)  # fmt: skip
def test_remaps_are_counted(k, fast, slow):
    for mode, expected in (("fast", fast), ("slow", slow)):
        calls = []
        D.blend_window(
            torch.zeros(100, 1, 1, 1), k, lambda f, s, t, c=calls: c.append((s, t)) or f, mode
        )
        assert len(calls) == expected
        assert all(0 <= s < 100 and 0 <= t < 100 and s != t for s, t in calls)


@pytest.mark.parametrize("mode", ["fast", "slow"])
@pytest.mark.parametrize("cached", [True, False])
def test_blending_a_pan_changes_it_little(mode, cached):
    clip, cache = panning_photo(0, 5, (32, 32)), {} if cached else None
    options = {"mode": mode, "nnf_cache": cache, "generator": torch.Generator().manual_seed(0)}
    out = D.patch_blend(clip, clip, 4, **options)
    assert psnr(out, clip, 1.0) > 30
    assert clip.min() - 1e-5 <= out.min() <= out.max() <= clip.max() + 1e-5
    if cached:
        assert all(nnf.shape == (1, 32, 32, 2) for nnf in cache.values())
        again = D.patch_blend(clip, clip, 4, mode=mode, nnf_cache=cache)  # nothing is drawn again
        assert torch.equal(out, again)


def test_batches_of_pairs_do_not_change_what_is_needed(monkeypatch):
    clip = panning_photo(0, 4, (24, 24))
    monkeypatch.setitem(vars(D), "PAIRS", 1)  # one pair at a time
    out = D.patch_blend(clip, clip, 2, generator=torch.Generator().manual_seed(0))
    assert psnr(out, clip, 1.0) > 28


# -- attention over frames, latent models ----------------------------------------------------------


def test_frame_indices():
    assert D.cross_frame_indices(4, [-10000, -1, 0, 1]).tolist() == [
        [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 3],
    ]  # fmt: skip
    assert torch.equal(D.cross_frame_indices(5, [0]), torch.arange(5)[:, None])


def test_attention_to_copies_is_self_attention():
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    torch.manual_seed(0)
    tokens = {"query_dim": 16, "heads": 2, "dim_head": 8}
    for layer, x in (
        (Attention(**tokens), normal(1, 5, 16)),
        (Attention(**tokens, norm_num_groups=4, residual_connection=True), normal(1, 16, 3, 3)),
    ):
        for x_all in (x.expand(4, *x.shape[1:]), torch.cat([x] * 4 + [x + 1] * 4)):
            layer.set_processor(AttnProcessor2_0())
            expected = layer(x_all)
            layer.set_processor(CrossFrameAttention(D.cross_frame_indices(4, [-10000, -1, 0, 1])))
            torch.testing.assert_close(layer(x_all), expected, atol=1e-5, rtol=0)
            layer.set_processor(CrossFrameAttention(D.cross_frame_indices(4, [0])))
            torch.testing.assert_close(layer(x_all), expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def tiny():
    return latent_video.tiny(steps=3)


def test_latent_pipeline(tiny):
    guide = panning_photo(0, 3, (16, 24))
    embeddings = latent_video.prompt_embeddings("tiny", "a")
    model = tiny.model(embeddings, latent_video.edges(guide))
    noise = normal(*tiny.encode(guide).shape)[:1].expand(3, -1, -1, -1)
    plain = loops.sample(model, noise, tiny.scheduler)
    assert plain.shape == (3, 4, 8, 12)
    calls = []

    def smooth(frames):
        assert frames.shape == guide.shape
        assert 0 <= frames.min() <= frames.max() <= 1
        calls.append(len(frames))
        return frames[:1].expand_as(frames)

    out = loops.sample(model, noise, D.in_loop(tiny.scheduler, tiny.codec(smooth)))
    assert calls == [3, 3, 3]
    torch.testing.assert_close(out, out[:1].expand_as(out))  # the last step ends in F
    assert not torch.allclose(out, plain)
    # by hand: the same steps with the tensor form
    x, a = noise, tiny.scheduler.alphas_cumprod
    for t, before in zip((999, 666, 332), (a[666], a[333], torch.tensor(1.0)), strict=True):
        x, _ = D.ddim_step(x, model(x, t), a[t].item(), before.item(), tiny.codec(smooth))
    torch.testing.assert_close(out, x, atol=1e-3, rtol=1e-3)


def test_latent_parts(tiny):
    guide = panning_photo(0, 3, (16, 16))
    embeddings = latent_video.prompt_embeddings("tiny", "a")
    hints, x = latent_video.edges(guide), normal(3, 4, 8, 8)
    guided = tiny.model(embeddings, hints)(x, 500)
    one, zero = (tiny.model(embeddings, hints, guidance=g)(x, 500) for g in (1.0, 0.0))
    torch.testing.assert_close(guided, zero + 7.5 * (one - zero), atol=1e-4, rtol=1e-4)
    chunked = latent_video.LatentDiffusion(
        tiny.unet, tiny.vae, tiny.scheduler, tiny.controlnets, chunk=2
    )
    torch.testing.assert_close(chunked.model(embeddings, hints)(x, 500), guided, atol=1e-5, rtol=0)
    blind = latent_video.LatentDiffusion(
        tiny.unet, tiny.vae, tiny.scheduler, tiny.controlnets, scales=(0.0,)
    )
    assert not torch.allclose(blind.model(embeddings, hints)(x, 500), guided)
    assert torch.equal(tiny.encode(guide), tiny.encode(guide))  # the mean, no sample
    assert set_cross_frames(tiny.unet, D.cross_frame_indices(3, [0])) > 0
    same = tiny.model(embeddings, hints)(x, 500)
    set_cross_frames(tiny.unet, D.cross_frame_indices(3, [-10000, -1, 0, 1]))
    other = tiny.model(embeddings, hints)(x, 500)
    set_cross_frames(tiny.unet, None)
    torch.testing.assert_close(same, guided, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(other, guided, atol=1e-4)


def test_the_whole_comparison_runs_offline():
    from helpers.session import start

    session = start(seed=0, device="cpu", banner=False)
    found = latent_video.compare(
        "tiny", [], session, D.in_loop, D.patch_blend, video="", size=[24, 24], frames=3,
        step=[1, 2], steps=2, window=1, mode="fast", matcher={"num_iter": 1}, intervals=[2, 1],
        guidance=2.0, prompt="x", index=D.cross_frame_indices(3, [0, 1]),
    )  # fmt: skip
    assert list(found["clips"]) == ["guide", "fixed noise", "post-hoc", "every 2", "every 1"]
    assert all(clip.shape == (3, 3, 24, 24) for clip in found["clips"].values())
    assert all(math.isfinite(v) for rows in found["scores"].values() for v in rows[0].values())
    assert type(found["holds"]) is bool
    with pytest.raises(ValueError, match="motion of 'clip' is unknown: give raft_weights"):
        latent_video.compare(
            "tiny", [], session, D.in_loop, D.patch_blend, video="clip", size=[24, 24], frames=3,
            step=[1, 2], steps=2, window=1, mode="fast", matcher={}, intervals=[1],
            guidance=2.0, prompt="x",
        )  # fmt: skip


def test_a_pipeline_of_diffusers_takes_the_scheduler(tiny):
    pytest.importorskip("transformers")
    from diffusers import StableDiffusionControlNetImg2ImgPipeline

    guide = panning_photo(0, 3, (16, 16))
    embeddings = latent_video.prompt_embeddings("tiny", "a")
    seen = []
    inside = D.in_loop(
        tiny.scheduler, tiny.codec(lambda x: seen.append(len(x)) or x[:1].expand_as(x))
    )
    pipe = StableDiffusionControlNetImg2ImgPipeline(
        vae=tiny.vae, text_encoder=None, tokenizer=None, unet=tiny.unet, scheduler=tiny.scheduler,
        controlnet=tiny.controlnets[0], safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.scheduler = inside
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        prompt_embeds=embeddings["positive"].expand(3, -1, -1),
        negative_prompt_embeds=embeddings["negative"].expand(3, -1, -1),
        image=guide, control_image=latent_video.edges(guide), strength=0.75,
        num_inference_steps=4, output_type="latent", height=16, width=16,
    ).images  # fmt: skip
    assert seen == [3, 3, 3]
    torch.testing.assert_close(out, out[:1].expand_as(out))


# -- GPU -------------------------------------------------------------------------------------------


@CUDA
def test_compiled_kernels_agree():
    a, b, nnf = draw(2, 3, 40, 48), draw(2, 3, 40, 48, seed=1), field(2, 40, 48)
    on_gpu = [x.cuda() for x in (a, b, nnf)]
    error = D.patch_error(*on_gpu, 5)
    torch.testing.assert_close(error.cpu(), D.patch_error(a, b, nnf, 5))
    drawn = D.remap(on_gpu[0], on_gpu[2], 5)
    torch.testing.assert_close(drawn.cpu(), D.remap(a, nnf, 5))
    clip = panning_photo(0, 4, (32, 32))
    outs = [
        D.patch_blend(x, x, 2, generator=torch.Generator().manual_seed(0))
        for x in (clip, clip.cuda())
    ]
    assert psnr(outs[0], outs[1].cpu(), 1.0) > 40  # equal errors may be ordered differently


# -- bad input -------------------------------------------------------------------------------------

X, G, N = draw(3, 3, 12, 12), draw(3, 3, 12, 12, seed=1), field(3, 12, 12)
Z = normal(3, 3, 4, 4)
BAD = [
    (lambda: D.patch_error(X, G, N, 4), ValueError, "patch_size must be odd and >= 1, got 4"),
    (lambda: D.remap(X, N, 0), ValueError, "patch_size must be odd and >= 1, got 0"),
    (lambda: D.estimate_nnf(X, G, patch_size=13), ValueError, "12 x 12 pixels .* 13 x 13"),
    (lambda: D.patch_blend(X, G, 1, patch_size=6), ValueError, "must be odd"),
    (lambda: D.patch_blend(X, G[:2], 1), ValueError, r"\(2, 3, 12, 12\).*\(3, 3, 12, 12\)"),
    (lambda: D.patch_blend(X, G[..., :9], 1), ValueError, r"\(3, 3, 12, 9\).*\(3, 3, 12, 12\)"),
    (lambda: D.estimate_nnf(X, G, X[:1]), ValueError, r"source_style is \(1, 3, 12, 12\)"),
    (lambda: D.remap(X, N.float(), 3), TypeError, r"nnf must be int64 \(B,H,W,2\) inside"),
    (lambda: D.remap(X, N[:2], 3), ValueError, r"nnf must be int64 \(B,H,W,2\) inside"),
    (lambda: D.remap(X, N + 12, 3), ValueError, "inside the image"),
    (lambda: D.patch_error(X, G, N - 12, 3), ValueError, "inside the image"),
    (lambda: D.patch_blend((255 * X).byte(), G, 1), TypeError, "must be float in 0..1"),
    (lambda: D.patch_blend(255 * X, G, 1), ValueError, "must lie in 0..1"),
    (lambda: D.noise_from_x0(Z, Z, 0.0), ValueError, "0 < alpha_t < 1"),
    (lambda: D.noise_from_x0(Z, Z, torch.tensor(1.0)), ValueError, "0 < alpha_t < 1"),
    (lambda: D.ddim_step(Z, Z, 1.5, 0.5), ValueError, "got 1.5 and 0.5"),
    (lambda: D.ddim_step(Z, Z, 0.5, 0.0), ValueError, "0 < alpha_prev <= 1"),
    (lambda: D.ddim_step(Z, Z, 0.5, 1.1), ValueError, "0 < alpha_prev <= 1"),
    (lambda: D.ddim_step(Z, Z, 0.5, 0.9, lambda x: x[:1]), ValueError, r"\(1, 3, 4, 4\) of \(3"),
    (lambda: D.ddim_timesteps(10, strength=0.0), ValueError, "strength is 0.0"),
    (lambda: D.ddim_timesteps(10, strength=1.1), ValueError, "strength is 1.1"),
    (lambda: D.ddim_timesteps(10, strength=0.05), ValueError, "a step left of 10"),
    (lambda: D.ddim_timesteps(0), ValueError, "allowed: 1 to 1000"),
    (lambda: D.ddim_timesteps(1001), ValueError, "allowed: 1 to 1000"),
    (lambda: D.blend_window(X, -1, cyclic), ValueError, "window must be >= 0, got -1"),
    (lambda: D.blend_window(X, 1, cyclic, "fat"), ValueError, "mode must be one of fast, slow"),
    (lambda: D.patch_blend(X, G, 1, mode="fat"), ValueError, "mode must be one of fast, slow"),
    (lambda: D.estimate_nnf(X, G, init="zero"), ValueError, "init must be one of identity, random"),
    (lambda: D.window_nodes(3, 2), ValueError, "0 <= left <= right, got 3 and 2"),
    (lambda: D.in_loop(loops.ddim("sample", 4), cyclic, 0), ValueError, "interval must be >= 1"),
    (lambda: D.in_loop(loops.ddim("sample", 4), cyclic, 1, -1), ValueError, "ignore_last"),
    (lambda: warping_error(X[:1], (0, 0)), ValueError, "2 frames or more, got 1"),
    (lambda: warping_error(X, (12, 0)), ValueError, "leaves no pixel"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_missing_models_name_the_parameter(tmp_path, monkeypatch):
    from helpers.flows import raft_flows
    from helpers.session import start

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    session = start(seed=0, device="cpu", banner=False)
    with pytest.raises(FileNotFoundError, match="stable_diffusion: no UNet2DConditionModel"):
        latent_video.load(str(tmp_path), [], 4, session)
    with pytest.raises(FileNotFoundError, match="prompt_file: no file"):
        latent_video.prompt_embeddings("x", "y", file=str(tmp_path / "none.safetensors"))
    with pytest.raises(FileNotFoundError, match="raft_weights: no file"):
        raft_flows(X, str(tmp_path / "none.pth"))
