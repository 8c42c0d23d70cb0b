"""Clips with known motion, flows, video files, flicker measures and denoisers of clips."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import data, denoisers, diffusion_loops, flicker, flows, videos
from helpers.data.clips import PALETTES
from helpers.data.tinted_digits import COLOURS, HUES, random_scenes, tint
from helpers.metrics import warping_error


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# -- clips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [(1, 2), (0, -3), (-2, 1), (0, 0)])
def test_a_pan_moves_by_its_step(step):
    for seed in range(4):
        clip = data.panning_photo(seed, 4, (20, 24), step)
        assert clip.shape == (4, 3, 20, 24)
        assert 0 <= clip.min() <= clip.max() <= 1
        assert warping_error(clip, step) == 0
        assert warping_error(clip + 0.1, step) == pytest.approx(0, abs=1e-12)
        assert warping_error(clip, (step[0] + 1, step[1])) > 1e-5
        flow = flows.pan_flows(step, (20, 24))
        assert flows.flow_error(clip, flow) == pytest.approx(0, abs=1e-9)
    assert torch.equal(clip, data.panning_photo(3, 4, (20, 24), step))


def test_warping_error_by_hand():
    frames, valid = draw(3, 2, 5, 6), draw(2, 5, 6, seed=1) < 0.6
    terms = [
        (frames[i + 1, :, y, x] - frames[i, :, y - 1, x + 2]).square().mean()
        for i in range(2)
        for y in range(1, 5)
        for x in range(4)
        if valid[i, y, x]
    ]
    found = warping_error(frames, (-1, 2), valid)
    assert found == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="no pixel"):
        warping_error(frames, (-1, 2), torch.zeros(1, 5, 6, dtype=torch.bool))


def test_clip_errors():
    with pytest.raises(ValueError, match=r"8 frames of 900 x 9 .* than chelsea has: 150 x 225"):
        data.panning_photo(0, 8, (900, 9))


def test_styles_keep_the_light():
    guide = data.panning_photo(0, 2, (12, 12))
    styles = data.styled(guide)
    assert styles.shape == (4, 2, 3, 12, 12)
    grey = guide.mean(1)
    inside = (styles > 0).all(0).all(1) & (styles < 1).all(0).all(1)
    for style, palette in zip(styles, PALETTES, strict=True):
        light = style.mean(1) - 0.8 * palette.mean() - 0.5 * (grey - 0.5) - 0.05
        assert light[inside].abs().max() < 1e-6
    clean = data.tinted_by_brightness(guide)
    assert flicker.distance_to_valid(clean, styles) == 0
    dirty = data.degraded(clean, torch.Generator().manual_seed(0), noise=0.25, offset=0.1)
    assert 0.2 < (dirty - clean).std() < 0.33


def test_stereo_pair_and_its_disparity():
    left, right, disparity = data.stereo_pair(4)
    assert left.shape == right.shape == (3, 125, 185)
    assert disparity.shape == (125, 185)
    flow = torch.stack([torch.zeros_like(disparity), -disparity]).nan_to_num(neginf=0.0)
    columns = torch.arange(185)
    known = disparity.isfinite() & (columns - disparity >= 0)
    errors = [
        (view - left).square().mean(0)[known].mean() for view in (right, flows.warp(right, flow))
    ]
    assert errors[1] < errors[0] / 8


# -- digits in discrete hues -----------------------------------------------------------------------


def test_hues_do_not_show_in_the_guide():
    assert HUES.mean(1).abs().max() < 1e-6
    scene = random_scenes("train", 8, 32, torch.Generator().manual_seed(0))
    hues = torch.randint(COLOURS, (2, 8), generator=torch.Generator().manual_seed(1))
    images = tint(scene, *hues)
    assert 0 <= images.min() <= images.max() <= 1
    torch.testing.assert_close(images.mean(1, keepdim=True), scene.guide, atol=1e-6, rtol=0)
    assert flicker.distance_to_valid(images, data.valid_images(scene)) < 1e-12


def test_digit_and_ground_move_as_said():
    scene = data.moving_digit(3)
    clip = data.valid_images(scene)[6]
    scores = data.scene_scores(clip, scene)
    assert scores["ground"] < 0.2  # the blurred rim of the digit
    assert scores["digit"] < 0.3
    assert scores["off"] < 1e-9
    shuffled = data.scene_scores(clip.flip(0), scene)
    assert shuffled["digit"] > 10 * scores["digit"] + 1


def test_training_batches():
    alphas = diffusion_loops.ddim("v_prediction", 4).alphas_cumprod
    generator = torch.Generator().manual_seed(0)
    ((x, v),) = data.noisy_batches(alphas, 32, 4, 1, generator)
    a = alphas[x[:, 4, :1, :1].long()][:, None]
    noisy = x[:, :3]
    image = a.sqrt() * noisy - (1 - a).sqrt() * v
    torch.testing.assert_close(image.mean(1), x[:, 3], atol=1e-5, rtol=0)  # its grey is the guide
    noise = (1 - a).sqrt() * noisy + a.sqrt() * v
    assert 0.9 < noise.std() < 1.1


# -- denoisers -------------------------------------------------------------------------------------


def test_exact_denoiser_is_the_posterior_mean():
    alphas = torch.tensor([0.9, 0.5, 0.1])
    styles = 2 * draw(4, 1, 3, 5, 5) - 1
    model = denoisers.exact_denoiser(styles, alphas)
    x = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    for t, a in enumerate(alphas):
        density = [
            torch.distributions.Normal(a.sqrt() * s, (1 - a).sqrt()).log_prob(x).sum()
            for s in styles
        ]
        weights = torch.softmax(torch.stack(density), 0)  # the window of the centre is the image
        expected = (weights[:, None] * styles[:, 0, :, 2, 2]).sum(0)
        torch.testing.assert_close(model(x, t)[0, :, 2, 2], expected, atol=1e-5, rtol=0)


def test_guided_unet_learns_something():
    from helpers.session import start

    session = start(seed=0, device="cpu", banner=False)
    alphas = diffusion_loops.ddim("v_prediction", 4).alphas_cumprod
    model = denoisers.guided_unet(0, (8, 8, 16), 32)
    twin = denoisers.guided_unet(0, (8, 8, 16), 32)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    x, guide = torch.randn(2, 3, 32, 32), draw(2, 1, 32, 32)
    with torch.no_grad():
        model.unet.conv_out.weight.normal_(std=0.1)
        early, late = (model.predict(x, t, guide) for t in (10, 900))
    assert early.shape == (2, 3, 32, 32)
    assert not torch.allclose(early, late)
    recipe = {"size": 32, "batch_size": 4, "steps": 30, "lr": 5e-3}
    figures = denoisers.train_on_scenes(model, alphas, session=session, **recipe)
    assert figures["training_loss"] < 1.0
    assert next(model.parameters()).dtype == torch.float16


# -- motion and flicker ----------------------------------------------------------------------------


def test_warping_and_consistency():
    image = draw(3, 9, 11)
    flow = torch.tensor([1.0, -2.0])[:, None, None].expand(2, 9, 11)
    out = flows.warp(image, flow)
    torch.testing.assert_close(out[:, :-1, 2:], image[:, 1:, :-2], atol=1e-5, rtol=0)
    valid = flows.consistent(flow, -flow)
    assert torch.equal(valid, ((torch.arange(9) < 8)[:, None] & (torch.arange(11) >= 2)))
    assert not flows.consistent(flow, flow).any()
    with pytest.raises(ValueError, match="consistent nowhere"):
        flows.flow_error(image[None].expand(2, -1, -1, -1), lambda i, j: flow)


def test_flow_smoothing_keeps_a_pan():
    clip = data.panning_photo(0, 4, (20, 20))
    out = flows.flow_smoothing(clip, flows.pan_flows((1, 2), (20, 20)))
    torch.testing.assert_close(out[:, :, 2:-2, 3:-3], clip[:, :, 2:-2, 3:-3], atol=1e-5, rtol=0)
    weights = torch.tensor([0.8, 1.0, 0.8]) / 2.6
    still = flows.flow_smoothing(clip, flows.pan_flows((0, 0), (20, 20)))
    torch.testing.assert_close(still[1], (weights[:, None, None, None] * clip[:3]).sum(0))


def test_plain_mean_and_sharpening():
    x = draw(6, 3, 8, 8)
    for k in (0, 2, 9):
        expected = [x[max(0, i - k) : i + k + 1].mean(0) for i in range(6)]
        torch.testing.assert_close(flicker.plain_mean(x, k), torch.stack(expected))
    torch.testing.assert_close(flicker.sharpened(x), x)
    soft = 0.4 + 0.2 * x
    assert flicker.sharpness(flicker.sharpened(soft, 1.0, 3.0)) > 2 * flicker.sharpness(soft)
    assert flicker.sharpened(soft, 1.5).std() > 1.3 * soft.std()
    constant = torch.full((1, 3, 6, 6), 102 / 255)
    torch.testing.assert_close(flicker.sharpened(constant, 1.5, 5.0), constant)


# -- files -----------------------------------------------------------------------------------------


def save(array, path):
    Image.fromarray(array).save(path)


def test_folder_of_frames(tmp_path):
    frames = (draw(3, 10, 14, 3) * 255).byte().numpy()
    for k, frame in enumerate(frames):
        save(frame, tmp_path / f"{k:03}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    clip = videos.read_video(tmp_path)
    assert torch.equal((clip * 255).round().byte(), torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert videos.read_video(tmp_path, 2, (5, 7)).shape == (2, 3, 5, 7)
    assert videos.read_video(tmp_path, size=(8, 8)).shape == (3, 3, 8, 8)
    save(frames[0][:-1], tmp_path / "003.png")
    with pytest.raises(ValueError, match=r"003\.png has the size \(9, 14\)"):
        videos.read_video(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="empty holds no pictures"):
        videos.read_video(empty)
    with pytest.raises(FileNotFoundError, match=r"video: no file or folder .*missing"):
        videos.read_video(tmp_path / "missing")
    film = tmp_path / "film.mp4"
    film.write_bytes(bytes(64))
    with pytest.raises(ValueError, match=r"film\.mp4 cannot be decoded"):
        videos.read_video(film)


def test_film_there_and_back(tmp_path):
    ramp = torch.linspace(0, 1, 24).expand(3, 16, 24)
    clip = torch.stack([ramp * (k + 1) / 6 for k in range(6)])
    videos.write_film(tmp_path / "film.mp4", clip, fps=8, zoom=2)
    back = videos.read_video(tmp_path / "film.mp4")
    assert back.shape == (6, 3, 32, 48)
    large = clip.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (back - large).abs().mean() < 0.02
    assert videos.read_video(tmp_path / "film.mp4", 2).shape[0] == 2
    assert videos.read_video(tmp_path / "film.mp4", 2, (16, 16)).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="at least one frame"):
        videos.write_film(tmp_path / "none.mp4", clip[:0])


def test_gif_there_and_back(tmp_path):
    clip = torch.zeros(4, 3, 6, 8)
    for k in range(4):
        clip[k, k % 3, :, 2 * k :] = 1
    content = videos.gif_bytes(clip, fps=5, zoom=2)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (4, (16, 12), 200)
    (tmp_path / "clip.gif").write_bytes(videos.gif_bytes(clip))
    torch.testing.assert_close(videos.read_video(tmp_path / "clip.gif"), clip, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="at least one frame"):
        videos.gif_bytes(clip[:0])


def test_showing_writes_files(tmp_path, capsys):
    clips = {"one": draw(2, 3, 4, 5), "in loop": draw(2, 3, 4, 5, seed=1)}
    row = videos.side_by_side(clips)
    assert row.shape == (2, 3, 4, 12)
    assert (row[..., 5:7] == 1).all()
    videos.show(clips, str(tmp_path / "new"))
    written = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert written == ["in_loop.gif", "in_loop.mp4", "one.gif", "one.mp4"]
    videos.show(clips, str(tmp_path / "new"), "again, 2")
    assert (tmp_path / "new" / "again_2_in_loop.gif").is_file()
    assert "one | in loop" in capsys.readouterr().out
    videos.show(clips)
    assert np.all([p.parent.name == "new" for p in tmp_path.rglob("*.gif")])
